"""A model is the network: towers, the modules at their sites with their owners, heads and routing; it knows no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from avcl_core.batch import Batch, Outputs
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError
from avcl_core.features import Features, FeatureSpec
from avcl_core.ownership import own
from avcl_core.sites import Bank
from avcl_core.stream import Experience, Stream
from avcl_core.task import Task
from avcl_core.walk import Ctx, DualStream, Place, Site
from shared_backbones.tower import Tower


@dataclass(frozen=True)
class Requires:
    """What a model needs; checked against towers, tasks and stream before any work.

    Attributes:
        towers: names of the towers that must be configured.
        kinds: sublayer kinds that each of those towers must have.
        modalities: modalities that every task of the stream must deliver.
        task_id: which test-time knowledge the model can work with.
    """

    towers: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    task_id: tuple[str, ...] = ("given",)

    def check(self, model: str, towers: Mapping[str, Tower], tasks: Mapping[str, Task], stream: Stream) -> None:
        """Raise ConfigError that names the first requirement that is not met."""
        for name in self.towers:
            if name not in towers:
                raise ConfigError(f"model {model} needs a tower towers.{name}; configured: {sorted(towers)}")
            lacking = set(self.kinds) - {sub.kind for sub in towers[name].subs}
            if lacking:
                raise ConfigError(
                    f"model {model} needs sublayers {sorted(lacking)} in towers.{name}, which {towers[name].info.name} "
                    "does not have; choose a transformer tower"
                )
        for task in tasks.values():
            lacking = set(self.modalities) - set(task.modalities)
            if lacking:
                raise ConfigError(f"model {model} needs {sorted(lacking)}, which task {task.name} does not deliver")
        if stream.task_id not in self.task_id:
            raise ConfigError(
                f"model {model} cannot work with stream.task_id={stream.task_id}; it supports {self.task_id}"
            )


class Model(nn.Module):
    """Base of all models. A subclass declares its walk and places modules at sites in ``__init__``.

    Args:
        towers: modality → tower; the name of a tower is the modality it reads.
        tasks: task name → task, of the whole stream.
        options: the model's own configuration.
    """

    Config: ClassVar[type[Options]] = Options
    requires: ClassVar[Requires] = Requires()

    def __init__(self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: Options) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(towers)
        self.tasks, self.options = dict(tasks), options
        self.sites: dict[Site, list[nn.Module]] = {}
        self.parts = nn.ModuleList()
        self.heads = nn.ModuleDict()
        self.walks = self.make_walks()
        self.slots: list[str] = []

    def make_walks(self) -> tuple[DualStream, ...]:
        """Return the walks of a forward call; by default every tower alone."""
        return tuple(DualStream.solo(name, tower) for name, tower in self._towers())

    def _towers(self) -> list[tuple[str, Tower]]:
        return [(name, tower) for name, tower in self.towers.items() if isinstance(tower, Tower)]

    def place(self, tower: str, step: str, place: Place, module: nn.Module) -> nn.Module:
        """Put ``module`` at a site. One module may stand at several sites; it is registered once."""
        if not any(module is known for known in self.parts):
            self.parts.append(module)
        self.sites.setdefault((tower, step, place), []).append(module)
        return module

    # ------------------------------------------------------------------ growth and routing
    def slot(self, experience: Experience) -> str:
        """Return the slot of task- or expert-owned copies that ``experience`` uses."""
        return experience.name

    def grow(self, experience: Experience) -> None:
        """Create the parameters that ``experience`` needs. Shapes only: no data, and values follow from the seed alone."""
        task = self.tasks[experience.task]
        if experience.task in self.heads:
            self.heads[experience.task] = own(
                task.widen(self.heads[experience.task], experience), f"head:{experience.task}"
            )
        else:
            head = self.make_head(task, experience)
            if head is not None:
                self.heads[experience.task] = own(head, f"head:{experience.task}")
        slot = self.slot(experience)
        for module in self.modules():
            if isinstance(module, Bank):
                module.grow(slot, self.warm_start(slot))
        if slot not in self.slots:
            self.slots.append(slot)

    def warm_start(self, slot: str) -> str | None:
        """Return the slot whose values a new copy starts from, or ``None`` for a fresh start (the default)."""
        return None

    def make_head(self, task: Task, experience: Experience) -> nn.Module | None:
        """Return the head of a task: the task's own by default."""
        return task.head(self.spec(), experience)

    def spec(self) -> FeatureSpec:
        """Return the shapes that heads can expect."""
        specs = [walk.spec() for walk in self.walks]
        return FeatureSpec(
            {name: shape for spec in specs for name, shape in spec.final.items()},
            {name: shapes for spec in specs for name, shapes in spec.stages.items()},
        )

    def route(self, batch: Batch) -> tuple[str, ...] | None:
        """Return one slot per sample: that of the experience where it is given; a model for hidden ids overrides this."""
        if batch.experience is None:
            return None
        return (batch.experience,) * len(batch)

    # ------------------------------------------------------------------ the forward call
    def enter(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]], int]:
        """Embed the inputs of all towers.

        Returns:
            tower → tokens ``[b·T, N, C]``, tower → aux, and the number of frames T.
        """
        tokens, aux, frames = {}, {}, 1
        for name, tower in self._towers():
            value = batch.inputs[name]
            frames = value.shape[1]
            tokens[name], aux[name] = tower.embed(value.flatten(0, 1))
            if name in batch.present and not bool(batch.present[name].all()):
                tokens[name] = self.absent(name, tokens[name], batch.present[name].repeat_interleave(frames), batch)
        return tokens, aux, frames

    def absent(self, tower: str, tokens: Tensor, present: Tensor, batch: Batch) -> Tensor:
        """Return tokens in which rows of a missing modality are replaced by the model's stand-in.

        Args:
            tower: the modality that some rows lack.
            tokens: ``[B, N, C]``.
            present: bool ``[B]``.
        """
        raise ConfigError(
            f"{type(self).__name__} has no stand-in for a missing {tower} input of task {batch.task}; "
            "choose a model that supports missing modalities"
        )

    def prepare(self, batch: Batch, ctx: Ctx) -> None:
        """Hook after embedding and before the first step: generated prompts go into ``ctx.memo``."""

    def features(self, batch: Batch, ctx: Ctx) -> Features:
        """Return the features ``[b, T, N, C]`` of a batch."""
        tokens, aux, frames = self.enter(batch)
        ctx.embedded.update(tokens)
        self.prepare(batch, ctx)
        inner = ctx.per_frame(frames)
        final: dict[str, Tensor] = {}
        stages: dict[str, tuple[Tensor, ...]] = {}
        for walk in self.walks:
            names = list(walk.towers)
            found = walk.walk({n: tokens[n] for n in names}, {n: aux[n] for n in names}, self.sites, inner)
            final.update({n: _clips(value, frames) for n, value in found.final.items()})
            stages.update({n: tuple(_clips(v, frames) for v in values) for n, values in found.stages.items()})
        return Features(final, stages)

    def read(self, features: Features, batch: Batch, ctx: Ctx) -> Outputs:
        """Return the outputs of the batch's head; separately callable, so that stored features can enter here."""
        return self.heads[batch.task](features, batch)

    def forward(self, batch: Batch, ctx: Ctx) -> Outputs:
        """Return the outputs of a batch."""
        return self.read(self.features(batch, ctx), batch, ctx)

    def answer(self, batch: Batch, ctx: Ctx) -> Outputs:
        """Return the outputs that ``Task.decode`` reads; generative models override this."""
        return self(batch, ctx)


def _clips(value: Tensor, frames: int) -> Tensor:
    """``[b·T, 1, N, C]`` → ``[b, T, N, C]``."""
    return value.squeeze(1).unflatten(0, (-1, frames))
