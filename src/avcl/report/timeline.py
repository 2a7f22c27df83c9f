"""Time lines of one clip: where the bars of truth and prediction lie over the seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from avcl_core.evaluation.examples import Timeline, TimelineRow

WIDTH = 220
"""Width of a time line in units of its drawing, for any number of seconds."""
_MOST_TICKS = 6


@dataclass(frozen=True)
class Bar:
    """One stretch of seconds; ``kind``: ``truth``, or what a prediction makes of it: ``hit``, ``extra``, ``missed``."""

    kind: str
    x: float
    width: float


@dataclass(frozen=True)
class Line:
    """One label: its bars, and the same in words."""

    label: str
    bars: tuple[Bar, ...]
    words: str


@dataclass(frozen=True)
class Clip:
    """One clip: its lines over a shared axis; ``ticks``: (x, second)."""

    width: ClassVar[float] = WIDTH
    title: str
    lines: tuple[Line, ...]
    ticks: tuple[tuple[float, int], ...]


def clip(example: Timeline) -> Clip:
    """Return the drawing of one example; one without rows has no axis."""
    seconds = len(example.rows[0].truth) if example.rows else 0
    lines = tuple(_line(row, seconds) for row in example.rows)
    return Clip(example.title, lines, tuple((_at(second, seconds), second) for second in _ticks(seconds)))


def stretches(values: Sequence[int]) -> list[tuple[int, int]]:
    """Return the maximal stretches [first, end) of ones."""
    edges = [0, *(int(value) for value in values), 0]
    changes = [at for at in range(len(edges) - 1) if edges[at] != edges[at + 1]]
    return list(zip(changes[::2], changes[1::2], strict=True))


def _line(row: TimelineRow, seconds: int) -> Line:
    pairs = list(zip(row.truth, row.predicted, strict=True))
    kinds = {
        "truth": row.truth,
        "hit": [int(true and found) for true, found in pairs],
        "extra": [int(found and not true) for true, found in pairs],
        "missed": [int(true and not found) for true, found in pairs],
    }
    bars = [
        Bar(kind, _at(first, seconds), _at(end - first, seconds))
        for kind, values in kinds.items()
        for first, end in stretches(values)
    ]
    return Line(row.label, tuple(bars), f"truth {_words(row.truth)}; predicted {_words(row.predicted)}")


def _words(values: Sequence[int]) -> str:
    return ", ".join(f"{first}–{end} s" for first, end in stretches(values)) or "never"


def _at(second: int, seconds: int) -> float:
    return round(WIDTH * second / seconds, 2)


def _ticks(seconds: int) -> list[int]:
    step = next((step for step in (1, 2, 5, 10, 20, 30, 60) if seconds <= step * (_MOST_TICKS - 1)), seconds)
    return list(range(0, seconds + 1, step)) if seconds else []
