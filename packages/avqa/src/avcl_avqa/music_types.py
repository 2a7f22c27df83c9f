"""The five question-type experiences of Split-MUSIC-AVQA from MUSIC-AVQA's own files: audio-visual questions on real videos (5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avcl_avqa.annotations import SPLITS, question_files
from avcl_avqa.data import Row, read_rows
from avcl_avqa.open_records import Media, Numbering, OpenQuestion, shared_keys
from avcl_avqa.split_music import MODALITY
from avcl_core.data.problems import Problem
from avcl_core.data.records import AnnotationFile, refuse_errors


@dataclass(frozen=True)
class MusicQuestions:
    """The audio-visual questions of real videos, and where they were found.

    Attributes:
        questions: in split order, then file order; without instruments, which these files do not have.
        files: split → file that was read.
        note: which rule picked the real videos; for reports.
    """

    questions: tuple[OpenQuestion, ...]
    files: dict[str, Path]
    note: str


def load_music_types(folder: str | Path, splits: Sequence[str] = SPLITS) -> MusicQuestions:
    """Return the audio-visual questions of a release's folder.

    A split is read from ``avqa-<split>_real.json`` where that is there. Otherwise it is ``avqa-<split>.json`` without the synthetic
    videos: the ids of real ones are digits, those of synthetic ones begin with letters. (On the original release that leaves 2,080
    validation and 4,165 test questions; Split-MUSIC-AVQA has 2,079 and 4,160.)

    Args:
        folder: ``json`` or ``json_update`` of MUSIC-AVQA.
        splits: the splits to read.

    Raises:
        DataError: a file is missing or malformed, or a question is in two splits.
    """
    folder = Path(folder)
    files: dict[str, Path] = {}
    problems: list[Problem] = []
    questions: list[OpenQuestion] = []
    for split in splits:
        whole = question_files(folder)[split]
        real = whole.with_name(f"{whole.stem}_real.json")
        files[split] = real if real.is_file() else whole
        file = AnnotationFile(files[split])
        rows = file.collect(read_rows)
        problems += file.problems
        questions += _questions(rows, split)
    problems += shared_keys(questions, str(folder))
    refuse_errors(problems)
    parts = [f"{path.name}{'' if path.stem.endswith('_real') else ' (digit ids only)'}" for path in files.values()]
    return MusicQuestions(tuple(questions), files, f"{MODALITY} questions of {', '.join(parts)}")


def _questions(rows: Sequence[Row], split: str) -> list[OpenQuestion]:
    numbered = Numbering()
    return [
        OpenQuestion(
            numbered(str(row.question_id)),
            row.video_id,
            row.question,
            row.answer,
            row.type[1],
            split,
            media=Media(name=f"{row.video_id}.mp4"),
        )
        for row in rows
        if row.type[0] == MODALITY and row.video_id.isdigit()
    ]
