"""A published data set as a task package found it on disk: its clips, its annotation files, what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from avcl_core.data.frames import FrameRule
from avcl_core.data.problems import Problem


@dataclass(frozen=True)
class ClipSource:
    """Where one clip's media are.

    Frames come from ``frames`` (a folder of numbered images) where given, else from ``video``; the sound from ``wave`` (.npy or
    .wav) where given, else from ``video``. ``frame_rule`` says which frame stands for each of ``seconds`` seconds: ``evenly``
    spaced over the clip or the ``middle`` of each second.
    """

    id: str
    video: Path | None = None
    frames: Path | None = None
    wave: Path | None = None
    frame_rule: FrameRule = "evenly"
    seconds: int = 10

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
