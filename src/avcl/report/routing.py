"""The routing of hidden experiences, for a page: what choosing costs, who got which samples, and what experts are worth alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.colors import to_hex

from avcl.report.figures import BLUES, above_control, readable_on
from avcl_core.evaluation.ablation_names import EXPERIENCE_GIVEN, WITHOUT_EXPERTS
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.routing_markdown import percent
from avcl_core.evaluation.routing_summary import Compared, RoutedTest, RoutingSummary, summarise_routing
from avcl_core.evaluation.routing_words import say_alone, say_experts, say_gaps, say_results
from avcl_core.evaluation.summary import Summary, TestSummary
from avcl_core.evaluation.table import DASH, format_score
from avcl_core.evaluation.usage_file import Gaps, Part, read_usage, usage_file


@dataclass(frozen=True)
class Cell:
    """A number with the colour behind it; ``own``: the row and the column belong to one experience; ``small``: a second number."""

    text: str
    back: str = "#ffffff"
    ink: str = "inherit"
    own: bool = False
    small: str = ""


@dataclass(frozen=True)
class Matrix:
    """A table: ``corner`` names its rows; ``rule``: a last row apart from the others."""

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    rule: tuple[str, tuple[Cell, ...]] | None = None


@dataclass(frozen=True)
class RoutingView:
    """What a page shows; tables that a run has no numbers for are missing.

    Attributes:
        after: results as the model chose, results with the experience given, and routing accuracy.
        definitions: over both results; ``reasons``: why values are missing. ``ideal`` gives their digits.
        shares: test sets × experts; ``alone``: experts × test sets.
    """

    summary: RoutingSummary
    after: tuple[Matrix, ...]
    definitions: tuple[Compared, ...]
    reasons: tuple[str, ...]
    ideal: float
    shares: Matrix | None
    alone: Matrix | None
    results_said: str
    shares_said: str
    alone_said: str
    gaps_said: str


def run_routing(folder: Path, record: RunRecord, summary: Summary) -> RoutingView | None:
    """Return what a run folder tells about routing; ``None`` where the experience is told or the model looks for none.

    Raises:
        IntegrityError: the file of statistics is damaged.
    """
    found = summarise_routing(record, read_usage(usage_file(folder)))
    if found is None:
        return None
    judged = {test.name: test for test in summary.tests}
    missing = (entry.reason for d in found.definitions for entry in (d.routed, d.given) if entry.value is None)
    return RoutingView(
        summary=found,
        after=_after(found, judged),
        definitions=found.definitions,
        reasons=tuple(dict.fromkeys(missing)),
        ideal=max((abs(test.ideal) for test in found.tests), default=100.0),
        shares=_shares(found),
        alone=_alone(found, judged),
        results_said=say_results(found),
        shares_said=say_experts(found),
        alone_said=say_alone(found),
        gaps_said=say_gaps(found),
    )


def _after(found: RoutingSummary, judged: dict[str, TestSummary]) -> tuple[Matrix, ...]:
    columns = tuple(test.name for test in found.tests)

    def rows(cell) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
        return tuple((row, tuple(cell(test, row) for test in found.tests)) for row in found.rows)

    def score(values: str):
        def cell(test: RoutedTest, row: str) -> Cell:
            return _score(getattr(test, values).get(row), judged[test.name], row == test.experience)

        return cell

    def accuracy(test: RoutedTest, row: str) -> Cell:
        value = test.accuracy.get(row)
        shade = _shaded(percent(value), None if value is None else value / 100)
        return Cell(shade.text, shade.back, shade.ink, row == test.experience)

    made = [Matrix("As routed", "After", columns, rows(score("routed")))]
    if any(test.given for test in found.tests):
        made.append(Matrix(EXPERIENCE_GIVEN.capitalize(), "After", columns, rows(score("given"))))
    if any(test.accuracy for test in found.tests):
        made.append(Matrix("Routing accuracy, %", "After", columns, rows(accuracy)))
    return tuple(made)


def _shares(found: RoutingSummary) -> Matrix | None:
    """Test sets × experts, and then right and wrong choices."""
    rows = []
    for test in found.tests:
        table = test.last
        if table is None:
            continue
        total = sum(part.samples for part in table.experts.values())
        cells = [_part(table.experts.get(name), total, test, name == table.own) for name in found.experts]
        cells += [_part(part, total, test, False, shaded=False) for part in (table.right, table.wrong)]
        rows.append((test.name, tuple(cells)))
    columns = (*found.experts, "Right choices", "Wrong choices")
    return Matrix("", "Test set", columns, tuple(rows)) if rows else None


def _alone(found: RoutingSummary, judged: dict[str, TestSummary]) -> Matrix | None:
    """Experts × test sets, and the frozen model below them."""
    if not found.alone:
        return None
    rows = tuple(
        (
            name,
            tuple(_score(test.alone.get(name), judged[test.name], name == test.own) for test in found.tests),
        )
        for name in found.alone
    )
    base = tuple(_score(test.base, judged[test.name], False) for test in found.tests)
    rule = (WITHOUT_EXPERTS, base) if found.known_base else None
    return Matrix("", "Expert for all", tuple(test.name for test in found.tests), rows, rule)


def _part(part: Part | None, total: int, test: RoutedTest, own: bool, shaded: bool = True) -> Cell:
    if part is None or not total:
        return Cell(DASH)
    share = part.samples / total
    shade = _shaded(percent(100 * share), share if shaded else None)
    return Cell(shade.text, shade.back, shade.ink, own, "" if part.score is None else _plain(part.score, test.ideal))


def _score(value: float | None, test: TestSummary, own: bool) -> Cell:
    """A score from the best trivial predictor (pale) to the ideal (dark), as in the result matrix."""
    shade = _shaded(_plain(value, test.ideal), None if value is None else above_control(value, test))
    return Cell(shade.text, shade.back, shade.ink, own)


def _shaded(text: str, share: float | None) -> Cell:
    if share is None or not math.isfinite(share):
        return Cell(text)
    back = to_hex(BLUES(share))
    return Cell(text, back, readable_on(back))


def _plain(value: float | None, ideal: float) -> str:
    return format_score(value, ideal).replace("-", "−")


def gaps_of(view: RoutingView) -> dict[str, Gaps]:
    """Return test set → histogram of gaps, after the last row."""
    tables = ((test.name, test.last) for test in view.summary.tests)
    return {name: table.gap for name, table in tables if table is not None and table.gap is not None}
