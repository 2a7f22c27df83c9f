"""MUSIC-AVQA as published on disk: where its question files and media are, and how a minute of music becomes ten seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from avcl_avqa.annotations import FOLDERS, question_files, read_annotations
from avcl_avqa.data import SECONDS
from avcl_avqa.vocabulary import ANSWERS_FILE, WORDS_FILE, list_file
from avcl_core.data.layout import Layout, MediaFolders, find_clips
from avcl_core.data.problems import Problem
from avcl_core.data.waves import SoundRule

MEDIA = MediaFolders(videos=("videos", "video"), frames=("frames", "frame"), waves=("audio_wave", "wave"))
"""Folders of the known variants of the layout, in the order in which they are looked for."""
SOUND_RULES: dict[str, SoundRule] = {"uniform": "evenly", "head": "start"}
"""``audio_windows`` → which seconds of a raw video's sound are taken: those of its ten frames, or the first ten."""


def layout(root: Path, audio_windows: Literal["uniform", "head"] = "uniform") -> Layout:
    """Return MUSIC-AVQA's clips and question files below ``root``; every malformed record is one of its ``problems``.

    Question files are ``json_update/avqa-{train,val,test}.json`` (updated) or ``json/…`` (original), in ``root`` or
    ``root/labels``; of every release that is there all files are read. Media are ``videos/<video_id>.mp4``, or
    ``frames/<video_id>/`` with ``audio_wave/<video_id>.npy``. One clip per video.
    """
    root = Path(root)
    bases = [base for base in (root, root / "labels") if any((base / name).is_dir() for name in FOLDERS.values())]
    releases = [bases[0] / name for name in FOLDERS.values() if (bases[0] / name).is_dir()] if bases else []
    problems: list[Problem] = []
    if not releases:
        expected = " or ".join(f"{name}/avqa-train.json" for name in FOLDERS.values())
        problems.append(Problem(str(root), "", "questions", "none", expected, "name the folder of the data set"))
    paths: dict[str, Path] = {}
    videos: dict[str, None] = {}
    for folder in releases:
        found = read_annotations(folder)
        problems += found.problems
        lists = [path for name in (ANSWERS_FILE, WORDS_FILE) if (path := list_file(folder, name)).is_file()]
        paths |= {f"{folder.name}/{path.stem}": path for path in (*question_files(folder).values(), *lists)}
        videos |= dict.fromkeys(video for split in found.splits for video in found.videos(split))
    clips, missing = find_clips(root, videos, MEDIA, "evenly", SECONDS)
    clips = tuple(replace(clip, sound_rule=SOUND_RULES[audio_windows]) for clip in clips)
    return Layout("avqa", clips, paths, (*problems, *missing))
