"""AVSBench as published on disk: both settings below one folder, where their media are, and what is wrong across them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from avcl_avs.annotations import read_annotations
from avcl_avs.data import EDGE, SECONDS, SETTINGS, Row, Setting
from avcl_avs.masks import many_valued, read_masks
from avcl_core.data.frames import IMAGES
from avcl_core.data.layout import ClipSource, Extra, Layout
from avcl_core.data.problems import Problem, Severity

CATEGORIES = "categories.txt"
"""Beside a metadata file of a generated world: its category names, one per line."""
PACKED = "AVS.npy"
"""Pickled waves of a whole category or split; `avs unpack` makes one file per video of it."""
NAMED = 10
"""How many ids or files a summary names."""


@dataclass(frozen=True)
class Part:
    """Where one setting lies below the root: its metadata file, and the folder of its media."""

    setting: Setting
    metadata: str
    media: str

    def frames(self, row: Row) -> str:
        """Folder of a video's frames below the root."""
        if self.setting == "s4":
            return f"{self.media}/visual_frames/{row.place}/{row.video}"
        return f"{self.media}/visual_frames/{row.video}"

    def frame(self, row: Row, number: int) -> str:
        """Frame ``number`` (1…5) of a video below the root; the multi-source setting has `.mp4` inside its names."""
        name = row.video if self.setting == "s4" else f"{row.video}.mp4"
        return f"{self.frames(row)}/{name}_{number}.png"

    def mask(self, row: Row, number: int) -> str:
        """Mask ``number`` (1…5) of a video below the root."""
        return f"{self.media}/gt_masks/{row.place}/{row.video}/{row.video}_{number}.png"

    def sound(self, row: Row) -> str:
        """Sound file of a video below the root."""
        return f"{self.media}/audio_wav/{row.place}/{row.video}.wav"

    def packed(self, row: Row) -> str:
        """File with the wave of a video among others below the root."""
        return f"{self.media}/wave/{row.place}/{PACKED}"

    def wave(self, row: Row) -> str:
        """Unpacked wave of a video below the root, or below the folder that `avs unpack` was given."""
        return f"{self.media}/wave_npy/{row.place}/{row.video}.npy"


PARTS: dict[Setting, Part] = {
    "s4": Part("s4", "Single-source/s4_meta_data.csv", "Single-source/s4_data"),
    "ms3": Part("ms3", "Multi-sources/ms3_meta_data.csv", "Multi-sources/ms3_data"),
}


def layout(root: Path, waves: Path | None = None) -> Layout:
    """Return the clips and metadata files of the settings below ``root``; every malformed record is one of its ``problems``.

    A clip's id is ``<setting>/<video>``. Its sound is the unpacked wave where there is one, else the sound file.

    Args:
        waves: folder that `avs unpack` wrote, by default ``root``.
    """
    root = Path(root)
    metadata, categories = metadata_below(root)
    if not metadata:
        expected = " or ".join(part.metadata for part in PARTS.values())
        action = "name the folder that holds Single-source and Multi-sources"
        return Layout("avs", (), {}, (Problem(str(root), "", "file", "no metadata file", expected, action),))
    found = read_annotations(metadata, categories)
    clips: list[ClipSource] = []
    problems = list(found.problems)
    for setting, rows in found.rows.items():
        part = PARTS[setting]
        sources = [_clip(root, Path(waves or root), part, row) for row in rows]
        problems += _media(root / part.media, part, rows, sources)
        problems += _packed(root, part, rows, sources)
        clips += sources
    paths: dict[str, Path] = dict(metadata.items())
    if categories is not None:
        paths["categories"] = categories
    present = any(_has_frames(clip) for clip in clips)
    return Layout("avs", tuple(clips) if present else (), paths, tuple(problems))


def metadata_below(root: Path) -> tuple[dict[Setting, Path], Path | None]:
    """Return the metadata file of every setting below ``root``, and the ``categories.txt`` of a generated world."""
    places: dict[Setting, Path] = {setting: root / PARTS[setting].metadata for setting in SETTINGS}
    metadata: dict[Setting, Path] = {setting: path for setting, path in places.items() if path.is_file()}
    beside = [path.with_name(CATEGORIES) for path in metadata.values()]
    return metadata, next((path for path in beside if path.is_file()), None)


