"""Experience replay (Chaudhry et al. 2019): every step also learns from a few remembered samples of past experiences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from avcl_core.batch import Batch, Outputs
from avcl_core.config.options import Options
from avcl_core.methods.base import Data, Method, Update
from avcl_core.models.base import Model
from avcl_core.replay.memory import Exemplar, Memory
from avcl_core.stream import Experience
from avcl_core.task import Task
from avcl_core.walk import Ctx


class ReplayOptions(Options):
    """Configuration of :class:`ExperienceReplay`.

    Attributes:
        memory: capacity in samples, shared equally by the experiences seen so far.
        replay_batch: samples replayed beside each batch.
    """

    memory: PositiveInt = 64
    replay_batch: PositiveInt = 8


class ExperienceReplay(Method):
    """Experience replay: the current batch's loss plus the mean loss of the replayed samples, all heads learning.

    A task whose loss is over the whole batch (a correlation) is replayed with its negative log-likelihood per sample: the
    few replayed samples of one experience define no correlation.
    """

    Config = ReplayOptions

    def __init__(self, model: Model, tasks: Mapping[str, Task], options: ReplayOptions, seed: int) -> None:
        super().__init__(model, tasks, options, seed)
        self.replay_batch = options.replay_batch
        self.memory = Memory(options.memory, seed)

    def active(self, experience: Experience) -> tuple[str, ...]:
        """Return the current owners and every head, since past heads must follow the shared features."""
        return (*super().active(experience), "head:*")

    def recall(self, batch_size: int, generator: torch.Generator) -> Sequence[Exemplar]:
        """Draw the exemplars of one step from the memory."""
        return self.memory.draw(self.replay_batch, generator)

    def step(self, current: Batch, replayed: Sequence[Batch]) -> Iterator[Update]:
        """Yield one update on the current loss and the replayed losses, named ``<experience>:<part>``."""
        parts = self.losses(current)
        for batch in replayed:
            parts |= self.remembered(batch, f"{batch.experience}:")
        yield Update(parts)

    def remembered(self, batch: Batch, prefix: str) -> dict[str, Tensor]:
        """Return the loss parts of a replayed batch."""
        ctx = self.context(batch, training=True)
        return self.relearnt(self.model(batch, ctx), batch, ctx, prefix)

    def relearnt(self, outputs: Outputs, batch: Batch, ctx: Ctx, prefix: str) -> dict[str, Tensor]:
        """Return the loss parts of a replayed batch's outputs at its targets."""
        task = self.tasks[batch.task]
        if not task.coupled:
            return self.objective(outputs, batch, ctx, prefix)
        parts = {"nll": task.nll(outputs, batch.targets).mean(), **ctx.aux}
        return {prefix + name: value * batch.row_share for name, value in parts.items()}

    def after(self, experience: Experience, data: Data) -> None:
        """Remember samples of the finished experience."""
        self.memory.add(experience.name, data.keys("train"))

    def state(self) -> dict[str, Any]:
        """Return the memory."""
        return {"memory": self.memory.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the memory."""
        self.memory.load(state["memory"])
