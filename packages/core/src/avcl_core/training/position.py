"""Where a run stands, and the best epoch of its session so far: what a commit must say so that a run can go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Phase = Literal["before", "train", "after", "evaluate", "done"]


@dataclass(frozen=True)
class Position:
    """Where a run stands: everything before it is done and committed.

    Attributes:
        session: number of the session.
        phase: what is being done in it.
        index: experience within ``before`` and ``after``, test set within ``evaluate``.
        epoch, step: within ``train``.
    """

    session: int = 0
    phase: Phase = "before"
    index: int = 0
    epoch: int = 0
    step: int = 0


@dataclass
class Best:
    """The best epoch of a session so far."""

    skill: float = float("-inf")
    epoch: int = -1
    state: dict[str, Tensor] = field(default_factory=dict)

    def exhausted(self, epoch: int, patience: int | None) -> bool:
        """Whether ``patience`` epochs before ``epoch`` have passed without a better one; follows from the committed state."""
        return patience is not None and epoch > 0 and epoch - 1 - self.epoch >= patience
