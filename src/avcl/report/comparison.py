"""Several runs side by side: mean ± std over seeds by problem, method, model and label, with ties called ties."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from avcl.report.comparison_groups import Member, differing, member, members_of, problem_names, titles_of
from avcl_core.errors import ConfigError
from avcl_core.evaluation.summary import Definition, Summary, TestSummary, share
from avcl_core.evaluation.table import DASH, format_score, signed

Label = Literal["", "best", "tie", "unranked"]

LEGEND = (
    "Mean ± sample standard deviation over seeds; n = 1 has no ±. Best: highest mean among the continual methods. "
    "Tie: its difference from the highest mean is within the pooled standard error of the two. "
    "Unranked: neither has a second seed, so no spread is known. One standard error is no significance test."
)


@dataclass(frozen=True)
class Statistic:
    """Values of one quantity over the seeds of a group; ``expected`` of them were possible."""

    values: tuple[float, ...]
    expected: int

    @property
    def mean(self) -> float | None:
        """Mean over the values there are, or ``None`` without any."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n − 1), or ``None`` for fewer than two values."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def format(self, ideal: float) -> str:
        """Return ``mean ± std`` and, where values are missing, how many there are."""
        if self.mean is None:
            return DASH
        text = format_score(self.mean, ideal) + ("" if self.std is None else f" ± {format_score(self.std, ideal)}")
        return text if len(self.values) == self.expected else f"{text} ({len(self.values)} of {self.expected})"


@dataclass(frozen=True)
class Entry:
    """One statistic as a table prints it, with its rank label."""

    statistic: Statistic
    text: str
    label: Label = ""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        title: the variant where all groups have one of their own; else the method, with what else tells groups apart.
        variant: label of the runs, and options by which groups of one label, method and model differ.
        reference: joint training or a model per experience, which is not continual.
    """

    title: str
    method: str
    model: str
    variant: str
    runs: tuple[Summary, ...]
    reference: bool
    final: tuple[Entry, ...]
    drop: tuple[Entry, ...]
    retention: tuple[Entry, ...]
    definitions: dict[str, Entry]


@dataclass(frozen=True)
class StreamComparison:
    """All groups of one stream and setting; ``gaps``: reference title → group title → mean difference per test set."""

    name: str
    task_id: str
    experiences: tuple[str, ...]
    tests: tuple[TestSummary, ...]
    controls: dict[str, tuple[Entry, ...]]
    groups: tuple[Group, ...]
    gaps: dict[str, dict[str, tuple[str, ...]]]
    definitions: tuple[Definition, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def variants(self) -> bool:
        """Whether any group has a variant to show."""
        return any(group.variant for group in self.groups)

    def best_control(self, column: int) -> float | None:
        """Return the mean score of the best trivial predictor of a test set."""
        means = [row[column].statistic.mean for row in self.controls.values()]
        return max((mean for mean in means if mean is not None), default=None)


@dataclass(frozen=True)
class Comparison:
    """Groups of runs by stream, all under one protocol."""

    protocol: str
    runs: int
    streams: tuple[StreamComparison, ...]
    legend: str = LEGEND


def pooled_standard_error(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return sqrt(s² (1/n + 1/m)) with the pooled variance s² of both samples; None if neither has two values."""
    n, m = len(a), len(b)
    if n == 0 or m == 0 or n + m < 3:
        return None
    squares = sum(float(np.sum((np.asarray(v) - np.mean(v)) ** 2)) for v in (a, b))
    return math.sqrt(squares / (n + m - 2) * (1 / n + 1 / m))


def compare(run_folders: Sequence[Path]) -> Comparison:
    """Group and compare runs; see :func:`avcl.report.compare`."""
    runs = [member(folder) for folder in run_folders]
    if not runs:
        raise ConfigError("no run folder is given; name at least one")
    _one(runs, "protocol", lambda run: run.summary.protocol, "a comparison reads one protocol: compare them separately")
    streams = tuple(_stream(name, members) for name, members in sorted(problem_names(runs).items()))
    return Comparison(runs[0].summary.protocol, len(runs), streams)


def _one(runs: Iterable[Member], what: str, value: Callable[[Member], Any], advice: str) -> None:
    """Raise ConfigError unless ``value`` is the same for all runs; the message names one run of each value."""
    found: dict[Any, str] = {}
    for run in runs:
        found.setdefault(value(run), run.folder.name)
    if len(found) > 1:
        listed = ", ".join(f"{value} ({folder})" for value, folder in found.items())
        raise ConfigError(f"runs mix {what}: {listed}; {advice}")


