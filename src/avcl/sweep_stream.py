"""What a plan says of streams: scores, forgetting, retention and gaps per test set, over seeds and over orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from avcl.report.comparison import Statistic
from avcl.sweep_orders import Orders
from avcl.sweep_plan import Found, Planned, Sweep
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.summary import Definition, Summary, TestSummary, share, summarise
from avcl_core.evaluation.table import DASH, PLAIN, format_score, markdown_table, signed

EVERY = "all orders"
ONE = "any order"
"""What a run is of whose method learns no sequence: it stands for every order."""

OVER = ("LA", "A_T", "mean A", "FM", "BWT")
"""The definitions that tables of streams print."""

Cells = Mapping[str, Mapping[str, Mapping[int, Summary]]]
"""Variant → order → seed → summary, of the runs that are done."""


@dataclass(frozen=True)
class Line:
    """One variant in one order: statistics over seeds; or over all orders: statistics over the means of the orders."""

    variant: str
    order: str
    cells: tuple[Statistic, ...]

    @property
    def n(self) -> int:
        """How many seeds or orders there are."""
        return max((len(cell.values) for cell in self.cells), default=0)


@dataclass(frozen=True)
class Table:
    """One quantity. ``ideals``: scale of each column; ``columns``: test sets, or names of definitions."""

    title: str
    why: str
    columns: tuple[str, ...]
    ideals: tuple[float, ...]
    lines: tuple[Line, ...]
    signed: bool = False

    def text(self, line: Line, column: int) -> str:
        """Return a cell as tables print it."""
        cell, ideal = line.cells[column], self.ideals[column]
        if cell.mean is None:
            return DASH
        spread = "" if cell.std is None else f" ± {format_score(cell.std, ideal)}"
        missing = "" if len(cell.values) == line.n else f" (n = {len(cell.values)})"
        return (signed if self.signed else format_score)(cell.mean, ideal) + spread + missing


@dataclass(frozen=True)
class StreamTables:
    """All tables of one configuration with several tasks.

    Attributes:
        title: that of the plan.
        tests: the test sets of the first order.
        cells: the summaries that the tables are made of.
        controls: name and mean of the best trivial predictor per test set.
        reasons: why a quantity is not shown.
    """

    title: str
    config: str
    orders: Orders
    tests: tuple[TestSummary, ...]
    cells: Cells
    controls: tuple[tuple[str, float] | None, ...]
    tables: tuple[Table, ...]
    reasons: tuple[str, ...]


def stream_tables(sweep: Sweep, found: Mapping[Planned, Found]) -> list[StreamTables]:
    """Return the tables of every configuration that has several tasks and of which a run is done."""

    @cache
    def summary(folder: Path) -> Summary:
        return summarise(RunRecord.load(folder))

    made = []
    for config in sweep.plan.configs:
        runs = [run for run in sweep.runs if run.config == config]
        first: dict[tuple[str, str], str] = {}
        cells: dict[str, dict[str, dict[int, Summary]]] = {variant: {} for variant in sweep.plan.variants}
        shared = {run.variant for run in runs if first.setdefault(run.key, run.order) != run.order}
        for run in runs:
            folder = found[run].folder
            if found[run].state == "done" and folder is not None:
                order = ONE if run.variant in shared else run.order
                cells[run.variant].setdefault(order, {})[run.seed] = summary(folder)
        every = [one for orders in cells.values() for seeds in orders.values() for one in seeds.values()]
        if every and (len(every[0].tests) > 1 or sweep.orders):
            made.append(_tables(config, sweep, cells, every))
    return made


def _tables(config: str, sweep: Sweep, cells: Cells, every: Sequence[Summary]) -> StreamTables:
    tests = every[0].tests
    names, ideals = tuple(test.name for test in tests), tuple(test.ideal for test in tests)

    def table(
        title: str, why: str, pick: Pick, scale: Sequence[float] = ideals, signs: bool = False, mean: bool = False
    ) -> Table:
        columns = (*names, "mean") if mean else names
        lines = _lines(cells, columns, pick)
        return Table(title, why, columns, (*scale, 1.0) if mean else tuple(scale), lines, signs)

    ones = (1.0,) * len(names)
    variants = list(cells)
    tables = [
        table("Final score", "R[T,i], the primary metric after the last experience.", _of(lambda t: t.final.value)),
        table(
            f"Difference to {variants[0]}",
            "Final score minus that of the first variant in the same order at the same seed.",
            _difference(cells, variants[0]),
            signs=True,
        ),
        table(
            "Forgetting",
            "Drop: max over i ≤ t < T of R[t,i], minus R[T,i]; negative: gained. Nothing follows what is learnt last.",
            _of(lambda t: t.drop.value),
        ),
        table(
            "Retention",
            "R[T,i] / R[i,i]; the mean leaves out what is learnt last.",
            _of(lambda t: t.retention.value, lambda s: s.retention.value),
            ones,
            mean=True,
        ),
    ]
    for variant, setting in (("single", "separate"), ("joint", "joint")):
        reference = next((name for name in variants if _setting(cells, name) == setting), None)
        if reference is not None:
            tables.append(
                table(
                    f"Share of {reference}",
                    f"R[T,i] / R_{variant},i at the same seed.",
                    _shares(cells, reference),
                    ones,
                    mean=True,
                )
            )
    metrics = list(dict.fromkeys(test.primary for test in tests))
    reasons = []
    if len(metrics) == 1 or sweep.plan.plain_mean:
        chosen: Callable[[Summary], Sequence[Definition]] = lambda s: s.plain_means or s.definitions  # noqa: E731
        formulas = "; ".join(f"{d.name}: {d.formula}" for d in chosen(every[0]) if d.name in OVER)
        title = "Over the stream" if len(metrics) == 1 else "Plain means over the stream, in percent"
        scale = (ideals[0] if len(metrics) == 1 else 100.0,) * len(OVER)

        def over(variant: str, order: str, seed: int, one: Summary, column: int, name: str) -> float | None:
            return next((d.value for d in chosen(one) if d.name == name), None)

        why = formulas + "." if len(metrics) == 1 else f"{PLAIN} {formulas}."
        tables.append(Table(title, why, OVER, scale, _lines(cells, OVER, over)))
    else:
        reasons.append(
            f"FM, BWT, LA and A_T average over test sets, and these have different metrics ({', '.join(metrics)})."
        )
    kept = tuple(table for table in tables if any(line.n for line in table.lines))
    controls = tuple(_control(every, name) for name in names)
    return StreamTables(
        sweep.plan.title, config, sweep.orders.get(config, {}), tests, cells, controls, kept, tuple(reasons)
    )


Pick = Callable[[str, str, int, Summary, int, str], float | None]
"""Variant, order, seed, summary, column and its name → value."""


def test_of(summary: Summary, name: str) -> TestSummary:
    """Return a test set by its name: orders have theirs in different places."""
    return next(test for test in summary.tests if test.name == name)


def _of(pick: Callable[[TestSummary], float | None], mean: Callable[[Summary], float | None] | None = None) -> Pick:
    def value(variant: str, order: str, seed: int, one: Summary, column: int, name: str) -> float | None:
        return mean(one) if mean is not None and column == len(one.tests) else pick(test_of(one, name))

    return value


def _other(cells: Cells, variant: str, order: str, seed: int) -> Summary | None:
    """The run of a variant to set beside one in this order: that of the same order, or the one for all."""
    orders = cells[variant]
    return orders.get(order, orders.get(ONE, {})).get(seed)


def _difference(cells: Cells, first: str) -> Pick:
    def value(variant: str, order: str, seed: int, one: Summary, column: int, name: str) -> float | None:
        other = None if variant == first else _other(cells, first, order, seed)
        a, b = test_of(one, name).final.value, None if other is None else test_of(other, name).final.value
        return None if a is None or b is None else a - b

    return value


def _shares(cells: Cells, reference: str) -> Pick:
    def value(variant: str, order: str, seed: int, one: Summary, column: int, name: str) -> float | None:
        other = None if one.setting in ("separate", "joint") else _other(cells, reference, order, seed)
        if other is None:
            return None
        names = [name] if column < len(one.tests) else [test.name for test in one.tests]
        found = []
        for test in names:
            a, b = test_of(one, test).final.value, test_of(other, test).final.value
            found.append(None if a is None or b is None else share(b, a))
        values = [ratio for ratio in found if ratio is not None]
        return float(np.mean(values)) if len(values) == len(names) else None

    return value


def _setting(cells: Cells, variant: str) -> str | None:
    return next((one.setting for seeds in cells[variant].values() for one in seeds.values()), None)


def _lines(cells: Cells, columns: Sequence[str], pick: Pick) -> tuple[Line, ...]:
    """One line per variant and order, and one over all orders where a variant has several."""
    lines = []
    for variant, orders in cells.items():
        own = []
        for order, seeds in orders.items():
            values = [
                [pick(variant, order, seed, one, column, name) for seed, one in sorted(seeds.items())]
                for column, name in enumerate(columns)
            ]
            own.append(Line(variant, order, tuple(_statistic(row) for row in values)))
        own = [line for line in own if line.n]
        lines += own
        if len(own) > 1:
            over = [_statistic([line.cells[column].mean for line in own]) for column in range(len(columns))]
            lines.append(Line(variant, EVERY, tuple(over)))
    return tuple(lines)


def _statistic(values: Sequence[float | None]) -> Statistic:
    given = tuple(value for value in values if value is not None and math.isfinite(value))
    return Statistic(given, len(given))


def _control(every: Sequence[Summary], test: str) -> tuple[str, float] | None:
    values: dict[str, list[float]] = {}
    for one in every:
        for name, value in test_of(one, test).controls.items():
            if math.isfinite(value):
                values.setdefault(name, []).append(value)
    means = {name: float(np.mean(given)) for name, given in values.items()}
    return max(means.items(), key=lambda item: item[1], default=None)


def stream_markdown(made: Sequence[StreamTables]) -> list[str]:
    """Return the lines of the tables as Markdown."""
    lines = []
    for stream in made:
        lines += [f"## {stream.config}: over the stream", ""]
        lines += [f"* {name}: {' → '.join(tasks)}" for name, tasks in stream.orders.items()]
        lines += [""] * bool(stream.orders)
        for n, table in enumerate(stream.tables):
            several = bool(stream.orders)
            header = ["variant", *["order"] * several, "n", *table.columns]
            body = [
                [
                    line.variant,
                    *[line.order] * several,
                    str(line.n),
                    *(table.text(line, column) for column in range(len(table.columns))),
                ]
                for line in table.lines
            ]
            if n == 0:
                shown = [
                    DASH if best is None else f"{format_score(best[1], test.ideal)} {best[0]}"
                    for best, test in zip(stream.controls, stream.tests, strict=True)
                ]
                body.append(["*best control*", *[""] * several, "", *shown])
            lines += [f"### {table.title}", "", *markdown_table(header, body), "", table.why, ""]
        lines += [f"{reason}\n" for reason in stream.reasons]
    return lines


def stream_json(made: Sequence[StreamTables]) -> list[dict[str, Any]]:
    """Return the same as plain data."""
    return [
        {
            "config": stream.config,
            "orders": {name: list(tasks) for name, tasks in stream.orders.items()},
            "tables": [
                {
                    "title": table.title,
                    "columns": list(table.columns),
                    "rows": [
                        {
                            "variant": line.variant,
                            "order": line.order,
                            "cells": [
                                {"mean": cell.mean, "std": cell.std, "values": list(cell.values)} for cell in line.cells
                            ],
                        }
                        for line in table.lines
                    ],
                }
                for table in stream.tables
            ],
        }
        for stream in made
    ]
