"""A model is the network: towers, the modules at their sites with their owners, heads and routing; it knows no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from avcl_core.batch import Batch, Outputs
from avcl_core.collective import Collective
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError
from avcl_core.features import Features, FeatureSpec
from avcl_core.models.kept import Kept
from avcl_core.ownership import own
from avcl_core.routing import Routes
from avcl_core.sites import Bank, Settling
from avcl_core.stream import Experience, Stream
from avcl_core.task import Task
from avcl_core.walk import Ctx, DualStream, Place, Site
from shared_backbones.tower import Tower

if TYPE_CHECKING:
    from avcl_core.methods.base import Data


_REMOVABLE: dict[str, frozenset[Place]] = {
    "prompts": frozenset({"prefix", "input"}), "adapters": frozenset({"add"}), "experts": frozenset({"swap"})
}  # fmt: skip


@dataclass(frozen=True)
class Requires:
    """What a model needs; checked against towers, tasks and stream before any work.

    Attributes:
        towers: names of the towers that must be configured; with none, any towers will do.
        kinds: sublayer kinds that each of them must have.
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
        for name in self.towers or towers:
            lacking = set(self.kinds) - {sub.kind for sub in towers[name].subs}
            if lacking:
                raise ConfigError(
                    f"model {model} needs sublayers {sorted(lacking)} in towers.{name}, which {towers[name].info.name} "
                    "does not have; choose a transformer tower"
                )
        for task in tasks.values():
            for name, tower in towers.items():
                if tower.info.modality not in task.modalities:
                    raise ConfigError(
                        f"towers.{name} reads {tower.info.modality}, which task {task.name} does not deliver"
                    )
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
    separate: ClassVar[bool] = False
    """Whether a prediction depends on the sample and on :meth:`used` alone, whatever its batch and the other slots: then none is computed
    twice, and samples are predicted slot by slot."""

    def __init__(self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: Options) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(towers)
        self.tasks, self.options = dict(tasks), options
        self.sites: dict[Site, list[nn.Module]] = {}
        self.parts = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.walks = self.make_walks()
        self.kept = Kept(0)  # a model whose options allow it memory replaces this
        self.slots: list[str] = []

    @classmethod
    def needs(cls, options: Options) -> Requires:
        """Return what the model needs with these options; by default :attr:`requires`."""
        return cls.requires

    @classmethod
    def remarks(cls, options: Options, tasks: Mapping[str, Task], sizes: Mapping[str, int]) -> tuple[str, ...]:
        """Return what a user should know before training with these options, a line each; by default nothing.

        Args:
            sizes: task → samples per optimiser step.
        """
        return ()

    def make_walks(self) -> tuple[DualStream, ...]:
        """Return the walks of a forward call; by default every tower alone."""
        return tuple(DualStream.solo(name, tower) for name, tower in self._towers())

    def _towers(self) -> list[tuple[str, Tower]]:
        return [(name, tower) for name, tower in self.towers.items() if isinstance(tower, Tower)]

    def place(self, tower: str, step: str, place: Place, module: nn.Module) -> nn.Module:
        """Put ``module`` at a site. One module may stand at several sites; it is registered once, under its first site.

        Raises:
            ValueError: no walk has this step for the tower, or the step has no sublayer on which the place acts.
        """
        self._find(tower, step, place)
        if not any(module is known for known in self.parts.values()):
            name = f"{tower}_{step}_{place}".replace(".", "_")
            others = sum(known.startswith(name) for known in self.parts)
            self.parts[name if not others else f"{name}_{others}"] = module
        self.sites.setdefault((tower, step, place), []).append(module)
        return module

    def coupled(self, task: str) -> bool:
        """Whether ``ctx.aux`` of a task's batches holds terms that are no mean over rows (load balance, contrast): then no
        micro-batches, and the rows of replayed samples are not divided over ranks. By default there are none."""
        return False

    def removable(self) -> dict[str, frozenset[Place]]:
        """Return what the model can be predicted without, as an ablation: kind of modules → the places where they act."""
        taken = {place for (_, _, place), modules in self.sites.items() if modules}
        return {name: places for name, places in _REMOVABLE.items() if places & taken}

    def _find(self, tower: str, step: str, place: Place) -> None:
        walks = [walk for walk in self.walks if tower in walk.towers]
        found = next((s for walk in walks for s in walk.steps if s.name == step), None)
        if found is None:
            names = [s.name for walk in walks for s in walk.steps]
            raise ValueError(f"site ({tower}, {step}, {place}): no such step; steps of this tower's walk: {names}")
        kinds = {sub.kind for sub in found.advance.get(tower, ())}
        needs = {"prefix": "attn", "swap": "mlp"}.get(place)
        if (needs and needs not in kinds) or (place == "input" and not kinds):
            raise ValueError(
                f"site ({tower}, {step}, {place}): the step runs {sorted(kinds)} of this tower, so nothing acts here"
            )

    # ------------------------------------------------------------------ growth and routing
    def slot(self, experience: Experience) -> str:
        """Return the slot of task- or expert-owned copies that ``experience`` uses."""
        return experience.name

    def active(self, experience: Experience) -> tuple[str, ...]:
        """Return the owner patterns of what ``experience`` teaches; a method may add to them or take from them.

        By default what is shared, the router, the copies of the experience's own slot and its head. A model whose experts
        serve all experiences adds ``expert:*``.
        """
        slot = self.slot(experience)
        return ("shared", "router", f"task:{slot}", f"expert:{slot}", f"head:{experience.task}")

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

    def calibrate(self, experience: Experience, data: Data, hidden: bool) -> None:
        """Hook before ``experience`` trains: a pass over its data for what is computed and not learnt (a router's centres).

        Growing sees no data; this fills the values. It may write to what the experience teaches and to nothing else, and is called in
        eval mode, whatever the method. What it writes is owned, so a resumed run has it.

        Args:
            hidden: whether prediction will have to do without the experience; where not, nothing need be computed that only
                routes.
        """

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

    def routes(self, batch: Batch, reads: Sequence[str] = ()) -> Routes | None:
        """Return where samples are sent and by which scores, or nothing for a model without slots.

        Args:
            reads: what is compared, where not all that the model is configured to.

        Raises:
            ConfigError: the model has no such choice.
        """
        if reads:
            raise ConfigError(f"reads={','.join(reads)}: the router of this model always compares the same")
        slots = self.route(batch)
        return None if slots is None else Routes(slots, tuple(self.slots))

    def used(self, slot: str, task: str) -> tuple[str, ...]:
        """Return the owner patterns of what a slot predicts samples of a task with: its own, and the task's head.

        Read where slots are :attr:`separate`: a prediction is known until one of these tensors changes.
        """
        return (f"task:{slot}", f"expert:{slot}", f"head:{task}")

    # ------------------------------------------------------------------ the forward call
    def enter(self, batch: Batch, ctx: Ctx) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]], int]:
        """Embed the inputs of all towers.

        Returns:
            tower → tokens ``[b·T, N, C]``, tower → aux, and the number of frames T.
        """
        tokens, aux, frames = {}, {}, None
        for name, tower in self._towers():
            value = self.given(batch, name, name)
            if frames not in (None, value.shape[1]):
                raise ConfigError(f"task {batch.task}: input {name} has {value.shape[1]} frames, the others {frames}")
            frames = value.shape[1]
            tokens[name], aux[name] = self.embed(tower, value, batch, ctx)
        return tokens, aux, frames or 1

    def embed(self, tower: Tower, value: Tensor, batch: Batch, ctx: Ctx) -> tuple[Tensor, dict[str, Any]]:
        """Embed the input ``[b, T, …]`` of a tower; a model that augments what a tower reads overrides this."""
        return tower.embed(value.flatten(0, 1))

    def given(self, batch: Batch, name: str, modality: str) -> Tensor:
        """Return the input ``name``, which the tower of ``modality`` reads, ``[b, T, …]``, without what ``present`` denies."""
        tower, value = self.towers[modality], batch.inputs[name]
        if modality in batch.present and isinstance(tower, Tower):
            return self.absent(tower, value, batch.present[modality])
        return value

    def absent(self, tower: Tower, value: Tensor, present: Tensor) -> Tensor:
        """Return a tower's input in which samples of a missing modality are replaced by the model's stand-in.

        By default the front end's features of silence, or the mean image (zeros after normalisation).

        Args:
            value: front-end features ``[b, T, …]``.
            present: bool ``[b]``, or ``[b, T]`` where a modality is missing for some seconds only.
        """
        if bool(present.all()):
            return value
        blank = torch.zeros_like(value[0, 0])
        if tower.info.sample_rate is not None:
            silence = tower.frontend(torch.zeros(1, tower.info.sample_rate, device=value.device))
            # Silence sounds the same at all times: one frame of it stands for any length.
            blank = silence[0, :, :1].to(value.dtype).expand_as(blank)
        return torch.where(present.view(*present.shape, *[1] * (value.ndim - present.ndim)), value, blank)

    def prepare(self, batch: Batch, ctx: Ctx) -> None:
        """Hook after embedding and before the first step: generated prompts go into ``ctx.memo``.

        The context is already per row of ``ctx.embedded``: one slot for each frame of each sample.
        """

    def features(self, batch: Batch, ctx: Ctx) -> Features:
        """Return the features ``[b, T, N, C]`` of a batch."""
        tokens, aux, frames = self.enter(batch, ctx)
        ctx.embedded.update(tokens)
        inner = ctx.per_frame(frames)
        if ctx.trace is not None:
            ctx.trace.frames = frames
        self.prepare(batch, inner)
        final: dict[str, Tensor] = {}
        stages: dict[str, tuple[Tensor, ...]] = {}
        for walk in self.walks:
            names = list(walk.towers)
            found = walk.walk({n: tokens[n] for n in names}, {n: aux[n] for n in names}, self.sites, inner)
            final.update({n: _clips(value, frames) for n, value in found.final.items()})
            stages.update({n: tuple(_clips(v, frames) for v in values) for n, values in found.stages.items()})
        if ctx.trace is not None:
            ctx.trace.tell_features(final)
        return Features(final, stages, self._plain(batch))

    def plain_walk(self, modality: str) -> DualStream:
        """Return the walk of a tower alone, without sites, for the inputs that a task wants plain."""
        return DualStream.solo(modality, dict(self._towers())[modality])

    def _plain(self, batch: Batch) -> dict[str, Tensor]:
        """Return input → final tokens of the plain tower ``[b, T, N, C]`` for the inputs that the task wants so."""
        found, towers = {}, dict(self._towers())
        for name, modality in self.tasks[batch.task].plain.items():
            if modality in towers and name in batch.inputs:
                value = self.given(batch, name, modality)
                plain = self.kept.features(self.plain_walk(modality), value.flatten(0, 1), stages=False)
                found[name] = plain.final[modality].unflatten(0, value.shape[:2])
        return found

    def read(self, features: Features, batch: Batch, ctx: Ctx) -> Outputs:
        """Return the outputs of the batch's head; separately callable, so that stored features can enter here."""
        return self.heads[batch.task](features, batch)

    def forward(self, batch: Batch, ctx: Ctx) -> Outputs:
        """Return the outputs of a batch."""
        return self.read(self.features(batch, ctx), batch, ctx)

    def settle(self, collective: Collective) -> None:
        """Fold what the micro-batches of all ranks left in the model's modules, once per optimiser step."""
        for module in self.modules():
            if isinstance(module, Settling):
                module.settle(collective)

    def answer(self, batch: Batch, ctx: Ctx) -> Outputs:
        """Return the outputs that ``Task.decode`` reads; generative models override this."""
        return self(batch, ctx)


def _clips(value: Tensor, frames: int) -> Tensor:
    """``[b·T, 1, N, C]`` → ``[b, T, N, C]``."""
    return value.squeeze(1).unflatten(0, (-1, frames))
