"""The result table of one run as Markdown: every score beside its controls, every dash with its reason."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from avcl_core.evaluation.ablation_names import EXPERIENCE_GIVEN, WITHOUT_EXPERTS

if TYPE_CHECKING:
    from avcl_core.evaluation.summary import Summary, Value

DASH = "–"
REFERENCES = (
    "Single: a model per experience; joint: all experiences in one session; both of the same configuration. − is the final score minus "
    "theirs, / the share of theirs. Ratios have no unit and are averaged; differences only where all test sets have one metric."
)
PLAIN = (
    "Plain means over different metrics, each score in percent of its ideal. Some papers print them; a gain in one metric is not one "
    "in another, so read the test sets first."
)

ABLATIONS = "Without prompts, without adapters: the trained model predicted without them, after the last row only; not controls."
GIVEN = "Experience given: each sample is sent to the expert of its own experience, which the model is not told otherwise; no control."
BASE = "Without experts: the frozen model alone, after the last row only; no control."


def format_score(value: float | None, ideal: float) -> str:
    """Return a score as tables print it: two decimals on a percent scale, four on a unit scale, a dash for ``None``."""
    if value is None:
        return DASH
    if math.isnan(value):
        return "undefined"
    text = f"{value:.{2 if abs(ideal) > 1 else 4}f}"
    return text[1:] if float(text) == 0 and text.startswith("-") else text


class _Footnotes:
    """Numbers the reasons behind the dashes; equal reasons share one number."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, reason: str) -> str:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"{DASH} [{self.reasons.index(reason) + 1}]"


