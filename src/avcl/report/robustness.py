"""What is left of each score when a modality is missing or corrupted, for the page of a run: a table and a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from avcl.report.figures import short
from avcl.report.style import INK, MUTED, PALETTE, figure_style, panels, to_svg
from avcl_core.data.corruptions import CLEAN
from avcl_core.evaluation.robustness import (
    FILE,
    Finished,
    Robustness,
    TestEntry,
    read_robustness,
    signed,
    stored_note,
    unchanged_note,
)
from avcl_core.evaluation.table import DASH, format_score


@dataclass(frozen=True)
class Cell:
    """A score as the table prints it; ``beaten``: above every trivial predictor."""

    value: str
    change: str
    beaten: bool


@dataclass(frozen=True)
class Row:
    """One corruption: title, text form, and a cell per test set; ``weights``: one text per column of the second table."""

    title: str
    text: str
    cells: tuple[Cell, ...]
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Corrupted:
    """The section.

    Attributes:
        commit: the commit that was evaluated; ``when``: where in the stream it was made.
        last: whether that is the run's last commit.
        controls: trivial predictor → score per test set.
        columns: (test set, tower, kind of expert) of the second table, empty where no router told its weights.
        note: sentences on inputs that no corruption reaches, and on clean scores that are not what the run stored.
        figure: SVG document, or nothing where only clean samples were evaluated.
    """

    commit: str
    when: str
    last: bool
    tests: tuple[TestEntry, ...]
    rows: tuple[Row, ...]
    controls: dict[str, tuple[str, ...]]
    columns: tuple[tuple[str, str, str], ...]
    note: str
    figure: str | None


def run_robustness(folder: Path) -> Corrupted | None:
    """Return what a run folder has on missing and corrupted modalities; ``None`` where that was not evaluated.

    Raises:
        IntegrityError: the record is damaged.
    """
    record = read_robustness(folder / FILE)
    if record is None or record.find(CLEAN) is None:
        return None
    latest = folder / "checkpoints" / "LATEST"
    columns = tuple((s, t, k) for s, towers in record.weighed().items() for t, kinds in towers.items() for k in kinds)
    names = dict.fromkeys(name for test in record.tests for name in record.controls(test))
    return Corrupted(
        commit=record.commit,
        when=record.when,
        last=not latest.is_file() or latest.read_text(encoding="utf-8").strip() == record.commit,
        tests=tuple(record.tests),
        rows=tuple(_row(record, found, columns) for found in record.results),
        controls={
            name: tuple(_plain(record.controls(test).get(name), test.ideal) for test in record.tests) for name in names
        },
        columns=columns,
        note=" ".join(filter(None, (unchanged_note(record), stored_note(record)))),
        figure=_draw(record) if len(record.results) > 1 else None,
    )


def _row(record: Robustness, found: Finished, columns: tuple[tuple[str, str, str], ...]) -> Row:
    text, cells = found.corruption, []
    for test in record.tests:
        change = None if text == CLEAN else record.difference(text, test)
        value = _plain(record.value(text, test), test.ideal)
        cells.append(
            Cell(value, DASH if change is None else signed(change, test.ideal), record.beaten(text, test)),
        )
    weights = (found.scores[s].weights.get(t, {}).get(k) for s, t, k in columns)
    return Row(found.title, text, tuple(cells), tuple(DASH if w is None else f"{w:.3f}" for w in weights))


def _plain(value: float | None, ideal: float) -> str:
    return format_score(value, ideal).replace("-", "−")


def _draw(record: Robustness) -> str:
    """One panel per test set: from the clean score to the corrupted one, with the best trivial predictor beside them."""
    with figure_style():
        shown = [found for found in record.results if found.corruption != CLEAN]
        figure, all_axes = panels(len(record.tests), 0.9 + 0.27 * len(shown), width=_width(len(record.tests)), most=4)
        for index, (test, axes) in enumerate(zip(record.tests, all_axes, strict=True)):
            _panel(axes, record, test, shown, titled=index % 4 == 0)
        return to_svg(figure)


def _panel(axes: Axes, record: Robustness, test: TestEntry, shown: list[Finished], titled: bool) -> None:
    clean = record.value(CLEAN, test)
    controls = [value for value in record.controls(test).values() if math.isfinite(value)]
    for y, found in enumerate(shown):
        value = record.value(found.corruption, test)
        if math.isfinite(value) and math.isfinite(clean):
            axes.plot([clean, value], [y, y], color="#9dc3e2", linewidth=6, solid_capstyle="butt", zorder=2)
            face = PALETTE[0] if record.beaten(found.corruption, test) else "#ffffff"
            axes.plot([value], [y], "o", color=PALETTE[0], markerfacecolor=face, zorder=3)
    if math.isfinite(clean):
        axes.axvline(clean, color=INK, linewidth=1.2)
    if controls:
        axes.axvline(max(controls), color=MUTED, linewidth=1.2, linestyle=":")
    axes.set_title(short(test.name, 24))
    axes.set_xlabel(short(test.primary, 26))
    axes.set_yticks(range(len(shown)), [found.title if titled else "" for found in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.margins(x=0.08)


def _width(count: int) -> float:
    return min(11.4, 3.4 + 2.4 * min(count, 4))
