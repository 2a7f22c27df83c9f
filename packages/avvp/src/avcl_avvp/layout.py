"""LLP as published on disk: where its label and media files are, and what is wrong across rows and files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from avcl_avvp.annotations import read_annotations
from avcl_avvp.data import SECONDS
from avcl_avvp.motion import with_motion
from avcl_core.data.frames import IMAGES
from avcl_core.data.layout import ClipSource, Layout, MediaFolders, find_clips
from avcl_core.data.problems import Problem

WEAK_FILES = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}
"""Split → file of video-level labels."""
DENSE_FILES = {"audio": "AVVP_eval_audio.csv", "visual": "AVVP_eval_visual.csv"}
"""Modality → file of dense labels of validation and test videos."""
MEDIA = "LLP_dataset"
FOLDERS = MediaFolders(videos=("video", "videos"), frames=("frame", "frames"), waves=("wave", "audio_wave"))
"""Folders of the known variants of the layout, in the order in which they are looked for."""


def layout(root: Path) -> Layout:
    """Return LLP's clips and label files below ``root``; every malformed record is one of its ``problems``.

    Label files lie in ``root`` or ``root/labels``; media in ``LLP_dataset`` there (or directly in ``root``):
    ``video/<id>.mp4``, or ``frame/<id>/`` with ten images and ``wave/<id>.npy``; and, for all clips or none, motion features
    ``feats/r2plus1d_18/<id>.npy``.
    """
    root = Path(root)
    labels = next((folder for folder in (root, root / "labels") if (folder / WEAK_FILES["train"]).is_file()), root)
    weak = {split: labels / name for split, name in WEAK_FILES.items()}
    dense = {modality: labels / name for modality, name in DENSE_FILES.items()}
    paths = {**weak, **dense}
    if (labels / "categories.txt").exists():
        paths["categories"] = labels / "categories.txt"
    found = read_annotations(weak, dense)
    base = root / MEDIA if (root / MEDIA).is_dir() else root
    videos = dict.fromkeys(row.video for part in found.weak.values() for row in part)
    clips, missing = find_clips(base, videos, FOLDERS, "middle", SECONDS)
    clips, record, spare = with_motion(base, clips)
    return Layout("avvp", clips, {**paths, **record}, (*found.problems, *_frame_counts(clips), *missing, *spare))


def _frame_counts(clips: Iterable[ClipSource]) -> list[Problem]:
    """Return an error for every frame folder that has not one image per second."""
    problems = []
    for clip in clips:
        if clip.frames is None:
            continue
        count = sum(path.suffix.lower() in IMAGES for path in clip.frames.iterdir())
        if count != SECONDS:
            action = "extract the middle frame of every second"
            problems.append(Problem(str(clip.frames), clip.id, "frames", f"{count}", f"{SECONDS}", action))
    return problems
