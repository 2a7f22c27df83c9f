"""Where samples of hidden experiences are sent: a slot each, with the scores it was chosen by, or as an evaluation demands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

BASE = "base"
"""Slot of no expert: the frozen model alone answers."""
GIVEN = "given"
"""Instead of a slot: each sample's own, as if its experience were told."""


@dataclass(frozen=True)
class Routes:
    """The slots of a batch and what they were chosen by.

    Attributes:
        slots: one per sample.
        candidates: the slots that were compared.
        scores: what was compared (``all`` for what decided) → ``[b, K]`` over the candidates, more being more alike; NaN where a
            sample has nothing of it. Empty where a model tells none.
    """

    slots: tuple[str, ...]
    candidates: tuple[str, ...]
    scores: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Routing:
    """How an evaluation sends samples of hidden experiences.

    Attributes:
        to: a slot that takes all of them, :data:`BASE`, or :data:`GIVEN`; ``None``: the model chooses.
        reads: what the model compares, where not all that it is configured to.
    """

    to: str | None = None
    reads: tuple[str, ...] = ()


CHOSEN = Routing()
"""As the model chooses."""
