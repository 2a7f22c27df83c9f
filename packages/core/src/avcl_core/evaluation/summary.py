"""The summary of one run: each score beside its controls, what was kept, and only the definitions that are defined."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avcl_core.evaluation.ablation_names import EXPERIENCE_GIVEN, slot_of
from avcl_core.evaluation.definitions import (
    MIXED,
    WHY,
    Definition,
    Setting,
    Value,
    definitions_of,
    plain_means_of,
    positions,
    setting_of,
)
from avcl_core.evaluation.matrix import ResultMatrix, encode_number
from avcl_core.evaluation.record import Reference, RunRecord
from avcl_core.evaluation.routing_files import write_routing
from avcl_core.evaluation.routing_markdown import routing_section
from avcl_core.evaluation.routing_summary import summarise_routing
from avcl_core.evaluation.table import write_table
from avcl_core.evaluation.usage_file import read_usage, usage_file

__all__ = [
    "Against",
    "Definition",
    "Gap",
    "RunRecord",
    "Setting",
    "Summary",
    "TestSummary",
    "summarise",
    "write_results",
]


@dataclass(frozen=True)
class TestSummary:
    """One test set: its result after each row, beside the controls, and what became of it. ``__test__`` stops pytest.

    Attributes:
        values: row → primary metric (NaN: undefined); rows where it was not evaluated are absent.
        controls: trivial predictor → primary metric; ``bounds``: predictor that knows the test targets → primary metric.
        ablations: what the trained model of the last row was predicted without → primary metric; never something to beat. One expert
            for all samples is no part of it: there may be many, see :class:`avcl_core.evaluation.routing_summary.RoutingSummary`.
        learnt: R[i,i], right after its experience.
        final: the result after the last experience; with a model per experience, the one of its own model.
        best: max over i ≤ t < T of R[t,i]; ``drop``: best − R[T,i], its term of FM; ``retention``: R[T,i] / R[i,i].
    """

    __test__ = False
    name: str
    experience: str
    task: str
    primary: str
    ideal: float
    samples: int
    values: dict[str, float]
    controls: dict[str, float]
    ablations: dict[str, float]
    bounds: dict[str, float]
    learnt: Value
    final: Value
    best: Value
    drop: Value
    retention: Value


@dataclass(frozen=True)
class Gap:
    """The final score of one test set against that of a reference: ``difference`` is final − reference, ``ratio`` final / reference."""

    reference: Value
    difference: Value
    ratio: Value


@dataclass(frozen=True)
class Against:
    """A run against one reference: a gap per test set, in their order, and what may be averaged of them.

    Attributes:
        difference: mean over the test sets, where all have the same primary metric.
        ratio: mean over the test sets; a ratio has no unit, so metrics may differ.
    """

    gaps: tuple[Gap, ...]
    difference: Value
    ratio: Value


@dataclass(frozen=True)
class Summary:
    """All that tables and reports print about one run; plain data.

    Attributes:
        definitions: the continual-learning definitions; not where test sets have different primary metrics.
        plain_means: there, the same definitions over scores in percent of the ideal: plain means over different metrics, which some
            papers print (PHP); empty elsewhere.
        retention: mean over the test sets but those learnt last of R[T,i] / R[i,i]; a ratio has no unit.
        references: ``single`` or ``joint`` → the run against it.
    """

    stream: str
    digest: str
    protocol: str
    task_id: str
    method: str
    model: str
    seed: int
    setting: Setting
    experiences: tuple[str, ...]
    rows: tuple[str, ...]
    tests: tuple[TestSummary, ...]
    definitions: tuple[Definition, ...]
    plain_means: tuple[Definition, ...]
    retention: Value
    references: dict[str, Against]
    parameters: dict[str, dict[str, int]]
    notes: tuple[str, ...]
    skipped: tuple[str, ...]
    matrix: ResultMatrix
    controls: dict[str, dict[str, dict[str, float]]]
    ablations: dict[str, dict[str, dict[str, float]]]

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``summary.json``: strict JSON, without times, ids or paths."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}


def summarise(record: RunRecord) -> Summary:
    """Summarise a run, finished or not. Nothing here fails on a missing entry: the reason stands in its place."""
    setting = setting_of(record)
    tests = tuple(_test(record, name, setting) for name in record.matrix.columns)
    return Summary(
        stream=record.stream.name,
        digest=record.stream.digest,
        protocol=record.protocol,
        task_id=record.stream.task_id,
        method=record.method,
        model=record.model,
        seed=record.seed,
        setting=setting,
        experiences=record.experiences,
        rows=tuple(record.matrix.rows),
        tests=tests,
        definitions=definitions_of(record, setting),
        plain_means=plain_means_of(record, setting),
        retention=_mean([test.retention for test in tests if test.experience != record.experiences[-1]]),
        references={name: _against(tests, reference) for name, reference in record.references.items()},
        parameters=record.parameters(),
        notes=record.notes,
        skipped=tuple(f"{s.task} {s.split} {s.key}: {s.reason}" for s in record.skipped),
        matrix=record.matrix,
        controls=record.controls,
        ablations=record.ablations,
    )


def write_results(run_folder: Path) -> Summary:
    """Write ``results/matrix.csv``, ``results/summary.json`` and ``results/table.md`` of a run folder.

    Where the model had to find its samples' experiences, also ``results/routing.csv`` and ``results/routing.json``.
    The bytes depend on the run's numbers alone, so a resumed run gives the same files as an uninterrupted one.

    Raises:
        IntegrityError: a file of the run folder is missing or malformed (see :meth:`RunRecord.load`).
    """
    record = RunRecord.load(run_folder)
    summary = summarise(record)
    routing = summarise_routing(record, read_usage(usage_file(Path(run_folder))))
    folder = Path(run_folder) / "results"
    folder.mkdir(exist_ok=True)
    summary.matrix.write_csv(folder / "matrix.csv")
    text = json.dumps(summary.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "summary.json").write_bytes((text + "\n").encode())
    (folder / "table.md").write_bytes(
        write_table(summary, [] if routing is None else routing_section(routing)).encode()
    )
    if routing is not None:
        write_routing(routing, folder)
    return summary


def _plain(value: Any) -> Any:
    if isinstance(value, ResultMatrix):
        return value.to_json()
    if isinstance(value, float):
        return encode_number(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    return value


def _test(record: RunRecord, name: str, setting: Setting) -> TestSummary:
    matrix, names = record.matrix, record.experiences
    experience = next(test.experience for test in record.stream.tests if test.name == name)
    own, last = positions(record)[experience], len(names) - 1
    primary = matrix.primary(name)

    def result(t: int) -> Value:
        cell = matrix.cell(names[t], name)
        if cell is None:
            return Value(None, WHY.get(setting, f"not evaluated after {names[t]}"))
        return Value(cell.value) if math.isfinite(cell.value) else Value(None, f"{primary} undefined after {names[t]}")

    learnt, final = result(own), result(own if setting == "separate" else last)
    if own == last:
        best = drop = retention = Value(None, "learnt last: nothing follows it")
    else:
        earlier = [result(t) for t in range(own, last)]
        gap = next((value for value in earlier if value.value is None), None)
        best = gap or Value(max(value.value for value in earlier if value.value is not None))
        end = result(last)
        drop = _combine(best, end, lambda before, after: before - after)
        retention = _share(learnt, end, "R[i,i]")
    others = {part: metrics[primary] for part, metrics in record.ablations.get(name, {}).items() if primary}
    if final.value is None:
        others.pop(EXPERIENCE_GIVEN, None)  # told after every row; beside the final score belongs the final one
    known = {control: metrics[primary] for control, metrics in record.controls.get(name, {}).items() if primary}
    oracles = record.oracles.get(name, ())
    return TestSummary(
        name=name,
        experience=experience,
        task=record.stream.experience(experience).task,
        primary=primary or "–",
        ideal=record.ideals.get(name, 100.0),
        samples=record.samples.get(name, 0),
        values={row: matrix.value(row, name) for row in matrix.rows if matrix.cell(row, name)},
        controls={control: value for control, value in known.items() if control not in oracles},
        ablations={part: value for part, value in others.items() if slot_of(part) is None},
        bounds={control: value for control, value in known.items() if control in oracles},
        learnt=learnt,
        final=final,
        best=best,
        drop=drop,
        retention=retention,
    )


def _combine(before: Value, after: Value, formula: Callable[[float, float], float | None]) -> Value:
    if before.value is None:
        return before
    return after if after.value is None else Value(formula(before.value, after.value))


def _share(of: Value, value: Value, name: str) -> Value:
    """value / of, where ``of`` (called ``name``) is positive."""
    found = _combine(of, value, share)
    return (
        found
        if found.value is not None or found.reason
        else Value(None, f"{name} is not positive: a ratio to it is no share")
    )


def share(base: float, value: float) -> float | None:
    """Return value / base, or None where the base is not positive: a ratio to it is no share."""
    return value / base if base > 0 else None


def _mean(values: Sequence[Value]) -> Value:
    """The mean, or the first reason why one of the values is missing."""
    if not values:
        return Value(None, "learnt last: nothing follows it")
    missing = next((value for value in values if value.value is None), None)
    return missing or Value(float(np.mean([value.value for value in values if value.value is not None])))


def _against(tests: Sequence[TestSummary], reference: Reference) -> Against:
    """Compare final scores with those of a reference."""
    others = {} if reference.record is None else {test.name: test for test in summarise(reference.record).tests}
    gaps = []
    for test in tests:
        value = others[test.name].final if test.name in others else Value(None, reference.reason)
        difference = _combine(value, test.final, lambda base, own: own - base)
        gaps.append(Gap(value, difference, _share(value, test.final, "the reference")))
    several = len({test.primary for test in tests}) > 1
    mean = Value(None, MIXED) if several else _mean([gap.difference for gap in gaps])
    return Against(tuple(gaps), mean, _mean([gap.ratio for gap in gaps]))
