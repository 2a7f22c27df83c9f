"""Split-MUSIC-AVQA's question files (AVQACL, CVPR 2025): audio-visual questions with slots and the video's instruments (5.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from avcl_avqa.benchmarks import SPLIT_MUSIC, Source, source_of
from avcl_avqa.json_records import Entry, read_entries
from avcl_avqa.open_records import Media, Numbering, OpenQuestion
from avcl_avqa.partition import Partition, check_labels
from avcl_avqa.split_avqa import answer_of, note_repeats
from avcl_core.data.records import AnnotationFile, refuse_errors
from avcl_core.errors import nearest

MODALITY = "Audio-Visual"
"""The first half of every question's type."""
SLOTS = ("<Object>", "<LR>", "<FL>", "<LL>", "<TH>", "<BA>")
"""Slots of templates: instrument, side, first or last, loudness, ordinal, before or after."""
_SLOT = re.compile(r"<[^<>]*>")


def load_split_music(
    path: str | Path, partition: Partition | None = None, source: Source | None = None
) -> list[OpenQuestion]:
    """Return the questions of a file in file order, slots filled.

    Args:
        partition: the label groups; with one, every instrument must be in it.
        source: split and question type of the file; by default what its name says (``<split>_<Type>.json``).

    Raises:
        DataError: the file is missing or malformed; names file, position and id, field, found and expected value.
    """
    file = AnnotationFile(Path(path))
    source = source_of(file.path, SPLIT_MUSIC.types) if source is None else source
    questions = read_split_music(file, source, partition)
    refuse_errors(file.problems)
    return questions


def read_split_music(file: AnnotationFile, source: Source, partition: Partition | None = None) -> list[OpenQuestion]:
    """Return the well-formed records; everything else is recorded in ``file.problems``.

    Ids repeat in the published files, with the same or another answer; all such records are kept.

    Raises:
        DataError: the file is missing, empty, not UTF-8, or not a JSON list.
    """
    numbered = Numbering()
    questions = []
    for entry in read_entries(file, "questions", "question_id"):
        question = _question(entry, source, partition, numbered)
        if question is not None:
            questions.append(question)
    note_repeats(file, "question_id", numbered)
    return questions


def fill(template: str, values: Sequence[str]) -> str:
    """Return a template with its slots replaced by ``values`` from left to right, blanks at the end removed.

    Raises:
        ValueError: there are more or fewer values than slots, or a slot is unknown.
    """
    slots = _SLOT.findall(template)
    unknown = [slot for slot in slots if slot not in SLOTS]
    if unknown:
        raise ValueError(f"unknown slot {unknown[0]}")
    if len(slots) != len(values):
        raise ValueError(f"{len(values)} values for {len(slots)} slots")
    left = iter(values)
    return _SLOT.sub(lambda _: next(left), template).rstrip()


def _question(entry: Entry, source: Source, partition: Partition | None, numbered: Numbering) -> OpenQuestion | None:
    before = len(entry.file.problems)
    id, video, template = entry.integer("question_id"), entry.text("video_id"), entry.text("question_content")
    values, labels = entry.written_texts("templ_values"), entry.texts("label")
    answer = answer_of(entry, _answer_field(entry), source.split)
    _check_type(entry, source)
    deleted = entry.value.get("question_deleted", 0)
    if deleted != 0:
        entry.wrong("question_deleted", repr(deleted), "0", "remove the record")
    if labels is not None and not labels:
        entry.wrong("label", "an empty list", "at least one instrument, which says the step of the question")
    if labels and partition is not None:
        check_labels(entry, labels, partition)
    question = None if template is None or values is None else _filled(entry, template, values)
    if len(entry.file.problems) > before or video is None or question is None or labels is None or answer is None:
        return None
    media = Media(name=f"{video}.mp4")
    return OpenQuestion(numbered(str(id)), video, question, answer, source.type, source.split, labels, media)


def _answer_field(entry: Entry) -> str:
    """The published spelling ``anser``, or the right one where only that is there."""
    return "answer" if "answer" in entry.value and "anser" not in entry.value else "anser"


def _filled(entry: Entry, template: str, values: Sequence[str]) -> str | None:
    try:
        return fill(template, values)
    except ValueError as error:
        field = "question_content" if "unknown" in str(error) else "templ_values"
        entry.wrong(field, str(error), f"one value for each slot of {template!r}; slots are {', '.join(SLOTS)}")
        return None


def _check_type(entry: Entry, source: Source) -> None:
    pair = entry.written_texts("type")
    if pair is None:
        return
    if len(pair) != 2 or pair[0] != MODALITY or pair[1] not in SPLIT_MUSIC.types:
        known = [f"{MODALITY} {name}" for name in SPLIT_MUSIC.types]
        action = f"correct or remove the record{nearest(' '.join(pair), known)}"
        entry.wrong("type", " ".join(pair), f"{MODALITY} and one of {', '.join(SPLIT_MUSIC.types)}", action)
    elif pair[1] != source.type:
        entry.wrong("type", pair[1], f"{source.type}, as the file is said to be", "move the record")
