"""AVE as published on disk: where its annotation and media files are, and what is wrong across rows and files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from avcl_ave.annotations import read_annotations
from avcl_ave.data import SECONDS, SPLIT_FILES
from avcl_ave.redundant import compare_redundant
from avcl_core.data.layout import ClipSource, Layout
from avcl_core.data.problems import Problem, Severity

ANNOTATIONS = "Annotations.txt"
VIDEOS = ("AVE", "video", "videos")
FRAMES = ("frames", "frame")
WAVES = ("wave", "audio_wave")
"""Folders of the known variants of the layout, in the order in which they are looked for."""


def layout(root: Path) -> Layout:
    """Return AVE's clips and annotation files below ``root``; every malformed record is one of its ``problems``.

    Annotation files lie in ``root`` or ``root/labels``; media are ``AVE/<id>.mp4`` or ``frames/<id>/`` with ``wave/<id>.npy``.
    """
    root = Path(root)
    labels = next((folder for folder in (root, root / "labels") if (folder / ANNOTATIONS).is_file()), root)
    splits = {split: labels / name for split, name in SPLIT_FILES.items()}
    paths = {"annotations": labels / ANNOTATIONS, **splits}
    if (labels / "categories.txt").exists():
        paths["categories"] = labels / "categories.txt"
    found = read_annotations(paths["annotations"], splits)
    problems = list(found.problems)
    if not any(problem.severity == "error" for problem in problems):
        problems += compare_redundant(labels, found.rows, found.splits)
    clips, missing = find_clips(root, dict.fromkeys(row.video for part in found.splits.values() for row in part))
    return Layout("ave", clips, paths, (*problems, *missing))


def find_clips(root: Path, videos: Iterable[str]) -> tuple[tuple[ClipSource, ...], list[Problem]]:
    """Return where the media of each video are, an error for ids without media and a warning for media without a row."""
    folders = {kind: _listing(root, names) for kind, names in (("video", VIDEOS), ("frames", FRAMES), ("wave", WAVES))}
    clips, lost = [], []
    wanted = list(videos)
    for video in wanted:
        paths = {kind: listing.get(video) for kind, listing in folders.items()}
        clips.append(ClipSource(video, paths["video"], paths["frames"], paths["wave"], "evenly", SECONDS))
        if clips[-1].picture is None or clips[-1].sound is None:
            lost.append(video)
    spare = sorted({name for listing in folders.values() for name in listing} - set(wanted))
    problems = []
    if lost:
        expected = f"{VIDEOS[0]}/<id>.mp4, or {FRAMES[0]}/<id>/ and {WAVES[0]}/<id>.npy"
        problems.append(_summary(root, "without media", lost, expected, "add the media of these clips", "error"))
    if spare:
        expected = "media of annotated clips only"
        problems.append(_summary(root, "without annotation", spare, expected, "nothing to do: not used", "warning"))
    # A clip without media stays: preparation quarantines it by its id. Without any media there is nothing to prepare.
    return tuple(clips) if len(lost) < len(clips) else (), problems


def _summary(root: Path, what: str, ids: list[str], expected: str, action: str, severity: Severity) -> Problem:
    named = ", ".join(ids[:10]) + (", …" if len(ids) > 10 else "")
    return Problem(str(root), "", "media", f"{len(ids)} ids {what}: {named}", expected, action, severity)


def _listing(root: Path, folders: Iterable[str]) -> dict[str, Path]:
    """Return video id → path in the first of ``folders`` that exists."""
    folder = next((root / name for name in folders if (root / name).is_dir()), None)
    if folder is None:
        return {}
    return {path.name if path.is_dir() else path.stem: path for path in sorted(folder.iterdir()) if path.name[0] != "."}
