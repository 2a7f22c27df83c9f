"""All question files of a data set together: which release, the word lists beside them, and what is wrong across splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from avcl_avqa.data import Row, check_words, named, read_rows
from avcl_avqa.vocabulary import Vocabulary, vocabulary_beside
from avcl_core.data.atomic import sha256_of
from avcl_core.data.problems import Problem
from avcl_core.data.records import AnnotationFile

SPLITS = ("train", "val", "test")
Release = Literal["updated", "original"]
FOLDERS: dict[Release, str] = {"updated": "json_update", "original": "json"}
"""Release → folder of its question files."""


def question_files(folder: Path) -> dict[str, Path]:
    """Return split → question file in the folder of a release."""
    return {split: folder / f"avqa-{split}.json" for split in SPLITS}


@dataclass(frozen=True)
class Annotations:
    """The well-formed rows of every split, the vocabulary that they are written in, and the findings of reading them."""

    splits: Mapping[str, tuple[Row, ...]]
    vocabulary: Vocabulary
    problems: tuple[Problem, ...]
    files: Mapping[str, Path]

    def videos(self, split: str) -> tuple[str, ...]:
        """Return the video ids of a split, each once, in file order."""
        return tuple(dict.fromkeys(row.video_id for row in self.splits[split]))

    @property
    def overlaps(self) -> str:
        """How many videos splits share (nothing where none does): MUSIC-AVQA is split by question, not by video."""
        ids = {split: set(self.videos(split)) for split in SPLITS}
        pairs = (("val", "test"), ("train", "val"), ("train", "test"))
        shared = {(a, b): len(ids[a] & ids[b]) for a, b in pairs}
        return "; ".join(
            f"{count} of {len(ids[a])} {a} videos are also {b} videos" for (a, b), count in shared.items() if count
        )

    @property
    def identity(self) -> str:
        """Name, size and digest of the question files: numbers of different files are never compared."""
        parts = [f"{p.name} {p.stat().st_size} bytes sha256 {sha256_of(p)[:12]}" for p in self.files.values()]
        return ", ".join(parts)


def read_annotations(folder: Path) -> Annotations:
    """Read the three question files of a release and the word lists beside them; nothing is raised."""
    vocabulary, lists = vocabulary_beside(folder)
    paths = question_files(folder)
    files = {split: AnnotationFile(path) for split, path in paths.items()}
    splits = {split: file.collect(read_rows) for split, file in files.items()}
    for split, file in files.items():
        check_words(file, splits[split], vocabulary)
    _check_splits(files, splits)
    problems = [problem for file in (*lists, *files.values()) for problem in file.problems]
    found = Annotations({s: tuple(rows) for s, rows in splits.items()}, vocabulary, tuple(problems), paths)
    if not found.overlaps:
        return found
    expected, action = "videos of one split only", "nothing to do: questions are split, not videos"
    warning = Problem(str(folder), "", "video_id", found.overlaps, expected, action, "warning")
    return replace(found, problems=(*problems, warning))


def _check_splits(files: Mapping[str, AnnotationFile], splits: Mapping[str, list[Row]]) -> None:
    """Record the question ids that two splits have: a question is learnt or judged, never both."""
    seen: dict[int, str] = {}
    for split in SPLITS:
        shared: dict[str, list[int]] = {}
        for id in dict.fromkeys(row.question_id for row in splits[split]):
            if id in seen:
                shared.setdefault(seen[id], []).append(id)
        for other, ids in shared.items():
            found = f"{len(ids)} ids that {files[other].path.name} has too: {named(ids)}"
            files[split].note(
                None, "question_id", found, "each question in one split", "remove it from one of the files"
            )
        seen |= {row.question_id: split for row in splits[split]}
