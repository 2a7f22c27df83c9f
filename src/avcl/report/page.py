"""Pages: one self-contained HTML file with inline style and figures, which asks for nothing from the network."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from avcl.report.comparison import Group, StreamComparison, compare
from avcl.report.comparison_figures import comparison_figures
from avcl.report.examples import run_examples
from avcl.report.features import run_features
from avcl.report.figures import above_control, control_of, run_figures
from avcl.report.order_figures import order_figure
from avcl.report.robustness import run_robustness
from avcl.report.routing import run_routing
from avcl.report.routing_figures import routing_figures
from avcl.report.style import inline
from avcl.report.usage import run_usage
from avcl.report.usage_figures import usage_figures
from avcl_core.evaluation.ablation_names import slot_of
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.summary import Summary, TestSummary, summarise
from avcl_core.evaluation.table import PLAIN, about_ablations, format_score, signed

if TYPE_CHECKING:
    from avcl.sweep_stream import StreamTables


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("avcl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["score"] = _score
    environment.filters["metric"] = _metric
    environment.filters["signed"] = signed
    return environment


def _score(value: float | None, ideal: float) -> str:
    return format_score(value, ideal).replace("-", "−")


def _metric(value: float, digits: int) -> str:
    return "undefined" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def render_run(folder: Path, out: Path | None = None) -> Path:
    """Write the report of one run, and its figures to ``results/figures``."""
    record = RunRecord.load(folder)
    summary = summarise(record)
    figures = run_figures(record, summary)
    examples = run_examples(folder, summary, record.samples)
    usage = run_usage(folder, summary)
    if usage is not None:
        figures |= usage_figures(usage)
    routing = run_routing(folder, record, summary)
    if routing is not None:
        figures |= routing_figures(routing)
    robustness = run_robustness(folder)
    if robustness is not None and robustness.figure is not None:
        figures["robustness"] = robustness.figure
    features = run_features(folder, summary)
    figures |= {found.name: found.figure for found in features}
    target = folder / "results" / "figures"
    target.mkdir(parents=True, exist_ok=True)
    for name, svg in figures.items():
        (target / f"{name}.svg").write_bytes(svg.encode())
    text = (
        _environment()
        .get_template("run.html.j2")
        .render(
            record=record,
            s=summary,
            figures={
                name: Markup(inline(svg, f"{name}: {summary.stream}, {summary.method}"))
                for name, svg in figures.items()
            },
            examples=examples,
            features=features,
            robustness=robustness,
            routing=routing,
            usage=usage,
            bars={test.name: _bar(test) for test in summary.tests},
            blocks=[_block(summary, test) for test in summary.tests],
            reasons=list(dict.fromkeys(d.reason for d in summary.definitions if d.value is None)),
            missing=_missing(summary),
            unreferenced=_unreferenced(summary),
            plain=PLAIN,
            ablations=about_ablations([name for test in summary.tests for name in test.ablations]),
            totals=_totals(summary.parameters),
        )
    )
    return _write(out or folder / "report.html", text)


def render_comparison(folders: Sequence[Path], out: Path | None = None, plan: Sequence[StreamTables] = ()) -> Path:
    """Write the comparison of several runs, by default to the folder that holds them all.

    Args:
        plan: tables of the sweep plan whose runs these are, shown first.
    """
    comparison = compare(folders)
    streams = []
    for stream in comparison.streams:
        figures = comparison_figures(stream)
        made = {name: Markup(inline(svg, f"{name}: {stream.name}")) for name, svg in figures.items()}
        streams.append({"c": stream, "figures": made, "any_drop": _any(stream)})
    text = (
        _environment()
        .get_template("comparison.html.j2")
        .render(comparison=comparison, streams=streams, plan=[_planned(one) for one in plan])
    )
    shared = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    return _write(out or shared / "report.html", text)


def _planned(stream: StreamTables) -> dict[str, Any]:
    """The tables of one configuration of a plan, and what its orders change."""
    figure = None
    if len(stream.orders) > 1:
        svg = order_figure(stream.cells, list(stream.orders), stream.tests, stream.controls)
        figure = Markup(inline(svg, f"scores by order: {stream.config}"))
    return {"c": stream, "figure": figure}


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def _bar(test: TestSummary) -> dict[str, Any] | None:
    """Where the learnt and the final score lie between the best trivial predictor and the ideal, in percent."""
    if test.final.value is None:
        return None
    final = above_control(test.final.value, test)
    learnt = None if test.learnt.value is None else above_control(test.learnt.value, test)
    if final is None:
        return None
    control = control_of(test)
    return {
        "final": f"{100 * final:.1f}",
        "learnt": None if learnt is None else f"{100 * learnt:.1f}",
        "beaten": control is not None and test.final.value > control[1],
    }


def _block(summary: Summary, test: TestSummary) -> dict[str, Any]:
    """All metrics of one test set: rows of the matrix across, metrics down, ablations and controls at the end."""
    cells = [(row, cell) for row in summary.rows if (cell := summary.matrix.cell(row, test.name)) is not None]
    ablations = {n: v for n, v in summary.ablations.get(test.name, {}).items() if slot_of(n) is None}
    controls = summary.controls.get(test.name, {})
    names = list(dict.fromkeys(name for _, cell in cells for name in cell.metrics))
    rows = []
    for name in names:
        own = [cell.metrics.get(name) for _, cell in cells]
        others = [metrics.get(name) for metrics in (*ablations.values(), *controls.values())]
        # The scale of a secondary metric is not declared: two decimals suit percents, four suit fractions.
        finite = [abs(value) for value in (*own, *others) if value is not None and math.isfinite(value)]
        rows.append((name, 2 if max(finite, default=0.0) > 1.5 else 4, own, others))
    return {"test": test, "after": [row for row, _ in cells], "others": [*ablations, *controls], "rows": rows}


def _missing(summary: Summary) -> list[str]:
    entries = (
        entry for test in summary.tests for entry in (test.learnt, test.final, test.best, test.drop, test.retention)
    )
    return list(dict.fromkeys(entry.reason for entry in entries if entry.value is None))


def _unreferenced(summary: Summary) -> list[str]:
    """Why a run has no gap to a reference."""
    entries = (
        entry
        for against in summary.references.values()
        for entry in (*(gap.ratio for gap in against.gaps), against.difference, against.ratio)
    )
    return list(dict.fromkeys(entry.reason for entry in entries if entry.value is None))


def _totals(parameters: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for counts in parameters.values():
        for kind, count in counts.items():
            totals[kind] = totals.get(kind, 0) + count
    return totals


def _any(stream: StreamComparison) -> bool:
    def kept(group: Group) -> bool:
        return any(entry.statistic.values for entry in (*group.drop, *group.retention))

    return any(kept(group) for group in stream.groups)
