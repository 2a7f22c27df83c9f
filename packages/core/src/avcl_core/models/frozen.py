"""Frozen towers with heads and nothing else: linear probing, baselines with fixed features, and stages that train a head."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.features import Features
from avcl_core.models.base import Model
from avcl_core.task import Task
from avcl_core.walk import Ctx, DualStream
from shared_backbones.tower import Tower


class FrozenOptions(Options):
    """Configuration of :class:`Frozen`.

    Attributes:
        cache_mib: memory for features that were computed before, in MiB; 0 computes them at every step.
    """

    cache_mib: NonNegativeInt = 1024


class Frozen(Model):
    """Frozen towers and one head per task; nothing is shared between tasks, so nothing can be forgotten or transferred.

    No site acts, so the features of a clip never change: each is computed once and kept by the content of its input. Clips go
    through a tower one by one, and so do single frames of plain inputs, so that the bits of a feature do not depend on the
    batch in which it was first needed.
    """

    Config = FrozenOptions

    def __init__(self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: FrozenOptions) -> None:
        super().__init__(towers, tasks, options)
        self.kept: dict[tuple[str, bytes], Features] = {}
        self.left = options.cache_mib * 2**20

    def features(self, batch: Batch, ctx: Ctx) -> Features:
        """Return the features ``[b, T, N, C]`` of a batch, without gradient."""
        final: dict[str, Tensor] = {}
        stages: dict[str, tuple[Tensor, ...]] = {}
        for name, tower in self._towers():
            clips = list(self._each(name, tower, self.given(batch, name, name)))
            final[name] = torch.stack([clip.final[name] for clip in clips])
            stages[name] = tuple(torch.stack(maps) for maps in zip(*(clip.stages[name] for clip in clips), strict=True))
        return Features(final, stages, self._plain(batch))

    def _plain(self, batch: Batch) -> dict[str, Tensor]:
        towers, found = dict(self._towers()), {}
        for name, modality in self.tasks[batch.task].plain.items():
            if modality in towers and name in batch.inputs:
                value = self.given(batch, name, modality)
                frames = self._each(modality, towers[modality], value.flatten(0, 1).unsqueeze(1))
                found[name] = torch.cat([frame.final[modality] for frame in frames]).unflatten(0, value.shape[:2])
        return found

    def _each(self, name: str, tower: Tower, values: Tensor) -> Iterator[Features]:
        """Yield the features of every row of a tower's input ``[n, T, …]``: ``[T, N, C]`` each, from memory where known."""
        walk = DualStream.solo(name, tower)
        for value in values:
            content = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            key = (name, hashlib.blake2b(content, digest_size=16).digest())
            if key not in self.kept:
                # What is kept must not depend on the precision of the step that first needed it.
                with torch.no_grad(), torch.autocast(value.device.type, enabled=False):
                    tokens, aux = tower.embed(value)
                    found = walk.walk({name: tokens}, {name: aux}, {}, Ctx())
                made = Features({name: found.final[name][:, 0]}, {name: tuple(m[:, 0] for m in found.stages[name])})
                size = sum(t.numel() * t.element_size() for t in (made.final[name], *made.stages[name]))
                if size > self.left:
                    yield made
                    continue
                self.left -= size
                self.kept[key] = made
            yield self.kept[key]