def _clip(root: Path, waves: Path, part: Part, row: Row) -> ClipSource:
    masks = tuple(root / part.mask(row, number) for number in range(1, row.annotated + 1))
    wave = waves / part.wave(row)
    return ClipSource(
        id=row.id,
        frames=root / part.frames(row),
        wave=wave if wave.is_file() else root / part.sound(row),
        frame_rule="middle",  # of five frames of five seconds: all of them, in order
        seconds=SECONDS,
        extras=(Extra("masks", masks, read_masks),),
    )


def _media(folder: Path, part: Part, rows: Sequence[Row], clips: Sequence[ClipSource]) -> list[Problem]:
    """Return what is wrong with the frames, masks and sounds of one setting, beyond files that do not open."""
    problems = []
    lost = [clip.id for clip in clips if not _has_frames(clip) or clip.wave is None or not clip.wave.is_file()]
    if lost:
        expected, action = "frames and a sound for every video", "add the media of these clips"
        problems.append(_summary(folder, "media", f"{len(lost)} ids without media", lost, expected, action, "error"))
    wanted = {clip.frames for clip in clips}
    levels = "*/*/*" if part.setting == "s4" else "*"
    spare = [path for path in (folder / "visual_frames").glob(levels) if path.is_dir() and path not in wanted]
    if spare:
        names = [path.name for path in spare]
        expected, action = "media of videos in the metadata only", "nothing to do: not used"
        found = f"{len(spare)} videos without annotation"
        problems.append(_summary(folder, "media", found, names, expected, action, "warning"))
    for row, clip in zip(rows, clips, strict=True):
        problems += _frames(clip)
        problems += _spare_masks(clip, row)
    grey = many_valued(path for clip in clips for path in clip.extras[0].paths)
    if grey:
        names = [path.name for path in grey]
        found = f"{len(grey)} masks with further values"
        expected, action = "masks of zero and one other value", "nothing to do: every value above zero is foreground"
        problems.append(_summary(folder / "gt_masks", "values", found, names, expected, action, "warning"))
    return problems


def _has_frames(clip: ClipSource) -> bool:
    return clip.frames is not None and clip.frames.is_dir()


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES and path.name[0] != ".")


def _frames(clip: ClipSource) -> list[Problem]:
    """Return an error for more than five frames, and for the first frame of another size; fewer are found by reading."""
    if clip.frames is None or not clip.frames.is_dir():
        return []
    files = _images(clip.frames)
    action = "extract the frames again or remove the clip"
    if len(files) > SECONDS:
        return [Problem(str(clip.frames), clip.id, "frames", f"{len(files)}", f"{SECONDS}", action)]
    for path in files:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # reading the clip says what is wrong
        if (width, height) != (EDGE, EDGE):
            return [Problem(str(path), clip.id, "frame size", f"{width}×{height} pixels", f"{EDGE}×{EDGE}", action)]
    return []


def _spare_masks(clip: ClipSource, row: Row) -> list[Problem]:
    """Return an error for more masks than the setting and split have; fewer are found by reading."""
    folder = clip.extras[0].paths[0].parent
    if not folder.is_dir():
        return []
    count = len(_images(folder))
    if count <= row.annotated:
        return []
    expected = f"{row.annotated} for a {row.split} video of {row.setting}"
    return [Problem(str(folder), clip.id, "masks", f"{count}", expected, "put the published masks there")]


def _packed(root: Path, part: Part, rows: Sequence[Row], clips: Sequence[ClipSource]) -> list[Problem]:
    """Return a finding for packed waves that nobody unpacked."""
    waiting = [
        clip
        for row, clip in zip(rows, clips, strict=True)
        if clip.wave is not None and clip.wave.suffix != ".npy" and (root / part.packed(row)).is_file()
    ]
    if not waiting:
        return []
    lost = [clip for clip in waiting if clip.wave is not None and not clip.wave.is_file()]
    found = f"packed in {PACKED}: {len(waiting)} waves"
    action = (
        f"run `avs unpack {root}`" if lost else f"run `avs unpack {root}` to use them; the sound files are read instead"
    )
    where = str(root / part.media / "wave")
    return [Problem(where, "", "waves", found, "one wave per video", action, "error" if lost else "warning")]


def _summary(
    where: Path, field: str, found: str, names: Iterable[str], expected: str, action: str, severity: Severity
) -> Problem:
    first = sorted(names)
    listed = ", ".join(first[:NAMED]) + (", …" if len(first) > NAMED else "")
    return Problem(str(where), "", field, f"{found}: {listed}", expected, action, severity)
