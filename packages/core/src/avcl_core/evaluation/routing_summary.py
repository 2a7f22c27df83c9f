"""What finding the experience costs a run: its results beside those with the experience told, and each expert's alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from avcl_core.evaluation.ablation_names import WITHOUT_EXPERTS, slot_of
from avcl_core.evaluation.definitions import Value, definitions_of, setting_of
from avcl_core.evaluation.matrix import START
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.usage_file import Part, RoutingTable, TestUsage

ACCURACY = "routing_accuracy"
"""Metric of a test set: percentage of its samples that were sent to their own expert."""


@dataclass(frozen=True)
class RoutedTest:
    """One test set.

    Attributes:
        own: the expert of its experience, as far as it is known.
        routed, given: row → primary metric, as the model chose and with the experience told.
        accuracy: row → ``routing_accuracy``.
        tables: row → which expert got how many samples, and how it answered them.
        alone: expert → primary metric if it answers all samples, after the last row; ``base``: the model without experts.
    """

    name: str
    experience: str
    own: str
    primary: str
    ideal: float
    samples: int
    routed: dict[str, float]
    given: dict[str, float]
    accuracy: dict[str, float]
    tables: dict[str, RoutingTable]
    alone: dict[str, float]
    base: float | None

    @property
    def last(self) -> RoutingTable | None:
        """The table of the last row."""
        return next(reversed(self.tables.values()), None)


@dataclass(frozen=True)
class Compared:
    """A continual-learning definition over the results as the model chose, and with the experience told."""

    name: str
    formula: str
    routed: Value
    given: Value


@dataclass(frozen=True)
class RoutingSummary:
    """All that tables and reports say about the routing of a run.

    Attributes:
        rows: after which test sets were evaluated, in stream order.
        experts: columns of the table of shares: every expert that samples could be sent to.
        tests: in stream order.
        definitions: empty where the experience was never told.
        accuracy: ``routing_accuracy`` after the last row over all samples of all test sets.
    """

    rows: tuple[str, ...]
    experts: tuple[str, ...]
    tests: tuple[RoutedTest, ...]
    definitions: tuple[Compared, ...]
    accuracy: float | None

    @property
    def alone(self) -> tuple[str, ...]:
        """The experts that answered all samples alone."""
        return tuple(dict.fromkeys(name for test in self.tests for name in test.alone))

    @property
    def known_base(self) -> bool:
        """Whether the model was asked without experts."""
        return any(test.base is not None for test in self.tests)

    @property
    def one_metric(self) -> bool:
        """Whether all test sets have one primary metric."""
        return len({test.primary for test in self.tests}) == 1

    def definition(self, name: str) -> Compared | None:
        """Return the definition of this name."""
        return next((found for found in self.definitions if found.name == name), None)


def summarise_routing(record: RunRecord, usage: Mapping[str, Mapping[str, TestUsage]]) -> RoutingSummary | None:
    """Summarise the routing of a run, finished or not; ``None`` where the experience is told or the model looks for none.

    Args:
        usage: row → test set → statistics of the run's experts (``expert_usage.json``); may be empty.
    """
    rows = tuple(row for row in record.matrix.rows if row != START)
    if record.stream.task_id != "hidden":
        return None
    tests = tuple(_test(record, name, rows, usage) for name in record.matrix.columns)
    tests = tuple(test for test in tests if test.routed)
    if not any(test.accuracy or test.tables for test in tests):
        return None
    tables = [table for test in tests for table in test.tables.values()]
    experts = dict.fromkeys(name for table in sorted(tables, key=lambda t: -len(t.experts)) for name in table.experts)
    setting = setting_of(record)
    definitions = ()
    if record.given.rows:
        told = definitions_of(replace(record, matrix=record.given), setting)
        definitions = tuple(
            Compared(own.name, own.formula, Value(own.value, own.reason), Value(other.value, other.reason))
            for own, other in zip(definitions_of(record, setting), told, strict=True)
        )
    return RoutingSummary(rows, tuple(experts), tests, definitions, _accuracy(tests, rows))


def _test(
    record: RunRecord, name: str, rows: tuple[str, ...], usage: Mapping[str, Mapping[str, TestUsage]]
) -> RoutedTest:
    cells = {row: cell for row in rows if (cell := record.matrix.cell(row, name)) is not None}
    primary = record.matrix.primary(name) or ""
    experience = next(test.experience for test in record.stream.tests if test.name == name)
    found = {row: _table(usage[row][name], experience) for row in cells if name in usage.get(row, {})}
    tables = {row: table for row, table in found.items() if table is not None}
    others = record.ablations.get(name, {})
    slots = {slot: metrics[primary] for part, metrics in others.items() if (slot := slot_of(part)) is not None}
    base = others.get(WITHOUT_EXPERTS)
    return RoutedTest(
        name=name,
        experience=experience,
        own=next((table.own for table in tables.values()), experience),
        primary=primary,
        ideal=record.ideals.get(name, 100.0),
        samples=record.samples.get(name, 0),
        routed={row: cell.value for row, cell in cells.items()},
        given={row: record.given.value(row, name) for row in cells if record.given.cell(row, name)},
        accuracy={row: cell.metrics[ACCURACY] for row, cell in cells.items() if ACCURACY in cell.metrics},
        tables=tables,
        alone=slots,
        base=None if base is None else base[primary],
    )


def _table(usage: TestUsage, experience: str) -> RoutingTable | None:
    """The table of a test set; where samples were sent without scores, as far as the router's gates tell it."""
    if usage.routing is not None:
        return usage.routing
    told = usage.sites.get("router")
    names = [] if told is None else [str(name) for name in told.constants.get("experts", [])]
    if told is None or experience not in names or len(told.first) != len(names):
        return None
    sent = {name: Part(samples=round(count)) for name, count in zip(names, told.first, strict=True)}
    right = sent[experience].samples
    return RoutingTable(
        own=experience, experts=sent, right=Part(samples=right), wrong=Part(samples=usage.samples - right)
    )


def _accuracy(tests: tuple[RoutedTest, ...], rows: tuple[str, ...]) -> float | None:
    """Weighted by samples, which makes it a share of all samples."""
    known = [(test.accuracy[rows[-1]], test.samples) for test in tests if rows[-1] in test.accuracy]
    total = sum(samples for _, samples in known)
    found = sum(value * samples for value, samples in known) / total if total else math.nan
    return found if math.isfinite(found) else None
