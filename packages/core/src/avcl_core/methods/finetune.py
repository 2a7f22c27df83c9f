"""Sequential fine-tuning: learn each experience in turn with the task's loss alone; the lower reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.methods.base import Data, Method, Update
from avcl_core.methods.sharing import SHARING, OldTensors, SharingOptions, with_tensors
from avcl_core.models.base import Model
from avcl_core.stream import Experience
from avcl_core.task import Task
from avcl_core.walk import Place

if TYPE_CHECKING:
    from avcl_core.trace import Trace


class Finetune(Method):
    """Sequential fine-tuning. What happens to shared tensors is a policy of :mod:`avcl_core.methods.sharing`.

    By default (``shared: latest``) nothing is done against forgetting.
    """

    Config = SharingOptions

    def __init__(self, model: Model, tasks: Mapping[str, Task], options: SharingOptions, seed: int) -> None:
        super().__init__(model, tasks, options, seed)
        self.sharing = SHARING[options.shared](model, options)

    @classmethod
    def needs(cls, options: Options) -> tuple[str, ...]:
        """A policy that predicts old tasks with other tensors must know the task."""
        known = isinstance(options, SharingOptions) and issubclass(SHARING[options.shared], OldTensors)
        return ("given",) if known else super().needs(options)

    def active(self, experience: Experience) -> tuple[str, ...]:
        """Return the owners that the policy lets learn."""
        return self.sharing.active(super().active(experience), experience)

    def before(self, experience: Experience, data: Data) -> None:
        """Tell the policy that an experience begins."""
        self.sharing.begin(experience)

    def step(self, current: Batch, replayed: Sequence[Batch]) -> Iterator[Update]:
        """Yield one update on the task's loss and what the policy adds."""
        yield Update({**self.losses(current), **self.sharing.parts(current)})

    def after(self, experience: Experience, data: Data) -> None:
        """Tell the policy that an experience is learnt."""
        self.sharing.finish(experience)

    def predict(
        self,
        batch: Batch,
        trace: Trace | None = None,
        without: frozenset[Place] = frozenset(),
        slots: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Return decoded predictions, made with the tensors that the policy has for the batch's experience."""
        return with_tensors(
            self.model,
            self.sharing.tensors(batch.experience),
            lambda: super(Finetune, self).predict(batch, trace, without, slots),
        )

    def state(self) -> dict[str, Any]:
        """Return the policy's state."""
        return self.sharing.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the policy's state."""
        self.sharing.load(state)
