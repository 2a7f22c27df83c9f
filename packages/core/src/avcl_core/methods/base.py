"""A method is the procedure: sessions, losses, updates and the passes before and after an experience; it knows no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from avcl_core.batch import Batch, Outputs
from avcl_core.collective import Collective
from avcl_core.config.options import Options
from avcl_core.models.base import Model
from avcl_core.ownership import evaluation_mode, without_gradients
from avcl_core.replay.memory import Exemplar
from avcl_core.routing import Routes
from avcl_core.stream import Experience, Session, Stream
from avcl_core.task import Task
from avcl_core.walk import Ctx, Place

if TYPE_CHECKING:
    from avcl_core.trace import Trace


@dataclass(frozen=True)
class Update:
    """One backward pass and one optimiser step.

    Attributes:
        parts: named scalar loss terms; their sum is minimised and each is logged.
        owners: patterns of the owners whose tensors this update may change.
        optimizer: which of the method's optimisers steps.
    """

    parts: Mapping[str, Tensor]
    owners: tuple[str, ...] = ("*",)
    optimizer: str = "main"

    @property
    def loss(self) -> Tensor:
        """The sum of the parts."""
        return torch.stack(list(self.parts.values())).sum()


@dataclass(frozen=True)
class Group:
    """One optimiser group: owner patterns, the factor on the learning rate, and the weight decay (``None``: the default)."""

    owners: tuple[str, ...] = ("*",)
    rate: float = 1.0
    decay: float | None = None


class Data(Protocol):
    """What a hook sees of an experience: its samples in key order, deterministic and without augmentation."""

    def keys(self, split: str = "train") -> tuple[str, ...]:
        """Return the keys of a split."""
        ...

    def batches(
        self, split: str = "train", keys: Sequence[str] | None = None, size: int | None = None
    ) -> Iterator[Batch]:
        """Yield batches of a split, or of the given keys, in order."""
        ...


class Method:
    """The plain procedure, and the base of all others: minimise the task's loss on the current experience.

    Args:
        model: the network.
        tasks: task name → task, of the whole stream.
        options: the method's own configuration.
        seed: the run's seed, a coordinate of every draw.
    """

    Config: ClassVar[type[Options]] = Options

    def __init__(self, model: Model, tasks: Mapping[str, Task], options: Options, seed: int) -> None:
        self.model, self.tasks, self.options, self.seed = model, dict(tasks), options, seed
        self.collective = Collective()

    @classmethod
    def needs(cls, options: Options) -> tuple[str, ...]:
        """Return which ``stream.task_id`` the method can work with under these options; by default either."""
        return ("given", "hidden")

    # ------------------------------------------------------------------ what is learnt when
    @classmethod
    def sessions(cls, stream: Stream) -> tuple[Session, ...]:
        """Return the training sessions; by default one per experience, each followed by all tests seen so far."""
        return tuple(
            Session(e.index, (e,), stream.tests_of(stream.experiences[: e.index + 1])) for e in stream.experiences
        )

    def active(self, experience: Experience) -> tuple[str, ...]:
        """Return the owner patterns that learn during ``experience``, by default the model's; everything else is frozen."""
        return self.model.active(experience)

    def optimizers(self, session: Session) -> dict[str, tuple[Group, ...]]:
        """Return optimiser name → groups; rebuilt for every session."""
        return {"main": (Group(),)}

    # ------------------------------------------------------------------ passes around a session
    def before(self, experience: Experience, data: Data) -> None:
        """Pass over the data before training: initial values, prototypes."""

    def after(self, experience: Experience, data: Data) -> None:
        """Pass over the data after training: memories, Fisher information, anchors, snapshots."""

    # ------------------------------------------------------------------ training
    def recall(self, batch_size: int, generator: torch.Generator) -> Sequence[Exemplar]:
        """Return the exemplars to be replayed beside the current batch; the trainer loads and shards them."""
        return ()

    def step(self, current: Batch, replayed: Sequence[Batch]) -> Iterator[Update]:
        """Yield the updates of one step; by default one, on the loss of the current and of each replayed batch.

        Args:
            current: samples of the current experience.
            replayed: recalled exemplars, one batch per experience; under a coupled loss every rank gets all of them
                (``Batch.whole``), so gather current outputs before joining them with replayed ones.
        """
        yield Update(self.losses(current))

    def losses(self, batch: Batch, prefix: str = "") -> dict[str, Tensor]:
        """Return the loss parts of one batch: the task's, and what the model put into ``ctx.aux``."""
        ctx = self.context(batch, training=True)
        return self.objective(self.model(batch, ctx), batch, ctx, prefix)

    def objective(self, outputs: Outputs, batch: Batch, ctx: Ctx, prefix: str = "") -> dict[str, Tensor]:
        """Return the named loss parts of outputs, weighted by the batch's share of the global step.

        The task's loss is a mean over its units, what the model adds in ``ctx.aux`` one over samples. The rows of a coupled loss are
        gathered from all ranks first, where each holds a part of them.
        """
        task, targets = self.tasks[batch.task], batch.targets
        if task.coupled and not batch.whole:
            outputs, targets = self.collective.gather(outputs), self.collective.gather(targets)
        parts = {name: value * batch.share for name, value in task.loss(outputs, targets).items()}
        parts.update((name, value * batch.row_share) for name, value in ctx.aux.items())
        return {prefix + name: value for name, value in parts.items()}

    def after_backward(self, update: Update) -> None:
        """Hook between backward and the optimiser step: gradient projections."""

    def context(self, batch: Batch, training: bool, slots: tuple[str, ...] | None = None) -> Ctx:
        """Return a fresh context with these slots, by default routed by the model."""
        gather = dict if batch.whole else self.collective.gather
        return Ctx(slots or self.model.route(batch), training=training, gather=gather)

    def routes(self, batch: Batch, reads: Sequence[str] = ()) -> Routes | None:
        """Return where the model sends a batch without targets (:meth:`Model.routes`)."""
        with without_gradients(self.model), evaluation_mode(self.model):
            return self.model.routes(batch, reads)

    # ------------------------------------------------------------------ prediction and state
    def predict(
        self,
        batch: Batch,
        trace: Trace | None = None,
        without: frozenset[Place] = frozenset(),
        slots: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Return decoded predictions for a batch without targets.

        Args:
            trace: hears what the model's modules tell.
            without: places at which no module acts, for an ablation (:meth:`Model.removable`).
            slots: of the samples, where not the model routes them.
        """
        with without_gradients(self.model), evaluation_mode(self.model):
            routed = None if slots is None else tuple(slots)
            ctx = replace(self.context(batch, training=False, slots=routed), trace=trace, without=without)
            return self.tasks[batch.task].decode(self.model.answer(batch, ctx))

    def state(self) -> dict[str, Any]:
        """Return what must survive a stop beside the owned tensors: nested dictionaries and lists of tensors and JSON."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
