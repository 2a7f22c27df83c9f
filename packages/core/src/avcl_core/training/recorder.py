"""Where a run's records go; the run folder implements it, and tests may."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from avcl_core.evaluation.evaluator import Evaluation


class Recorder(Protocol):
    """Where a run's records go; the run folder implements it."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Append a training record."""
        ...

    def result(self, record: Mapping[str, Any], evaluation: Evaluation, pack: Callable[[Any], Any]) -> None:
        """Append an evaluation and store its predictions, and how experts were used where the model tells it."""
        ...

    def event(self, kind: str, **details: Any) -> None:
        """Append an event with its time."""
        ...

    def ownership(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the ownership table."""
        ...

    def offsets(self) -> dict[str, int]:
        """Make all records durable and return how long each file is."""
        ...

    def rewind(self, offsets: Mapping[str, int]) -> None:
        """Cut the records back to ``offsets``."""
        ...
