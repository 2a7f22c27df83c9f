"""One MUSIC-AVQA question file: rows with filled templates, what is wrong with them, and the majority answer per template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avcl_avqa.metrics import TYPES, type_index
from avcl_avqa.vocabulary import LONGEST, Vocabulary
from avcl_core.data.problems import Problem, broken
from avcl_core.data.records import AnnotationFile, refuse_errors
from avcl_core.errors import nearest

SECONDS = 10
"""Seconds (and frames) taken of a video."""
MARKS = ("?", "？")
"""What a question ends with: the plain or the full-width question mark."""
NAMED = 10
"""Ids that a message names."""


@dataclass(frozen=True)
class Row:
    """One question about one video.

    Attributes:
        type: (modality, kind), one of :data:`avcl_avqa.metrics.TYPES`.
        question: the text with its template filled and without blanks at the end.
        answer: as written.
        template: the text before filling, without blanks at the end.
        words: the question's tokens (tasks.md 4.2), at most 14.
    """

    question_id: int
    video_id: str
    type: tuple[str, str]
    question: str
    answer: str
    template: str
    words: tuple[str, ...]


def load_annotations(json: str | Path) -> list[Row]:
    """Return the rows of a question file in file order, templates filled; rows that are marked as deleted are left out.

    Raises:
        DataError: the file is missing or malformed; names file, question_id, field, found and expected value.
    """
    file = AnnotationFile(Path(json))
    rows = read_rows(file)
    refuse_errors(file.problems)
    return rows


def answer_vocabulary(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the distinct answers in order of first appearance, for a data set of your own; MUSIC-AVQA's list is frozen."""
    return tuple(dict.fromkeys(row.answer for row in rows))


