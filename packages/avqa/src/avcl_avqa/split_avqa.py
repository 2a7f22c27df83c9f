"""Split-AVQA's question files (AVQACL, CVPR 2025): four question types, each record with one VGG-Sound label (5.2)."""

from __future__ import annotations

from pathlib import Path

from avcl_avqa.benchmarks import SPLIT_AVQA, Source, source_of
from avcl_avqa.json_records import Entry, read_entries, shown
from avcl_avqa.open_records import Media, Numbering, OpenQuestion, listed
from avcl_avqa.partition import Partition, check_labels
from avcl_core.data.records import AnnotationFile, refuse_errors
from avcl_core.errors import nearest

WRITTEN = {name.replace("_", " "): name for name in SPLIT_AVQA.types}
"""Question type as records write it → as files and experiences are named."""
SUFFIX = "_trimmed"
"""What every video's name has behind its YouTube id."""
ENDING = SUFFIX + ".mp4"


def load_split_avqa(
    path: str | Path, partition: Partition | None = None, source: Source | None = None
) -> list[OpenQuestion]:
    """Return the questions of a file in file order.

    Args:
        partition: the label groups; with one, every label must be in it.
        source: split and question type of the file; by default what its name says (``<split>_<Type>.json``).

    Raises:
        DataError: the file is missing or malformed; names file, position and id, field, found and expected value.
    """
    file = AnnotationFile(Path(path))
    source = source_of(file.path, SPLIT_AVQA.types) if source is None else source
    questions = read_split_avqa(file, source, partition)
    refuse_errors(file.problems)
    return questions


def read_split_avqa(file: AnnotationFile, source: Source, partition: Partition | None = None) -> list[OpenQuestion]:
    """Return the well-formed records; everything else is recorded in ``file.problems``.

    Raises:
        DataError: the file is missing, empty, not UTF-8, or not a JSON list.
    """
    numbered = Numbering()
    questions = []
    for entry in read_entries(file, "questions", "id"):
        question = _question(entry, source, partition, numbered)
        if question is not None:
            questions.append(question)
    note_repeats(file, "id", numbered)
    return questions


def note_repeats(file: AnnotationFile, field: str, numbered: Numbering) -> None:
    """Warn of ids that occur more than once."""
    if numbered.repeated:
        found = f"{len(numbered.repeated)} ids occur more than once: {listed(numbered.repeated)}"
        action = "nothing to do: all are kept, the second of an id as <id>#2"
        file.note(None, field, found, "each id once", action, "warning")


def _question(entry: Entry, source: Source, partition: Partition | None, numbered: Numbering) -> OpenQuestion | None:
    before = len(entry.file.problems)
    id, name = entry.integer("id"), entry.text("video_name")
    question, label = entry.text("question_text"), entry.text("label")
    answer = answer_of(entry, "answer", source.split)
    _check_type(entry, source)
    if name is not None and not (name.endswith(ENDING) and len(name) > len(ENDING)):
        entry.wrong("video_name", repr(name), f"<YouTube id>{ENDING}")
    if label is not None and partition is not None:
        check_labels(entry, (label,), partition)
    if len(entry.file.problems) > before or name is None or question is None or label is None or answer is None:
        return None
    video = name.removesuffix(ENDING)
    return OpenQuestion(
        numbered(str(id)), video, question, answer, source.type, source.split, (label,), Media(name=name)
    )


def answer_of(entry: Entry, field: str, split: str) -> str | None:
    """Return the answer as written; an empty one is recorded where it would be trained on."""
    value = entry.value.get(field)
    if isinstance(value, str) and (value.strip() or split != "train"):
        return value
    entry.wrong(field, shown(value), "an answer")
    return None


def _check_type(entry: Entry, source: Source) -> None:
    written = entry.text("question_type")
    if written is None:
        return
    if written not in WRITTEN:
        known = nearest(written, list(WRITTEN))
        entry.wrong("question_type", repr(written), f"one of {', '.join(WRITTEN)}", f"correct the record{known}")
    elif WRITTEN[written] != source.type:
        entry.wrong("question_type", repr(written), f"{source.type}, as the file is said to be", "move the record")
