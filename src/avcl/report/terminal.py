"""Results as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.routing_summary import summarise_routing
from avcl_core.evaluation.routing_words import say_results
from avcl_core.evaluation.summary import summarise
from avcl_core.evaluation.table import DASH, about_ablations, format_score, signed

if TYPE_CHECKING:
    from avcl.report.comparison import Comparison


def _plain(text: str) -> Text:
    # Text, not str: names may contain what rich would read as markup.
    return Text(text)


def format_result_table(record: RunRecord) -> Table:
    """Return one run's test sets with metric, R[i,i], final result, drop and retention, and ablations and controls below each."""
    summary = summarise(record)
    table = Table(
        title=_plain(
            f"{summary.stream} · {summary.method} · {summary.model} · seed {summary.seed} · protocol {summary.protocol}"
        ),
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("test set: metric", overflow="fold")
    gaps = [f"− {name}" for name in summary.references]
    for column in ("R[i,i]", "final", "drop", "retention", *gaps):
        table.add_column(_plain(column), justify="right", no_wrap=True)
    for number, test in enumerate(summary.tests):
        cells = [format_score(entry.value, test.ideal) for entry in (test.learnt, test.final, test.drop)]
        cells.append(format_score(test.retention.value, 1.0))
        cells += [signed(a.gaps[number].difference.value, test.ideal) for a in summary.references.values()]
        table.add_row(*(_plain(cell) for cell in (f"{test.name}: {test.primary}", *cells)))
        shown = [*test.ablations.items(), *test.controls.items()]
        shown += [(f"oracle: {name}", value) for name, value in test.bounds.items()]
        for name, value in shown:
            score = format_score(value, test.ideal)
            table.add_row(_plain(f"  {name}"), "", _plain(score), "", "", *("" for _ in gaps), style="dim")
    defined = [f"{d.name} {format_score(d.value, 100.0)}" for d in summary.definitions if d.value is not None]
    reasons = dict.fromkeys(d.reason for d in summary.definitions if d.value is None)
    caption = ["; ".join(defined)] if defined else []
    caption += [f"{DASH}: {reason}" for reason in reasons]
    routing = summarise_routing(record, {})
    caption += [] if routing is None else [say_results(routing)]
    others = {name for test in summary.tests for name in test.ablations}
    caption += [about_ablations(others)] if others else []
    table.caption = _plain("\n".join(caption))
    table.caption_justify = "left"
    return table


def format_comparison_tables(comparison: Comparison) -> list[Table]:
    """Return one table per stream: methods × test sets, mean ± std over seeds, ties labelled."""
    tables = []
    for stream in comparison.streams:
        table = Table(
            title=_plain(f"{stream.name} · protocol {comparison.protocol}"), box=box.SIMPLE_HEAD, title_justify="left"
        )
        for column in ("variant",) * stream.variants + ("method", "model"):
            table.add_column(column, overflow="fold")
        table.add_column("seeds", justify="right")
        for test in stream.tests:
            table.add_column(_plain(f"{test.name}\n{test.primary}"), justify="right")
        for group in stream.groups:
            cells = [f"{entry.text} {entry.label}".strip() for entry in group.final]
            names = (group.variant,) * stream.variants + (group.method, group.model, str(len(group.runs)))
            table.add_row(*(_plain(cell) for cell in (*names, *cells)))
        table.caption = _plain(comparison.legend)
        table.caption_justify = "left"
        tables.append(table)
    return tables
