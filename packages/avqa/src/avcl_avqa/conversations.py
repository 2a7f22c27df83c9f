"""Conversation files (LLaVA style): one human turn with media markers and one answer per record (avqacl_moe.md 5.1, 5.4)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from avcl_avqa.benchmarks import SPLIT_AVQA, SPLIT_MUSIC, Source, source_of
from avcl_avqa.json_records import Entry, kind, read_entries, shown
from avcl_avqa.media_paths import MediaPaths, resolve
from avcl_avqa.open_records import Media, OpenQuestion
from avcl_core.data.records import AnnotationFile, refuse_errors
from avcl_core.errors import nearest

FRAMES = 8
"""Images that stand for a video."""
MARKERS = {"<video>": "video", "<audio>": "voice", "<image>": "image"}
"""Marker in the text → field of the record that it stands for."""
TYPES = (*SPLIT_AVQA.types, *SPLIT_MUSIC.types)
"""Question types that a file may be named after."""
_ROLES = ("human", "gpt")
_MARKER = re.compile(f"(?:{'|'.join(MARKERS)})\n?")


def load_conversations(
    path: str | Path, media: MediaPaths, source: Source | None = None, types: Sequence[str] = TYPES
) -> list[OpenQuestion]:
    """Return the questions of a conversation file in file order, their media resolved and all there.

    Args:
        media: the path rule.
        source: split and question type of the file; by default what its name says (``<split>_<Type>.json``).
        types: the question types that a name may say.

    Raises:
        DataError: the file is missing or malformed, a placeholder path is left, or media are missing.
    """
    file = AnnotationFile(Path(path))
    source = source_of(file.path, types) if source is None else source
    questions = resolve(file, read_conversations(file, source), media)
    refuse_errors(file.problems)
    return questions


def read_conversations(file: AnnotationFile, source: Source) -> list[OpenQuestion]:
    """Return the well-formed records, paths as written; everything else is recorded in ``file.problems``.

    Raises:
        DataError: the file is missing, empty, not UTF-8, or not a JSON list.
    """
    questions: list[OpenQuestion] = []
    first: dict[str, int] = {}
    for entry in read_entries(file, "conversations", "id"):
        id = entry.text("id")
        question = _question(entry, id, source)
        if id is not None and first.setdefault(id, entry.position) != entry.position:
            entry.wrong("id", f"{id!r}, also at position {first[id]}", "each id once", "remove one of the records")
        elif question is not None:
            questions.append(question)
    return questions


def _question(entry: Entry, id: str | None, source: Source) -> OpenQuestion | None:
    before = len(entry.file.problems)
    turns, media = _turns(entry, source.split), _media(entry)
    if turns is not None:
        _check_markers(entry, turns)
    if len(entry.file.problems) > before or turns is None or id is None or media is None:
        return None
    question, answer = _MARKER.sub("", turns[0]).strip("\n"), turns[1]
    if not question.strip():
        entry.wrong("conversations[0].value", repr(turns[0]), "a question beside the markers")
        return None
    video = next((PurePosixPath(path).parent.name for path in media.paths), "")
    return OpenQuestion(id, video or id, question, answer, source.type, source.split, media=media)


def _turns(entry: Entry, split: str) -> tuple[str, str] | None:
    """The texts of the human turn and of the answer."""
    turns = entry.value.get("conversations")
    if not isinstance(turns, list):
        entry.wrong("conversations", shown(turns) if turns is None else kind(turns), "a list of two turns")
        return None
    roles = [turn.get("from") if isinstance(turn, dict) else None for turn in turns]
    if tuple(roles) != _ROLES:
        found = f"{len(turns)} turns: {', '.join(map(str, roles[:10]))}" if turns else "no turns"
        entry.wrong("conversations", found, "two turns: human, gpt")
        return None
    values: list[Any] = [turn.get("value") for turn in turns]
    for place, value in enumerate(values):
        if not isinstance(value, str):
            entry.wrong(f"conversations[{place}].value", shown(value), "a text")
            return None
    if split == "train" and not values[1].strip():
        entry.wrong("conversations[1].value", repr(values[1]), "an answer: the record is trained on")
        return None
    return values[0], values[1]


def _media(entry: Entry) -> Media | None:
    """The paths as written."""
    before = len(entry.file.problems)
    frames = entry.texts("video") if "video" in entry.value else ()
    voices = entry.texts("voice") if "voice" in entry.value else ()
    image = entry.text("image") if "image" in entry.value else None
    if frames is not None and "video" in entry.value:
        folders = {str(PurePosixPath(path).parent) for path in frames}
        if len(frames) != FRAMES or len(set(frames)) != FRAMES:
            entry.wrong("video", f"{len(frames)} paths, {len(set(frames))} different", f"exactly {FRAMES}")
        elif len(folders) > 1:
            entry.wrong("video", f"paths in {len(folders)} folders", "frames in the one folder of their video")
    if voices is not None and "voice" in entry.value and len(voices) != 1:
        entry.wrong("voice", f"{len(voices)} paths", "exactly one")
    if len(entry.file.problems) > before or frames is None or voices is None:
        return None
    return Media(frames=frames, voice=voices[0] if voices else None, image=image)


def _check_markers(entry: Entry, turns: tuple[str, str]) -> None:
    """Record unknown markers, markers without their field, fields without their marker, markers that repeat or stand in the answer."""
    for unknown in sorted(set(re.findall(r"<[a-z_]+>", turns[0])) - set(MARKERS)):
        entry.wrong(
            "conversations[0].value",
            unknown,
            f"no other marker than {', '.join(MARKERS)}{nearest(unknown, list(MARKERS))}",
        )
    count = Counter(marker for marker in re.findall("|".join(MARKERS), turns[0]))
    for marker, field in MARKERS.items():
        there = field in entry.value
        if count[marker] != int(there):
            found = f"{marker} {count[marker]} times, {field} {'given' if there else 'not given'}"
            entry.wrong(
                f"conversations[0].value, {field}", found, "a marker once for each field of media, and no other"
            )
        if marker in turns[1]:
            entry.wrong("conversations[1].value", repr(turns[1]), f"an answer without {marker}")
