"""A published data set as a task package found it on disk: its clips, its annotation files, what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from avcl_core.data.frames import FrameRule
from avcl_core.data.problems import Problem, Severity
from avcl_core.data.waves import SoundRule


@dataclass(frozen=True)
class Extra:
    """A further array of a clip beside frames and sound: masks, features.

    Attributes:
        name: the same for every clip of a layout, and with it shape and type of the array.
        paths: the files it is read from; a preparation notices when one of them changes.
        read: ``paths -> array``, a function of a module (it travels to worker processes); MediaError for a broken file.
    """

    name: str
    paths: tuple[Path, ...]
    read: Callable[[tuple[Path, ...]], np.ndarray]


@dataclass(frozen=True)
class ClipSource:
    """Where one clip's media are.

    Frames come from ``frames`` (a folder of numbered images) where given, else from ``video``; the sound from ``wave`` (.npy or
    .wav) where given, else from ``video``. ``frame_rule`` says which frame stands for each of ``seconds`` seconds: ``evenly``
    spaced over the clip or the ``middle`` of each second; ``sound_rule`` which seconds of a longer sound are taken: the first
    ones (``start``) or ``evenly`` spaced ones that lie where the frames do. ``shots``: frames of the whole clip, by the same rule, where
    they are not one a second.
    """

    id: str
    video: Path | None = None
    frames: Path | None = None
    wave: Path | None = None
    frame_rule: FrameRule = "evenly"
    seconds: int = 10
    sound_rule: SoundRule = "start"
    extras: tuple[Extra, ...] = ()
    shots: int | None = None

    @property
    def picture(self) -> Path | None:
        """What the frames are read from."""
        return self.frames if self.frames is not None else self.video

    @property
    def sound(self) -> Path | None:
        """What the sound is read from."""
        return self.wave if self.wave is not None else self.video


@dataclass(frozen=True)
class Layout:
    """What a task package returns after reading its published layout.

    ``annotations`` maps a short name (``annotations``, ``train``, …) to the file; ``problems`` are the findings of reading them.
    """

    name: str
    clips: tuple[ClipSource, ...]
    annotations: dict[str, Path] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class MediaFolders:
    """Where a published data set keeps its media: for each kind, the folder names that occur, the usual one first.

    ``suffix``: what some copies of the data set have behind the id in the names of media.
    """

    videos: tuple[str, ...]
    frames: tuple[str, ...]
    waves: tuple[str, ...]
    suffix: str = ""


def find_clips(
    base: Path, ids: Iterable[str], folders: MediaFolders, frame_rule: FrameRule, seconds: int
) -> tuple[tuple[ClipSource, ...], list[Problem]]:
    """Return where the media of each clip are, an error for ids without media and a warning for media without an id.

    A clip without media stays among the clips, so that preparation quarantines it by its id; if no clip has media, there are
    no clips, because there is nothing to prepare.
    """
    videos, frames, waves = (
        _listing(base, names, folders.suffix) for names in (folders.videos, folders.frames, folders.waves)
    )
    clips = [ClipSource(id, videos.get(id), frames.get(id), waves.get(id), frame_rule, seconds) for id in ids]
    lost = [clip.id for clip in clips if clip.picture is None or clip.sound is None]
    spare = sorted({*videos, *frames, *waves} - {clip.id for clip in clips})
    problems = []
    if lost:
        expected = f"{folders.videos[0]}/<id>.mp4, or {folders.frames[0]}/<id>/ and {folders.waves[0]}/<id>.npy"
        problems.append(_media(base, "without media", lost, expected, "add the media of these clips", "error"))
    if spare:
        expected = "media of annotated clips only"
        problems.append(_media(base, "without annotation", spare, expected, "nothing to do: not used", "warning"))
    return (tuple(clips) if len(lost) < len(clips) else ()), problems


def _media(base: Path, what: str, ids: list[str], expected: str, action: str, severity: Severity) -> Problem:
    named = ", ".join(ids[:10]) + (", …" if len(ids) > 10 else "")
    return Problem(str(base), "", "media", f"{len(ids)} ids {what}: {named}", expected, action, severity)


def _listing(base: Path, names: Iterable[str], suffix: str) -> dict[str, Path]:
    """Return clip id → path in the first of the folders that exists."""
    folder = next((base / name for name in names if (base / name).is_dir()), None)
    if folder is None:
        return {}
    paths = [path for path in sorted(folder.iterdir()) if path.name[0] != "."]
    return {(path.name if path.is_dir() else path.stem).removesuffix(suffix): path for path in paths}
