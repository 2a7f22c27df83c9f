"""LLP as published on disk: where its label and media files are, and what is wrong across rows and files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from avcl_avvp.annotations import read_annotations
from avcl_avvp.data import SECONDS
from avcl_core.data.frames import IMAGES
from avcl_core.data.layout import ClipSource, Layout
from avcl_core.data.problems import Problem, Severity

WEAK_FILES = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}
"""Split → file of video-level labels."""
DENSE_FILES = {"audio": "AVVP_eval_audio.csv", "visual": "AVVP_eval_visual.csv"}
"""Modality → file of dense labels of validation and test videos."""
MEDIA = "LLP_dataset"
VIDEOS = ("video", "videos")
FRAMES = ("frame", "frames")
WAVES = ("wave", "audio_wave")
"""Folders of the known variants of the layout, in the order in which they are looked for."""


def layout(root: Path) -> Layout:
    """Return LLP's clips and label files below ``root``; every malformed record is one of its ``problems``.

    Label files lie in ``root`` or ``root/labels``; media in ``LLP_dataset`` there (or directly in ``root``):
    ``video/<id>.mp4``, or ``frame/<id>/`` with ten images and ``wave/<id>.npy``.
    """
    root = Path(root)
    labels = next((folder for folder in (root, root / "labels") if (folder / WEAK_FILES["train"]).is_file()), root)
    weak = {split: labels / name for split, name in WEAK_FILES.items()}
    dense = {modality: labels / name for modality, name in DENSE_FILES.items()}
    paths = {**weak, **dense}
    if (labels / "categories.txt").exists():
        paths["categories"] = labels / "categories.txt"
    found = read_annotations(weak, dense)
    clips, missing = find_clips(root, dict.fromkeys(row.video for part in found.weak.values() for row in part))
    return Layout("avvp", clips, paths, (*found.problems, *missing))


def find_clips(root: Path, videos: Iterable[str]) -> tuple[tuple[ClipSource, ...], list[Problem]]:
    """Return where the media of each video are, and what is missing, superfluous, or not ten frames."""
    base = root / MEDIA if (root / MEDIA).is_dir() else root
    folders = {kind: _listing(base, names) for kind, names in (("video", VIDEOS), ("frames", FRAMES), ("wave", WAVES))}
    clips, lost, problems = [], [], []
    wanted = list(videos)
    for video in wanted:
        paths = {kind: listing.get(video) for kind, listing in folders.items()}
        clip = ClipSource(video, paths["video"], paths["frames"], paths["wave"], "middle", SECONDS)
        clips.append(clip)
        if clip.picture is None or clip.sound is None:
            lost.append(video)
        if clip.frames is not None:
            count = sum(path.suffix.lower() in IMAGES for path in clip.frames.iterdir())
            if count != SECONDS:
                action = "extract the middle frame of every second"
                problems.append(Problem(str(clip.frames), video, "frames", f"{count}", f"{SECONDS}", action))
    spare = sorted({name for listing in folders.values() for name in listing} - set(wanted))
    if lost:
        expected = f"{MEDIA}/{VIDEOS[0]}/<id>.mp4, or {MEDIA}/{FRAMES[0]}/<id>/ and {MEDIA}/{WAVES[0]}/<id>.npy"
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
