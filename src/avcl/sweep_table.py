"""The table of a sweep plan: per test set, variants as rows, with paired differences to the first one and the best control."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avcl.report.comparison import Statistic
from avcl.sweep_plan import Found, Planned, Sweep
from avcl.sweep_stream import StreamTables, stream_json, stream_markdown, stream_tables
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.summary import TestSummary, summarise
from avcl_core.evaluation.table import DASH, format_score, markdown_table
from avcl_core.training.checkpoint import replace_text

LEGEND = (
    "Mean ± sample standard deviation over n seeds; n = 1 has no ±. Difference: to the first variant at the same seed, then mean ± "
    "standard deviation over these pairs. Control: the best trivial predictor on the same test set. Larger is better."
)
ORDERS_LEGEND = (
    "Mean ± sample standard deviation over n seeds; over all orders: over the means of n orders, so ± is what the order changes. "
    "n = 1 has no ±. Larger is better."
)


@dataclass(frozen=True)
class Row:
    """One variant on one test set.

    Attributes:
        label: the variant whose runs these are: another one where both are the same configuration.
        scores: seed → final score of the primary metric, of the runs that are done and have one.
        differences: seed → score minus that of the first variant at the same seed.
        control: best trivial predictor and its score, a mean over the seeds.
    """

    variant: str
    label: str
    scores: Mapping[int, float]
    differences: Mapping[int, float]
    control: tuple[str, float] | None


@dataclass(frozen=True)
class Section:
    """One test set of one configuration."""

    config: str
    test: str
    primary: str
    ideal: float
    rows: tuple[Row, ...]


def sections(sweep: Sweep, found: Mapping[Planned, Found]) -> list[Section]:
    """Return the sections of all configurations of which a run is done; none of a plan with orders, whose tables tell them apart."""
    made: list[Section] = []
    if sweep.orders:
        return made
    for config in sweep.plan.configs:
        tests: dict[str, dict[str, dict[int, TestSummary]]] = {}
        labels: dict[str, str] = {}
        for run in (run for run in sweep.runs if run.config == config):
            folder = found[run].folder
            labels.setdefault(run.variant, run.label)
            if found[run].state != "done" or folder is None:
                continue
            for test in summarise(RunRecord.load(folder)).tests:
                tests.setdefault(test.name, {}).setdefault(run.variant, {})[run.seed] = test
        for name, by_variant in tests.items():
            every = [test for by_seed in by_variant.values() for test in by_seed.values()]
            scored = next((test for test in every if test.values), every[0])
            rows = _rows(labels, by_variant)
            made.append(Section(config, name, scored.primary, scored.ideal, tuple(rows)))
    return made


def _rows(labels: Mapping[str, str], by_variant: Mapping[str, Mapping[int, TestSummary]]) -> list[Row]:
    rows: list[Row] = []
    for variant, label in labels.items():
        by_seed = by_variant.get(variant, {})
        scores = {s: test.final.value for s, test in sorted(by_seed.items()) if test.final.value is not None}
        first = rows[0].scores if rows else {}
        differences = {seed: value - first[seed] for seed, value in scores.items() if seed in first}
        rows.append(Row(variant, label, scores, differences, best_control(by_seed)))
    return rows


def best_control(by_seed: Mapping[int, TestSummary]) -> tuple[str, float] | None:
    """Return the trivial predictor with the highest mean over the seeds, and this mean."""
    values: dict[str, list[float]] = {}
    for test in by_seed.values():
        for name, value in test.controls.items():
            if np.isfinite(value):
                values.setdefault(name, []).append(value)
    means = {name: float(np.mean(given)) for name, given in values.items()}
    return max(means.items(), key=lambda item: item[1], default=None)


def markdown(
    sweep: Sweep, found: Mapping[Planned, Found], made: list[Section], streams: Sequence[StreamTables] = ()
) -> str:
    """Return the table of a plan as Markdown."""
    plan = sweep.plan
    done = sum(found[run].state == "done" for run in sweep.todo)
    orders = f"orders {len(next(iter(sweep.orders.values())))}, " if sweep.orders else ""
    lines = [
        f"# {plan.title}",
        "",
        f"Plan {sweep.name}: configurations {len(plan.configs)}, {orders}variants {len(plan.variants)}, seeds {len(plan.seeds)}; "
        f"{done} of {len(sweep.todo)} runs done.",
        "",
        ORDERS_LEGEND if sweep.orders else LEGEND,
        "",
    ]
    first = next(iter(plan.variants))
    for section in made:
        body = []
        for row in section.rows:
            same = row.label != row.variant
            control = DASH if row.control is None else f"{format_score(row.control[1], section.ideal)} {row.control[0]}"
            body.append(
                [
                    f"{row.variant} (= {row.label})" if same else row.variant,
                    _mean(row.scores, section.ideal),
                    str(len(row.scores)),
                    DASH if row.variant == first else _mean(row.differences, section.ideal, signed=True),
                    DASH if row.variant == first else str(len(row.differences)),
                    control,
                ]
            )
        header = ["variant", section.primary, "n", f"difference to {first}", "pairs", "control"]
        lines += [f"## {section.config}: {section.test}", "", *markdown_table(header, body), ""]
        if any(row.label != row.variant for row in section.rows):
            lines += ["=: the same configuration, so the same runs.", ""]
    lines += stream_markdown(streams)
    if versions := code_line(sweep, found):
        lines += [versions, ""]
    missing = [f"* {run.title}: {found[run].text}" for run in sweep.todo if found[run].state != "done"]
    if missing:
        lines += ["## Runs that are missing", "", *missing, ""]
    return "\n".join(lines)


def code_line(sweep: Sweep, found: Mapping[Planned, Found]) -> str:
    """Return a line that says that the runs of the table were not all made by the same code; empty where they were."""
    counts = Counter(
        json.loads((folder / "run.json").read_text(encoding="utf-8")).get("code", "")
        for run in sweep.todo
        if found[run].state == "done" and (folder := found[run].folder) is not None
    )
    if len(counts) < 2:
        return ""
    listed = (f"{code[:12] or 'not recorded'} ({count} of them)" for code, count in sorted(counts.items()))
    return f"Code: these runs were made by different states of avcl_core: {', '.join(listed)}."


def _mean(values: Mapping[int, float], ideal: float, signed: bool = False) -> str:
    statistic = Statistic(tuple(values.values()), len(values))
    text = statistic.format(ideal)
    if not signed or statistic.mean is None:
        return text
    return text.replace("-", "−", 1) if text.startswith("-") else f"+{text}"


def as_json(
    sweep: Sweep, found: Mapping[Planned, Found], made: list[Section], streams: Sequence[StreamTables] = ()
) -> dict[str, Any]:
    """Return the same as plain data; run folders are relative to the folder of the runs."""
    return {
        "plan": sweep.name,
        "title": sweep.plan.title,
        "variants": {name: list(given) for name, given in sweep.plan.variants.items()},
        "seeds": list(sweep.plan.seeds),
        "tables": [
            {
                "config": section.config,
                "test": section.test,
                "primary": section.primary,
                "ideal": section.ideal,
                "rows": [
                    {
                        "variant": row.variant,
                        "same_as": row.label if row.label != row.variant else None,
                        "score": _json(row.scores),
                        "difference": _json(row.differences),
                        "control": None if row.control is None else {"name": row.control[0], "mean": row.control[1]},
                    }
                    for row in section.rows
                ],
            }
            for section in made
        ],
        "streams": stream_json(streams),
        "runs": [
            {
                "config": run.config,
                "order": run.order or None,
                "variant": run.variant,
                "seed": run.seed,
                "state": found[run].state,
                "differs": list(found[run].differs),
                "folder": _relative(found[run].folder, sweep.root),
            }
            for run in sweep.runs
        ],
    }


def _json(values: Mapping[int, float]) -> dict[str, Any]:
    statistic = Statistic(tuple(values.values()), len(values))
    by_seed = {str(seed): value for seed, value in values.items()}
    return {"mean": statistic.mean, "std": statistic.std, "n": len(values), "by_seed": by_seed}


def _relative(folder: Path | None, root: Path) -> str | None:
    return None if folder is None else folder.relative_to(root).as_posix()


def write_tables(sweep: Sweep, found: Mapping[Planned, Found]) -> str:
    """Write ``table.md`` and ``table.json`` to the plan's folder and return the Markdown."""
    made, streams = sections(sweep, found), stream_tables(sweep, found)
    text = markdown(sweep, found, made, streams)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    replace_text(sweep.folder / "table.md", text)
    record = json.dumps(as_json(sweep, found, made, streams), indent=1, ensure_ascii=False, allow_nan=False)
    replace_text(sweep.folder / "table.json", record + "\n")
    return text
