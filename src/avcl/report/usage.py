"""How experts were used, for a page: statistics of each test set after the last row, as tables, and what figures need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.colors import LinearSegmentedColormap, to_hex

from avcl.report.figures import readable_on
from avcl_core.evaluation.summary import Summary
from avcl_core.evaluation.table import DASH
from avcl_core.evaluation.usage import place_of, tower_of
from avcl_core.evaluation.usage_file import TestUsage, Told, read_usage, usage_file

WEIGHT = LinearSegmentedColormap.from_list("weight", ["#a33600", "#f2c9a8", "#ffffff", "#9dc3e2", "#0b3c6b"], N=257)
_PAGE_ORDER = ("visual", "audio")
EVALUATION = "evaluation"
"""The one row of an evaluation's statistics; those of a run under corruptions have a row per corruption."""


@dataclass(frozen=True)
class Shade:
    """A number in a table cell with the colour behind it."""

    text: str
    back: str
    ink: str


@dataclass(frozen=True)
class Line:
    """A row of a table of totals: what it is about, and per expert the mean weight and the share of first choices."""

    name: str
    tower: str
    samples: int
    sites: int
    weights: tuple[Shade, ...]
    first: tuple[str, ...]
    evenness: str
    residual: str


@dataclass(frozen=True)
class SiteLine:
    """A row of the table of sites; ``others``: further numbers as text."""

    name: str
    weights: tuple[Shade, ...]
    first: tuple[str, ...]
    entropy: str
    evenness: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class UsedIn:
    """One test set.

    Attributes:
        test: its name; ``after``: the row whose model was tested.
        usage: the statistics.
        lines: totals by tower; ``groups``: the same for each group of samples.
        sites: the sites one by one.
    """

    test: str
    after: str
    usage: TestUsage
    lines: tuple[Line, ...]
    groups: tuple[Line, ...]
    sites: tuple[SiteLine, ...]


@dataclass(frozen=True)
class UnderCorruptions:
    """Totals of one test set under each corruption; ``evaluation``: the folder that has them."""

    evaluation: str
    test: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class UsageView:
    """What a page shows.

    Attributes:
        tests: in stream order.
        experts: names of the experts, of the model with most of them.
        towers: in the order of the panels.
        evaluations: totals of what was evaluated apart from the run: another split, a missing modality.
        corruptions: totals under corruptions.
    """

    tests: tuple[UsedIn, ...]
    experts: tuple[str, ...]
    towers: tuple[str, ...]
    evaluations: tuple[Line, ...]
    corruptions: tuple[UnderCorruptions, ...]


def run_usage(folder: Path, summary: Summary) -> UsageView | None:
    """Return what a run folder tells about its experts; ``None`` for a model without any.

    Raises:
        IntegrityError: a file of statistics is damaged.
    """
    entries = read_usage(usage_file(folder))
    tests = []
    for test in summary.tests:
        rows = [row for row in summary.rows if test.name in entries.get(row, {})]
        if rows and entries[rows[-1]][test.name].total:
            tests.append((test.name, rows[-1], entries[rows[-1]][test.name]))
    if not tests:
        return None
    towers = _ordered(tower for _, _, usage in tests for tower in usage.total)
    apart, corrupted, own = [], {}, [usage for _, _, usage in tests]
    for path in sorted(folder.glob("evaluations/*/results/expert_usage.json")):
        name = path.parts[-3]
        for row, found in read_usage(path).items():
            for test, usage in found.items():
                if row != EVALUATION:
                    lines = _lines(row, usage.total, usage.samples, towers)
                    corrupted.setdefault((name, test), []).extend(lines)
                elif usage not in own:  # the same model on the same samples again
                    apart += _lines(f"{name}: {test}", usage.total, usage.samples, towers)
    return UsageView(
        tests=tuple(_used(test, after, usage, towers) for test, after, usage in tests),
        experts=max((_experts(told) for _, _, usage in tests for told in usage.total.values()), key=len),
        towers=towers,
        evaluations=tuple(apart),
        corruptions=tuple(UnderCorruptions(name, test, tuple(lines)) for (name, test), lines in corrupted.items()),
    )


def relative(weight: float, experts: int) -> float:
    """Return where a weight lies between never (0), its even share 1/E (0.5) and always (1)."""
    even = 1 / experts
    if experts == 1:
        return 0.5
    return 0.5 * weight / even if weight <= even else 0.5 + 0.5 * (weight - even) / (1 - even)


def colour(weight: float, experts: int) -> str:
    """Return the colour of a weight, white at its even share."""
    return to_hex(WEIGHT(relative(weight, experts)))


def places(usage: TestUsage, tower: str) -> list[str]:
    """Return where in depth the sites of a tower stand, in the order of the walk."""
    return [place_of(site) for site, told in usage.sites.items() if tower_of(site) == tower and told.gates]


def places_of(usage: TestUsage, tower: str, name: str) -> list[str]:
    """Return where in depth the sites of a tower stand that tell a number, with weights of experts or without."""
    return [
        place_of(site)
        for site, told in usage.sites.items()
        if tower_of(site) == tower and told.number(name) is not None
    ]


def told_at(usage: TestUsage, tower: str, place: str) -> Told | None:
    """Return what the site at a place of a tower told."""
    return usage.sites.get(f"{tower} {place}".rstrip())


def _ordered(towers: Iterable[str]) -> tuple[str, ...]:
    known = dict.fromkeys(towers)
    return (*(name for name in _PAGE_ORDER if name in known), *(name for name in known if name not in _PAGE_ORDER))


def _experts(told: Told) -> tuple[str, ...]:
    return (
        tuple(told.experts) if len(told.experts) == len(told.gates) else tuple(str(i) for i in range(len(told.gates)))
    )


def _used(test: str, after: str, usage: TestUsage, towers: Sequence[str]) -> UsedIn:
    return UsedIn(
        test,
        after,
        usage,
        tuple(_lines(test, usage.total, usage.samples, towers)),
        tuple(line for name, g in usage.groups.items() for line in _lines(name, g.total, g.samples, towers)),
        tuple(_site(name, told) for name, told in usage.sites.items()),
    )


def _lines(name: str, total: Mapping[str, Told], samples: int, towers: Sequence[str]) -> list[Line]:
    return [
        Line(
            name,
            tower,
            samples,
            int((told.model_extra or {}).get("sites", 0)),
            _weights(told),
            _first(told),
            _share(told.evenness),
            _number(told.number("residual")),
        )
        for tower in towers
        if (told := total.get(tower)) is not None
    ]


def _site(name: str, told: Told) -> SiteLine:
    numbers = [f"{key} {_number(told.number(key))}" for key in told.model_extra or {}]
    lists = [f"{key} {', '.join(map(_number, values))}" for key, values in told.constants.items() if key != "experts"]
    return SiteLine(
        name, _weights(told), _first(told), _number(told.entropy), _share(told.evenness), (*numbers, *lists)
    )


def _weights(told: Told) -> tuple[Shade, ...]:
    backs = [colour(weight, len(told.gates)) for weight in told.gates]
    return tuple(Shade(f"{w:.3f}", back, readable_on(back)) for w, back in zip(told.gates, backs, strict=True))


def _first(told: Told) -> tuple[str, ...]:
    return tuple(f"{100 * count / told.rows:.0f} %" if told.rows else DASH for count in told.first)


def _share(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def _number(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return DASH if value is None else str(value)
    return f"{value:#.3g}".rstrip(".").replace("-", "−")