def _cell(text: str) -> str:
    """Return text that Markdown shows literally in a table cell; only names and free text can hold such characters."""
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; numbers to the right, the first column and words to the left."""
    rule = ["---"] + ["---" if name in ("metric", "controls", "definition") else "---:" for name in header[1:]]
    return ["| " + " | ".join(_cell(text) for text in row) + " |" for row in (header, rule, *rows)]


def signed(value: float | None, ideal: float) -> str:
    """Return a difference as tables print it: always with its sign."""
    text = format_score(value, ideal)
    if value is None or math.isnan(value):
        return text
    return text.replace("-", "−") if text.startswith("-") else f"+{text}"


def _references(summary: Summary, notes: _Footnotes) -> list[str]:
    """Each test set against the runs that learnt every task alone or all at once."""

    def cell(entry: Value, ideal: float, form: Callable[[float | None, float], str] = format_score) -> str:
        return notes.mark(entry.reason) if entry.value is None else form(entry.value, ideal)

    header = ["test set", "metric", "final", "retention"]
    for name in summary.references:
        header += [name, f"− {name}", f"/ {name}"]
    body = []
    for column, test in enumerate(summary.tests):
        row = [test.name, test.primary, cell(test.final, test.ideal), cell(test.retention, 1.0)]
        for against in summary.references.values():
            gap = against.gaps[column]
            row += [cell(gap.reference, test.ideal), cell(gap.difference, test.ideal, signed), cell(gap.ratio, 1.0)]
        body.append(row)
    ideal = summary.tests[0].ideal if summary.tests else 100.0
    row = ["mean", "", "", cell(summary.retention, 1.0)]
    for against in summary.references.values():
        row += ["", cell(against.difference, ideal, signed), cell(against.ratio, 1.0)]
    return ["## Against the references", "", *markdown_table(header, [*body, row]), "", REFERENCES, ""]


def about_ablations(names: Collection[str]) -> str:
    """Say what the ablations ``names`` are."""
    said = [GIVEN] if EXPERIENCE_GIVEN in names else []
    said += [BASE] if WITHOUT_EXPERTS in names else []
    said += [ABLATIONS] if set(names) - {EXPERIENCE_GIVEN, WITHOUT_EXPERTS} else []
    return " ".join(said)


def write_table(summary: Summary, routing: Sequence[str] = ()) -> str:
    """Return ``table.md``: results after each row, the test sets one by one, the definitions, parameters and notes.

    Args:
        routing: lines of a section about the routing of hidden experiences, where there is any.
    """
    notes = _Footnotes()
    lines = [
        f"# {summary.stream} · {summary.method}",
        "",
        f"Protocol {summary.protocol}, task id {summary.task_id}, model {summary.model}, seed {summary.seed}, "
        f"{summary.setting} training. Scores are each test set's primary metric; larger is better.",
        "",
        "## Result after each experience",
        "",
    ]
    tests = summary.tests
    body = [
        [row, *(format_score(test.values[row], test.ideal) if row in test.values else DASH for test in tests)]
        for row in summary.rows
    ]
    ablations = dict.fromkeys(name for test in tests for name in test.ablations)
    for name in ablations:
        body.append([name, *(format_score(test.ablations.get(name), test.ideal) for test in tests)])
    for control in dict.fromkeys(name for test in tests for name in test.controls):
        body.append([f"*{control}*", *(format_score(test.controls.get(control), test.ideal) for test in tests)])
    lines += markdown_table(["after", *(f"{test.name} ({test.primary})" for test in tests)], body)
    lines += ["", "Rows in italics are trivial predictors. A dash is a test set that was not evaluated there.", ""]
    lines += [about_ablations(ablations), ""] if ablations else []
    lines += ["## Test sets", ""]
    header = ["test set", "metric", "samples", "controls", "R[i,i]", "final", "best before", "drop", "retention"]
    body = []
    for test in tests:
        numbers = [
            notes.mark(entry.reason) if entry.value is None else format_score(entry.value, scale)
            for entry, scale in (
                (test.learnt, test.ideal),
                (test.final, test.ideal),
                (test.best, test.ideal),
                (test.drop, test.ideal),
                (test.retention, 1.0),
            )
        ]
        shown = [*test.controls.items(), *((f"oracle: {name}", value) for name, value in test.bounds.items())]
        controls = ", ".join(f"{name} {format_score(value, test.ideal)}" for name, value in shown)
        body.append([test.name, test.primary, str(test.samples), controls or DASH, *numbers])
    lines += markdown_table(header, body)
    lines += [
        "",
        "Best before: max over i ≤ t < T of R[t,i]. Drop: best before − R[T,i]. Retention: R[T,i] / R[i,i]; its mean over the test sets"
        f" but those learnt last: {notes.mark(summary.retention.reason) if summary.retention.value is None else format_score(summary.retention.value, 1.0)}.",
        "",
    ]
    if summary.references:
        lines += _references(summary, notes)
    lines += ["## Over the stream", ""]
    ideal = max((abs(test.ideal) for test in tests), default=100.0)
    lines += markdown_table(
        ["name", "value", "definition"],
        [
            [d.name, notes.mark(d.reason) if d.value is None else format_score(d.value, ideal), d.formula]
            for d in summary.definitions
        ],
    )
    if summary.plain_means:
        lines += ["", PLAIN, ""]
        lines += markdown_table(
            ["name", "plain mean", "definition"],
            [
                [d.name, notes.mark(d.reason) if d.value is None else format_score(d.value, 100.0), d.formula]
                for d in summary.plain_means
            ],
        )
    lines += ["", *routing]
    if notes.reasons:
        lines += [f"[{number}] {reason}.  " for number, reason in enumerate(notes.reasons, start=1)] + [""]
    if summary.parameters:
        lines += ["## Parameters by owner", ""]
        kinds = list(dict.fromkeys(kind for counts in summary.parameters.values() for kind in counts))
        owners = [[o, *(f"{counts.get(k, 0):,}" for k in kinds)] for o, counts in summary.parameters.items()]
        total = [f"{sum(counts.get(k, 0) for counts in summary.parameters.values()):,}" for k in kinds]
        lines += [*markdown_table(["owner", *kinds], [*owners, ["total", *total]]), ""]
    for title, entries in (("Notes", summary.notes), ("Skipped samples", summary.skipped)):
        if entries:
            lines += [f"## {title}", "", *(f"* {_cell(entry)}" for entry in entries), ""]
    return "\n".join(lines)
