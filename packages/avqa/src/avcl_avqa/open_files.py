"""Where open-ended questions and their media lie: the benchmarks' own files or conversation files, told apart by what they hold."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from avcl_avqa.annotations import SPLITS
from avcl_avqa.benchmarks import SPLIT_AVQA, SPLIT_MUSIC, Benchmark, Source, source_of
from avcl_avqa.conversations import FRAMES, TYPES, read_conversations
from avcl_avqa.media_paths import MediaPaths, resolve
from avcl_avqa.open_records import OpenQuestion
from avcl_avqa.split_avqa import SUFFIX, read_split_avqa
from avcl_avqa.split_music import read_split_music
from avcl_core.data.layout import ClipSource, Layout, MediaFolders, find_clips
from avcl_core.data.problems import Problem, broken
from avcl_core.data.records import AnnotationFile

LAYOUT = "avqa_open"
SECONDS = {SPLIT_AVQA.name: 10, SPLIT_MUSIC.name: 60}
"""Length of a benchmark's videos."""
FOLDERS = ("", "json", "qa", "labels")
"""Where question files are looked for, below the data set's folder."""
MEDIA = MediaFolders(
    videos=("videos", "video"), frames=("frames", "frame"), waves=("audio_wave", "wave"), suffix=SUFFIX
)


@dataclass(frozen=True)
class QuestionFile:
    """The questions of one file, media as written, and what is wrong with it."""

    path: Path
    questions: tuple[OpenQuestion, ...]
    problems: tuple[Problem, ...]


def benchmark_of(types: Collection[str]) -> Benchmark:
    """Return the benchmark that has these question types.

    Raises:
        DataError: they are of different benchmarks.
    """
    for benchmark in (SPLIT_AVQA, SPLIT_MUSIC):
        if set(types) <= set(benchmark.types):
            return benchmark
    expected = " or ".join(", ".join(benchmark.types) for benchmark in (SPLIT_AVQA, SPLIT_MUSIC))
    raise broken("questions", "types", ", ".join(sorted(types)), expected, "keep each benchmark in a folder of its own")


def read_questions(path: Path, media: MediaPaths | None = None) -> QuestionFile:
    """Return the questions of ``<split>_<Type>.json``, whichever of the known forms it has.

    Args:
        media: the path rule with which media of conversations are found; without one paths stay as written.

    Raises:
        DataError: the file is missing, not JSON, or its name says no split and type.
    """
    file, source = AnnotationFile(path), source_of(path, TYPES)
    if _is_conversations(path):
        questions: Sequence[OpenQuestion] = read_conversations(file, source)
        if media is not None:
            questions = resolve(file, questions, media)
    else:
        questions = _benchmark_questions(file, source)
    return QuestionFile(path, tuple(questions), tuple(file.problems))


def _benchmark_questions(file: AnnotationFile, source: Source) -> list[OpenQuestion]:
    read = read_split_avqa if source.type in SPLIT_AVQA.types else read_split_music
    return read(file, source)


def _is_conversations(path: Path) -> bool:
    """Whether the first record is a conversation; a file that is no list of records is reported by its reader."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(records, list) and bool(records) and isinstance(records[0], dict) and "conversations" in records[0]
    )


def layout(root: Path, media_root: Path | None = None, path_rewrite: Sequence[tuple[str, str]] = ()) -> Layout:
    """Return the clips and question files below ``root``: ``<split>_<Type>.json`` there or in ``json/``, ``qa/`` or ``labels/``.

    Media of benchmark files are ``videos/<id>.mp4`` (or ``<id>_trimmed.mp4``), or ``frames/<id>/`` with ``audio_wave/<id>.npy``; those
    of conversation files are where they say, by the path rule. One clip per video, eight frames of each.

    Args:
        media_root, path_rewrite: as in :class:`avcl_avqa.media_paths.MediaPaths`.
    """
    root = Path(root)
    paths = next((found for name in FOLDERS if (found := _question_files(root / name))), {})
    if not paths:
        expected = f"{{{','.join(SPLITS)}}}_<Type>.json"
        return Layout(LAYOUT, (), {}, (Problem(str(root), "", "questions", "none", expected, "name the folder"),))
    files = [read_questions(path, MediaPaths(media_root, tuple(path_rewrite))) for path in paths.values()]
    problems = [problem for file in files for problem in file.problems]
    questions = [question for file in files for question in file.questions]
    seconds = SECONDS[benchmark_of({source_of(path, TYPES).type for path in paths.values()}).name]
    told = {q.video: q for q in questions if q.media.frames or q.media.voice}
    clips = [_told(question, seconds) for question in told.values()]
    named = dict.fromkeys(question.video for question in questions if question.video not in told)
    if named:
        found, missing = find_clips(root, named, MEDIA, "evenly", seconds)
        clips += [replace(clip, shots=FRAMES) for clip in found]
        problems += missing
    partitions = _partition_files(next(iter(paths.values())).parent) or _partition_files(root)
    return Layout(LAYOUT, tuple(clips), {**paths, **partitions}, tuple(problems))


def _question_files(folder: Path) -> dict[str, Path]:
    """Name without suffix → path of the question files in a folder."""
    found = sorted(path for split in SPLITS for path in folder.glob(f"{split}_*.json"))
    return {path.stem: path for path in found}


def _partition_files(folder: Path) -> dict[str, Path]:
    """Name without suffix → path of the partition files in a folder."""
    return {path.stem: path for path in sorted(folder.glob("task_partition_*.json"))}


def _told(question: OpenQuestion, seconds: int) -> ClipSource:
    """The clip of a question that says where its frames and its sound are."""
    frames = Path(question.media.frames[0]).parent if question.media.frames else None
    wave = Path(question.media.voice) if question.media.voice else None
    return ClipSource(question.video, frames=frames, wave=wave, seconds=seconds, shots=FRAMES)