def _stream(name: str, runs: list[Member]) -> StreamComparison:
    here = f"in stream {name}"
    _one(runs, f"task ids {here}", lambda run: run.summary.task_id, "given and hidden task ids are different problems")
    _one(runs, f"test sets {here}", _columns, "they share no result table")
    for primary in {test.name for run in runs for test in run.summary.tests}:
        scored = [run for run in runs if _test(run.summary, primary).values]
        _one(scored, f"metrics of test set {primary} {here}", lambda run, p=primary: _test(run.summary, p).primary, "")
    for seed in {run.summary.seed for run in runs}:
        same = [run for run in runs if run.summary.seed == seed]
        _one(same, f"stream definitions {here} at seed {seed}", _digest, "order or samples differ: not comparable")
    notes = []
    if len({run.summary.digest for run in runs}) > 1:
        notes.append(
            "Order or samples of the stream differ between seeds; at each seed they are the same for all methods."
        )
    members = members_of(runs)
    for key, group in members.items():
        seeds = [run.summary.seed for run in group]
        repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if repeated:
            folders = ", ".join(run.folder.name for run in group if run.summary.seed in repeated)
            raise ConfigError(f"seed {repeated[0]} of {key.name} {here} is there twice ({folders}); name one of them")
        _one(group, f"settings of {key.name} {here}", lambda run: run.summary.setting, "finish or leave out some")
        mixed = differing([run.config for run in group])
        if mixed:
            notes.append(f"{key.name}: its runs differ in {', '.join(mixed)}; their mean mixes configurations.")
    reference = {key: group[0].summary.setting in ("joint", "separate") for key, group in members.items()}
    keys = sorted(members, key=lambda key: (reference[key], key))
    titles = titles_of(keys)
    groups = _label(
        [_group(titles[key], key.variant, [run.summary for run in members[key]], reference[key]) for key in keys]
    )
    first = runs[0].summary
    tests = tuple(max((_test(run.summary, t.name) for run in runs), key=lambda t: bool(t.values)) for t in first.tests)
    names = list(dict.fromkeys(control for run in runs for test in run.summary.tests for control in test.controls))
    controls = {control: _controls(control, runs, tests) for control in names}
    every = [d for run in runs for d in run.summary.definitions]
    shown = tuple(d for d in first.definitions if any(e.name == d.name and e.value is not None for e in every))
    return StreamComparison(
        name=name,
        task_id=first.task_id,
        experiences=first.experiences,
        tests=tests,
        controls=controls,
        groups=tuple(groups),
        gaps=_gaps(groups, tests),
        definitions=shown,
        reasons=tuple(dict.fromkeys(d.reason for d in every if d.value is None)),
        notes=tuple(notes),
    )


def _columns(run: Member) -> tuple[str, ...]:
    return tuple(test.name for test in run.summary.tests)


def _digest(run: Member) -> str:
    return run.summary.digest[:12]


def _test(summary: Summary, name: str) -> TestSummary:
    return next(test for test in summary.tests if test.name == name)


def _entry(values: Iterable[float | None], ideal: float) -> Entry:
    every = list(values)
    statistic = Statistic(tuple(v for v in every if v is not None and math.isfinite(v)), len(every))
    return Entry(statistic, statistic.format(ideal))


def _controls(control: str, runs: Sequence[Member], tests: Sequence[TestSummary]) -> tuple[Entry, ...]:
    """One value per seed, the mean over its runs: trivial predictors agree there, shuffled predictions are a method's own."""
    entries = []
    for test in tests:
        seeds: dict[int, list[float]] = {}
        for run in runs:
            value = _test(run.summary, test.name).controls.get(control)
            if value is not None:
                seeds.setdefault(run.summary.seed, []).append(value)
        entries.append(_entry((float(np.mean(values)) for values in seeds.values()), test.ideal))
    return tuple(entries)


def _group(title: str, variant: str, runs: Sequence[Summary], reference: bool) -> Group:
    def over(pick: Callable[[TestSummary], float | None], scale: float | None = None) -> tuple[Entry, ...]:
        return tuple(
            _entry((pick(run.tests[column]) for run in runs), runs[0].tests[column].ideal if scale is None else scale)
            for column in range(len(runs[0].tests))
        )

    ideal = max((test.ideal for test in runs[0].tests), default=100.0)
    return Group(
        title=title,
        method=runs[0].method,
        model=runs[0].model,
        variant=variant,
        runs=tuple(runs),
        reference=reference,
        final=over(lambda test: test.final.value),
        drop=over(lambda test: test.drop.value),
        retention=over(lambda test: test.retention.value, scale=1.0),
        definitions={
            d.name: _entry((run.definitions[n].value for run in runs), ideal) for n, d in enumerate(runs[0].definitions)
        },
    )


def _label(groups: list[Group]) -> list[Group]:
    """Label the highest mean of every column and what cannot be told from it; references compete for nothing."""
    from dataclasses import replace

    finals = [list(group.final) for group in groups]
    for column in range(len(finals[0]) if finals else 0):
        ranked = [n for n, g in enumerate(groups) if not g.reference and g.final[column].statistic.mean is not None]
        if len(ranked) < 2:
            continue
        means = {n: groups[n].final[column].statistic.mean or 0.0 for n in ranked}
        best = max(ranked, key=lambda n: means[n])
        labels: dict[int, Label] = {}
        for n in ranked:
            if n == best:
                continue
            error = pooled_standard_error(finals[best][column].statistic.values, finals[n][column].statistic.values)
            if means[best] == means[n] or (error is not None and means[best] - means[n] <= error):
                labels[n] = "tie"
            elif error is None:
                labels[n] = "unranked"
        labels[best] = "tie" if "tie" in labels.values() else ("unranked" if "unranked" in labels.values() else "best")
        for n, label in labels.items():
            finals[n][column] = replace(finals[n][column], label=label)
    return [replace(group, final=tuple(row)) for group, row in zip(groups, finals, strict=True)]


def _gaps(groups: Sequence[Group], tests: Sequence[TestSummary]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Mean final score minus that of each reference, per test set, and its share of it."""
    gaps: dict[str, dict[str, tuple[str, ...]]] = {}
    for reference in (group for group in groups if group.reference):
        for group in (group for group in groups if not group.reference):
            row = []
            for test, own, other in zip(tests, group.final, reference.final, strict=True):
                a, b = own.statistic.mean, other.statistic.mean
                row.append(DASH if a is None or b is None else _gap(a, b, test.ideal))
            gaps.setdefault(reference.title, {})[group.title] = tuple(row)
    return gaps


def _gap(score: float, reference: float, ideal: float) -> str:
    ratio = share(reference, score)
    return signed(score - reference, ideal) + ("" if ratio is None else f" ({100 * ratio:.1f} %)")
