"""Judged accuracy: equal answers are right, a judge decides on the others, and what it did not decide is counted and shown (6.3)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from avcl_avqa.answers import exact_match
from avcl_avqa.judge_command import Failure, JudgeCommand, Verdict
from avcl_core.data.atomic import digest_of, write_chunks

Pred = Literal["yes", "no", "empty", "failed"]
CACHE = "verdicts.jsonl"
"""One verdict per line, by the digest of its inputs, in the folder of a run."""


@dataclass(frozen=True)
class Answered:
    """A question, its answer, and what was predicted."""

    id: str
    question: str
    answer: str
    predicted: str


@dataclass(frozen=True)
class Judged:
    """What became of one answer: right, wrong, ``empty`` (nothing was predicted) or ``failed`` (no verdict).

    ``score`` is 5 for an answer that is equal after stripping and lower-casing, else the judge's; none without a verdict.
    """

    pred: Pred
    score: int | None
    reason: str


@dataclass(frozen=True)
class JudgedAccuracy:
    """Counts of a test set, and the accuracy over both denominators."""

    yes: int
    no: int
    empty: int
    failed: int

    @property
    def decided(self) -> int:
        """The published denominator: answers with a yes or a no."""
        return self.yes + self.no

    @property
    def total(self) -> int:
        """All answers."""
        return self.decided + self.empty + self.failed

    @property
    def accuracy(self) -> float:
        """yes / (yes + no), as published; NaN if nothing was decided."""
        return self.yes / self.decided if self.decided else float("nan")

    @property
    def accuracy_of_all(self) -> float:
        """yes / all: empty and failed ones count as wrong; NaN without answers."""
        return self.yes / self.total if self.total else float("nan")

    def __str__(self) -> str:
        return (
            f"{100 * self.accuracy:.2f} % of {self.decided} judged ({100 * self.accuracy_of_all:.2f} % of all {self.total}; "
            f"{self.empty} empty, {self.failed} failed)"
        )


def judged_accuracy(judgements: Iterable[Judged]) -> JudgedAccuracy:
    """Return the counts of judged answers."""
    count = Counter(judged.pred for judged in judgements)
    return JudgedAccuracy(count["yes"], count["no"], count["empty"], count["failed"])


def judge_answers(
    answers: Sequence[Answered], judge: JudgeCommand, folder: Path, workers: int = 1
) -> dict[str, Judged]:
    """Return what became of each answer, by id in the order given.

    Verdicts are kept in ``folder`` as they come, by the digest of question, answer, prediction and judge, and are asked for once.
    Failures are not kept: the next call asks again.

    Args:
        folder: a folder of the run's own.
        workers: calls at the same time.

    Raises:
        ValueError: an id repeats.
        ConfigError: the judge cannot be started.
    """
    repeated = [id for id, times in Counter(item.id for item in answers).items() if times > 1]
    if repeated:
        raise ValueError(f"answers: {len(repeated)} ids repeat, the first {repeated[0]!r}; expected each once")
    settled = {item.id: found for item in answers if (found := _without_judge(item)) is not None}
    open_ones = {_digest(item, judge): item for item in answers if item.id not in settled}
    text = _text(folder / CACHE)
    verdicts: dict[str, Verdict | Failure] = {**_kept(text)}
    asked = [digest for digest in open_ones if digest not in verdicts]
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=workers) as pool, open(folder / CACHE, "a", encoding="utf-8") as cache:
        if text and not text.endswith("\n"):
            cache.write("\n")
        items = [open_ones[digest] for digest in asked]
        replies = pool.map(lambda item: judge.ask(item.question, item.answer, item.predicted), items)
        for digest, reply in zip(asked, replies, strict=True):
            verdicts[digest] = reply
            if isinstance(reply, Verdict):
                cache.write(_line(digest, reply))
                cache.flush()
    return {item.id: settled.get(item.id) or _judged(verdicts[_digest(item, judge)]) for item in answers}


def write_judgements(path: Path, answers: Sequence[Answered], judgements: Mapping[str, Judged]) -> tuple[int, str]:
    """Write id → [{score, pred, reason}, {question, answer, predicted}], atomically; returns (bytes, sha256).

    Beside yes and no, ``pred`` may be ``empty`` or ``failed``: no answer is left out.
    """
    record: dict[str, list[dict[str, Any]]] = {}
    for item in answers:
        found = judgements[item.id]
        verdict = {"score": found.score, "pred": found.pred, "reason": found.reason}
        asked = {"question": item.question, "answer": item.answer, "predicted": item.predicted}
        record[item.id] = [verdict, asked]
    return write_chunks(path, [(json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()])


def _without_judge(item: Answered) -> Judged | None:
    """What needs no judge: nothing predicted, and equal answers."""
    if not item.predicted.strip():
        return Judged("empty", None, "nothing was predicted")
    if exact_match(item.predicted, item.answer):
        return Judged("yes", 5, "equal to the answer")
    return None


def _judged(found: Verdict | Failure) -> Judged:
    if isinstance(found, Failure):
        return Judged("failed", None, found.reason)
    return Judged("yes" if found.pred == "yes" else "no", found.score, found.reason)


def _digest(item: Answered, judge: JudgeCommand) -> str:
    return digest_of([judge.identity, item.question, item.answer, item.predicted])


def _line(digest: str, found: Verdict) -> str:
    verdict = {"digest": digest, "score": found.score, "pred": found.pred, "reason": found.reason}
    return json.dumps(verdict, ensure_ascii=False) + "\n"


def _text(path: Path) -> str:
    """The content of a cache, if there is one; its last line may have been cut off when its process ended, within a letter too."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _kept(text: str) -> dict[str, Verdict]:
    """The verdicts of a cache; a line that was cut off is asked for again."""
    kept: dict[str, Verdict] = {}
    for line in text.split("\n"):
        try:
            value = json.loads(line)
            kept[value["digest"]] = Verdict(value["score"], value["pred"], value["reason"])
        except (ValueError, KeyError, TypeError):
            continue
    return kept