def template_majority(fit: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """Return, for every row, the most frequent answer to its template in ``fit`` (ties: first seen).

    A template that ``fit`` does not have gets the most frequent answer overall (tasks.md 4.7).

    Raises:
        ValueError: ``fit`` is empty.
    """
    if not fit:
        raise ValueError("no rows to count answers in")
    counts: dict[str, Counter[str]] = {}
    for row in fit:
        counts.setdefault(row.template, Counter())[row.answer] += 1
    overall = Counter(row.answer for row in fit)
    return [counts.get(row.template, overall).most_common(1)[0][0] for row in rows]


def read_rows(file: AnnotationFile) -> list[Row]:
    """Return the well-formed rows of a question file; everything else is recorded in ``file.problems``.

    Raises:
        DataError: the file is missing, empty, not UTF-8, or not a JSON list.
    """
    text = "\n".join(line for _, line in file.lines())
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise broken(
            file.path,
            "content",
            error.msg,
            "a JSON list of questions",
            "put the published file there",
            f"line {error.lineno}",
        ) from None
    if not isinstance(entries, list) or not entries:
        found = f"{len(entries)} questions" if isinstance(entries, list) else f"a JSON {type(entries).__name__}"
        raise broken(file.path, "content", found, "a JSON list of questions", "put the published file there")
    rows, deleted = [], []
    for place, entry in enumerate(entries, start=1):
        reader = _Entry(file, place, entry)
        if reader.deleted:
            deleted.append(reader.id)
        elif (row := reader.row()) is not None:
            rows.append(row)
    if deleted:
        found = f"{len(deleted)} questions with a value other than 0: {named(deleted)}"
        file.note(None, "question_deleted", found, "0", "nothing to do: they are left out", "warning")
    repeated = [question for question, count in Counter(row.question_id for row in rows).items() if count > 1]
    if repeated:
        found = f"{len(repeated)} ids occur more than once: {named(repeated)}"
        file.note(None, "question_id", found, "each id once", "nothing to do: all rows are kept", "warning")
    return rows


def check_words(file: AnnotationFile, rows: Sequence[Row], vocabulary: Vocabulary) -> None:
    """Record every word and every answer that the vocabulary does not have, with the nearest that it has."""
    words, answers = set(vocabulary.words), set(vocabulary.answers)
    for row in rows:
        for word in row.words:
            if word not in words:
                _note(file, row.question_id, "question_content", repr(word), "a known word", word, vocabulary.words)
        if row.answer not in answers:
            _note(file, row.question_id, "anser", repr(row.answer), "a known answer", row.answer, vocabulary.answers)


def named(ids: Sequence[Any]) -> str:
    """Return the first ids of a list as text."""
    return ", ".join(str(id) for id in ids[:NAMED]) + (", …" if len(ids) > NAMED else "")


def _note(
    file: AnnotationFile, id: int, field: str, found: str, expected: str, value: str, known: Sequence[str]
) -> None:
    action = f"correct the row or the word list beside the file{nearest(value, list(known))}"
    file.problems.append(Problem(str(file.path), f"question_id {id}", field, found, expected, action))


class _Entry:
    """Parses one JSON object; every field that is wrong is recorded under its question id."""

    def __init__(self, file: AnnotationFile, place: int, entry: Any) -> None:
        self.file, self.place = file, place
        self.entry = entry if isinstance(entry, dict) else {}
        if not isinstance(entry, dict):
            self.wrong("item", f"a JSON {type(entry).__name__}", "a JSON object")
        self.is_object = isinstance(entry, dict)

    @property
    def id(self) -> Any:
        return self.entry.get("question_id")

    @property
    def deleted(self) -> bool:
        return self.entry.get("question_deleted", 0) != 0

    def wrong(self, field: str, found: str, expected: str, action: str = "correct the row") -> None:
        record = f"item {self.place}" if self.id is None else f"item {self.place}, question_id {self.id}"
        self.file.problems.append(Problem(str(self.file.path), record, field, found, expected, action))

    def row(self) -> Row | None:
        if not self.is_object:
            return None
        before = len(self.file.problems)
        id, video, kind, answer = self.number(), self.text("video_id"), self.kind(), self.answer()
        content, values = self.text("question_content"), self.strings("templ_values")
        if content is None or values is None:
            return None
        template = content.rstrip()
        words = self.words(template, values)
        if (
            len(self.file.problems) > before
            or id is None
            or video is None
            or kind is None
            or answer is None
            or words is None
        ):
            return None
        return Row(id, video, kind, " ".join(words) + template[-1], answer, template, words)

    def number(self) -> int | None:
        if isinstance(self.id, int) and not isinstance(self.id, bool):
            return self.id
        self.wrong("question_id", repr(self.id), "an integer")
        return None

    def text(self, field: str) -> str | None:
        value = self.entry.get(field)
        if isinstance(value, str) and value.strip():
            return value
        self.wrong(field, "nothing" if value is None else repr(value), "a text")
        return None

    def answer(self) -> str | None:
        """The answer, under the published spelling ``anser`` or the right one."""
        written = {name: self.entry[name] for name in ("anser", "answer") if name in self.entry}
        if not written:
            self.wrong("anser", "neither anser nor answer", "one of them")
            return None
        if len(set(map(repr, written.values()))) > 1:
            self.wrong("anser", f"{written['anser']!r}, but answer {written['answer']!r}", "one answer")
            return None
        return self.text(next(iter(written)))

    def strings(self, field: str) -> list[str] | None:
        """A JSON list of texts that is written as a text."""
        raw = self.entry.get(field)
        try:
            values = json.loads(raw) if isinstance(raw, str) else None
        except json.JSONDecodeError:
            values = None
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            return values
        self.wrong(field, "nothing" if raw is None else repr(raw), "a JSON list of texts, written as a text")
        return None

    def kind(self) -> tuple[str, str] | None:
        values = self.strings("type")
        if values is None:
            return None
        try:
            return TYPES[type_index(values)]
        except ValueError:
            known = [" ".join(pair) for pair in TYPES]
            close = nearest(" ".join(values), known)
            self.wrong("type", repr(self.entry["type"]), "one of the nine question types", f"correct the row{close}")
            return None

    def words(self, template: str, values: Sequence[str]) -> tuple[str, ...] | None:
        """Tokens of the filled question: split at single blanks, the question mark dropped, placeholders replaced in order."""
        if not template.endswith(MARKS):
            self.wrong("question_content", repr(template), "a question that ends with ? or ？")
            return None
        tokens = template[:-1].split(" ")
        gaps = sum("<" in token for token in tokens)
        if gaps != len(values):
            self.wrong("templ_values", f"{len(values)} values", f"{gaps}, one for each <…> of {template!r}")
            return None
        left = iter(values)
        words = tuple(next(left) if "<" in token else token for token in tokens)
        if len(words) > LONGEST:
            self.wrong("question_content", f"{len(words)} words", f"at most {LONGEST}", "shorten the question")
            return None
        return words
