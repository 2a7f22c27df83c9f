"""What is left of each score when a modality is missing or corrupted: the record of ``robustness.json``, and its table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_serializer

from avcl_core.data.corruptions import CLEAN
from avcl_core.errors import IntegrityError
from avcl_core.evaluation.matrix import encode_number
from avcl_core.evaluation.table import DASH, format_score, markdown_table

if TYPE_CHECKING:
    from avcl_core.evaluation.evaluator import Evaluation
    from avcl_core.task import Task

FORMAT = 2
"""Counts changes of the file and of what corruptions do: results of another format are not compared."""
CLEAN_TITLE = "clean samples"
FILE = Path("evaluations", "robustness", "robustness.json")
"""Where a run folder has the record of its last commit and test splits, which its report shows."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=True)


class Score(_Record):
    """One test set under one corruption; ``weights``: tower → kind of expert → mean weight that routers gave to experts of it."""

    metrics: dict[str, float]
    controls: dict[str, dict[str, float]]
    weights: dict[str, dict[str, float]] = {}

    @field_serializer("metrics", when_used="json")
    def _metrics(self, values: dict[str, float]) -> dict[str, Any]:
        return {name: encode_number(value) for name, value in values.items()}

    @field_serializer("controls", when_used="json")
    def _controls(self, values: dict[str, dict[str, float]]) -> dict[str, Any]:
        return {control: self._metrics(metrics) for control, metrics in values.items()}


class TestEntry(_Record):
    """What the scores of a test set mean; ``unchanged``: its inputs that no corruption changes. ``__test__`` stops pytest."""

    __test__ = False
    name: str
    task: str
    primary: str
    ideal: float
    samples: int
    oracles: list[str]
    unchanged: list[str]


class Finished(_Record):
    """One corruption (or ``clean``) on all test sets."""

    corruption: str
    title: str
    scores: dict[str, Score]


class Robustness(_Record):
    """A run under corruptions.

    Attributes:
        digest: of the commit, the split and what prediction sees: results of one digest can be compared.
        commit: tag of the commit, ``when``: where in the stream it was made, such as ``after ave``.
        split: another split than that of the test sets, or ``None``.
        modalities: what prediction sees without corruption.
        stored: test set → metrics that the run itself stored, where clean samples score differently here: on another device, with
            another number of threads or another build of torch.
    """

    format: int
    digest: str
    commit: str
    when: str
    split: str | None
    modalities: list[str]
    tests: list[TestEntry]
    results: list[Finished]
    stored: dict[str, dict[str, float]] = {}

    @field_serializer("stored", when_used="json")
    def _stored(self, values: dict[str, dict[str, float]]) -> dict[str, Any]:
        return {test: {name: encode_number(value) for name, value in found.items()} for test, found in values.items()}

    def find(self, corruption: str) -> Finished | None:
        """Return the result of a corruption by its text form."""
        return next((found for found in self.results if found.corruption == corruption), None)

    def value(self, corruption: str, test: TestEntry) -> float:
        """Return the primary metric."""
        found = self.find(corruption)
        assert found is not None
        return found.scores[test.name].metrics[test.primary]

    def difference(self, corruption: str, test: TestEntry) -> float | None:
        """Return the primary metric minus that of the clean samples; ``None`` where there is none or it is undefined."""
        if self.find(CLEAN) is None:
            return None
        found = self.value(corruption, test) - self.value(CLEAN, test)
        return found if math.isfinite(found) else None

    def controls(self, test: TestEntry) -> dict[str, float]:
        """Return trivial predictor → primary metric; predictions dealt out to other samples are those of clean ones."""
        found = self.find(CLEAN)
        known = {} if found is None else found.scores[test.name].controls
        return {name: values[test.primary] for name, values in known.items() if name not in test.oracles}

    def beaten(self, corruption: str, test: TestEntry) -> bool:
        """Whether the score is above every trivial predictor."""
        return all(self.value(corruption, test) > value for value in self.controls(test).values() if value == value)

    def weighed(self) -> dict[str, dict[str, list[str]]]:
        """Return test set → tower → kinds of experts, where routers told their weights."""
        clean = self.find(CLEAN)
        scores = {} if clean is None else clean.scores
        return {test: {t: list(k) for t, k in score.weights.items()} for test, score in scores.items() if score.weights}


def score_of(evaluation: Evaluation) -> Score:
    """Return what the record keeps of an evaluation."""
    totals = (evaluation.usage or {}).get("total", {})
    return Score(
        metrics=dict(evaluation.metrics),
        controls={name: dict(values) for name, values in evaluation.controls.items()},
        weights={tower: kinds for tower, total in totals.items() if (kinds := expert_kinds(total))},
    )


def expert_kinds(total: Mapping[str, Any]) -> dict[str, float]:
    """Return kind of expert → its share of the router's weight; ``cross 0`` and ``cross 1`` are of the kind ``cross``."""
    kinds: dict[str, float] = {}
    for name, weight in zip(total.get("experts", ()), total.get("gates", ()), strict=False):
        kind = name.rstrip("0123456789").strip() or name
        kinds[kind] = kinds.get(kind, 0.0) + float(weight)
    return kinds


