"""AVE as published on disk: where its annotation and media files are, and what is wrong across rows and files."""

from __future__ import annotations

from pathlib import Path

from avcl_ave.annotations import read_annotations
from avcl_ave.data import ORDER_FILES, SECONDS, SPLIT_FILES
from avcl_ave.redundant import compare_redundant
from avcl_core.data.layout import Layout, MediaFolders, find_clips

ANNOTATIONS = "Annotations.txt"
MEDIA = MediaFolders(videos=("AVE", "video", "videos"), frames=("frames", "frame"), waves=("wave", "audio_wave"))
"""Folders of the known variants of the layout, in the order in which they are looked for."""


def layout(root: Path) -> Layout:
    """Return AVE's clips and annotation files below ``root``; every malformed record is one of its ``problems``.

    Annotation files lie in ``root`` or ``root/labels``; media are ``AVE/<id>.mp4`` or ``frames/<id>/`` with ``wave/<id>.npy``.
    For a split without its text file its ``*_order.h5`` is read.
    """
    root = Path(root)
    labels = next((folder for folder in (root, root / "labels") if (folder / ANNOTATIONS).is_file()), root)
    splits = {split: labels / name for split, name in SPLIT_FILES.items()}
    for split, name in ORDER_FILES.items():
        if not splits[split].is_file() and (labels / name).is_file():
            splits[split] = labels / name
    paths = {"annotations": labels / ANNOTATIONS, **splits}
    if (labels / "categories.txt").exists():
        paths["categories"] = labels / "categories.txt"
    found = read_annotations(paths["annotations"], splits)
    problems = list(found.problems)
    if not any(problem.severity == "error" for problem in problems):
        problems += compare_redundant(labels, found.rows, found.splits)
    clips, missing = find_clips(
        root, dict.fromkeys(row.video for part in found.splits.values() for row in part), MEDIA, "evenly", SECONDS
    )
    return Layout("ave", clips, paths, (*problems, *missing))
