"""Frozen towers with heads and nothing else: linear probing, baselines with fixed features, and stages that train a head."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import NonNegativeInt
from torch import Tensor

from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError
from avcl_core.features import Features
from avcl_core.models.base import Model, Requires
from avcl_core.models.kept import Kept
from avcl_core.task import Task
from avcl_core.walk import Ctx, DualStream
from shared_backbones.tower import Tower


class FrozenOptions(Options):
    """Configuration of :class:`Frozen`.

    Attributes:
        cache_mib: memory for features that were computed before, in MiB; 0 computes them at every step.
        unnormed: towers whose final norm is left out, as AVMOE leaves out HTS-AT's (avmoe.md 3.1): the same head then reads
            what it reads there.
    """

    cache_mib: NonNegativeInt = 1024
    unnormed: tuple[str, ...] = ()


class Frozen(Model):
    """Frozen towers and one head per task; nothing is shared between tasks, so nothing can be forgotten or transferred.

    No site acts, so the features of a frame never change: each is computed once and kept by its content, in a way that its bits do
    not depend on the batch in which it was first needed.
    """

    Config = FrozenOptions
    requires = Requires(task_id=("given", "hidden"))
    options: FrozenOptions

    def __init__(self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: FrozenOptions) -> None:
        unknown = sorted(set(options.unnormed) - set(towers))
        if unknown:
            raise ConfigError(f"model.unnormed names {unknown}, which are no towers; configured: {sorted(towers)}")
        super().__init__(towers, tasks, options)
        self.kept = Kept(options.cache_mib * 2**20)

    def make_walks(self) -> tuple[DualStream, ...]:
        """Return the walk of every tower alone, with or without its final norm."""
        unnormed = self.options.unnormed
        return tuple(
            DualStream.solo(name, tower, (name,) if name in unnormed else ()) for name, tower in self._towers()
        )

    def features(self, batch: Batch, ctx: Ctx) -> Features:
        """Return the features ``[b, T, N, C]`` of a batch, without gradient."""
        final: dict[str, Tensor] = {}
        stages: dict[str, tuple[Tensor, ...]] = {}
        for walk in self.walks:
            (name,) = walk.towers
            value = self.given(batch, name, name)
            found = self.kept.features(walk, value.flatten(0, 1))
            final[name] = found.final[name].unflatten(0, value.shape[:2])
            stages[name] = tuple(part.unflatten(0, value.shape[:2]) for part in found.stages[name])
        if ctx.trace is not None:
            ctx.trace.tell_features(final)
        return Features(final, stages, self._plain(batch))

    def plain_walk(self, modality: str) -> DualStream:
        """Return the tower's own walk, so that plain inputs and the sample's are read alike."""
        return next(walk for walk in self.walks if modality in walk.towers)