def test_entry(name: str, task: Task, samples: int, unchanged: list[str]) -> TestEntry:
    """Return the entry of a test set."""
    return TestEntry(
        name=name,
        task=task.name,
        primary=task.primary,
        ideal=task.ideal,
        samples=samples,
        oracles=sorted(task.oracles),
        unchanged=unchanged,
    )


def read_robustness(path: Path) -> Robustness | None:
    """Read a record; ``None`` where there is no file.

    Raises:
        IntegrityError: the file is no record.
    """
    if not path.is_file():
        return None
    try:
        return Robustness.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "(whole)"
        raise IntegrityError(
            f"{path}: field {place}: {first['msg']}; remove the file and evaluate the corruptions again"
        ) from error


def write_robustness(record: Robustness, method: str) -> str:
    """Return ``table.md``: the primary metric of every test set under every corruption, beside the trivial predictors."""
    lines = [
        "# Missing and corrupted modalities",
        "",
        f"Method {method}, {record.when} (commit {record.commit}), {record.split or 'test'} split. Each test set's primary "
        "metric and, in brackets, the difference to clean samples; larger is better.",
        "",
    ]
    header = ["corruption", *(f"{test.name} ({test.primary})" for test in record.tests)]
    rows, low = [], False
    for found in record.results:
        row = [f"{found.title} (`{found.corruption}`)"]
        for test in record.tests:
            value, change = record.value(found.corruption, test), record.difference(found.corruption, test)
            text = format_score(value, test.ideal)
            if found.corruption != CLEAN:
                text += f" ({DASH if change is None else signed(change, test.ideal)})"
            if not record.beaten(found.corruption, test):
                text, low = f"{text} †", True
            row.append(text)
        rows.append(row)
    for name in dict.fromkeys(name for test in record.tests for name in record.controls(test)):
        cells = (record.controls(test).get(name) for test in record.tests)
        rows.append([f"*{name}*", *(format_score(v, t.ideal) for v, t in zip(cells, record.tests, strict=True))])
    lines += [*markdown_table(header, rows), ""]
    lines.append("Rows in italics are trivial predictors on the clean samples.")
    if low:
        lines.append("† not above the best of them.")
    lines += [note for note in (unchanged_note(record), stored_note(record)) if note]
    weighed = record.weighed()
    if weighed:
        lines += ["", "## Mean router weight by kind of expert", ""]
        columns = [(s, t, k) for s, towers in weighed.items() for t, kinds in towers.items() for k in kinds]
        body = []
        for found in record.results:
            weights = (found.scores[s].weights.get(t, {}).get(k) for s, t, k in columns)
            body.append([found.title, *(DASH if w is None else f"{w:.3f}" for w in weights)])
        lines += markdown_table(["corruption", *(f"{s}: {t}, {k}" for s, t, k in columns)], body)
    return "\n".join([*lines, ""])


def unchanged_note(record: Robustness) -> str:
    """Return a sentence on inputs that no corruption changes, empty where there are none."""
    names = [f"{name} of {test.name}" for test in record.tests for name in test.unchanged]
    return f"As stored under noise, blur and occlusion: {', '.join(names)}." if names else ""


def stored_note(record: Robustness) -> str:
    """Return a sentence on clean samples that score differently from what the run stored, empty where there are none."""
    clean = record.find(CLEAN)
    if clean is None or not record.stored:
        return ""
    tests = {test.name: test for test in record.tests}
    found = [
        f"{name}: {differing(clean.scores[name].metrics, values, tests[name].primary, tests[name].ideal)}"
        for name, values in record.stored.items()
    ]
    return f"Not what the run stored: {'; '.join(found)}. Differences above are to the clean samples as scored here."


def differing(here: Mapping[str, float], stored: Mapping[str, float], primary: str, ideal: float) -> str:
    """Return how two sets of metrics differ: the primary metric if it does, else the first one, and how many more."""
    names = [primary, *sorted({*here, *stored} - {primary})]
    unequal = [n for n in names if n not in here or n not in stored or not _same(here[n], stored[n])]
    if not unequal:
        return "the same metrics, another primary one"
    name, *more = unequal
    texts: Sequence[str] = [format_score(values.get(name), ideal) for values in (here, stored)]
    if texts[0] == texts[1]:
        texts = [str(values.get(name)) for values in (here, stored)]
    others = f" (and {len(more)} more metrics)" if len(more) > 1 else " (and one more metric)" if more else ""
    return f"clean samples scored {texts[0]} here, the run stored {texts[1]} {name}{others}"


def _same(one: float, other: float) -> bool:
    return encode_number(one) == encode_number(other)


def signed(change: float, ideal: float) -> str:
    """Return a difference with its sign, at the precision of its score."""
    text = format_score(change, ideal)
    return text.replace("-", "−") if text.startswith("-") else f"+{text}"
