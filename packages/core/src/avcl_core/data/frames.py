"""Frames of a clip: which ones a task takes, and reading them from a video or a folder of images as uint8 RGB."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from avcl_core.data.mp4 import check_complete
from avcl_core.data.problems import broken
from avcl_core.errors import ConfigError

FrameRule = Literal["evenly", "middle"]
IMAGES = (".jpg", ".jpeg", ".png")
_REPLACE = "extract the frames again or remove the clip"


def evenly(m: int, n: int) -> np.ndarray:
    """n evenly spaced frames of m: linspace(1, m, n) truncated, 1-based int [n] (tasks.md 0.2)."""
    return np.linspace(1, m, n).astype(np.int64)


def middle_of_seconds(m: int, seconds: int) -> np.ndarray:
    """The frame in the middle of each second when m frames cover the clip evenly, 1-based int [seconds] (tasks.md 2.1).

    300 frames of 10 s give 16, 46, ..., 286; 10 frames of 10 s give all ten.
    """
    return ((np.arange(seconds) + 0.5) * m / seconds).astype(np.int64) + 1


def chosen(rule: FrameRule, m: int, seconds: int) -> np.ndarray:
    """1-based indices that ``rule`` takes of m frames, one a second, int [seconds]."""
    if rule == "evenly":
        return evenly(m, seconds)
    if rule == "middle":
        return middle_of_seconds(m, seconds)
    raise ConfigError(f"frame rule: {rule!r} is unknown; expected evenly or middle")


def resize(image: Image.Image, size: int | None) -> np.ndarray:
    """uint8 RGB [size, size, 3]: antialiased bicubic, aspect ratio not kept, no crop; ``None`` keeps the size."""
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def list_frames(folder: Path) -> list[Path]:
    """Images of a frame folder in the order of their numbers.

    The number is the last run of digits before the suffix (``00000007.jpg``, ``clip.mp4_3.png``) and counts up from 1 without
    a gap. Raises MediaError for a missing or empty folder, a file without a number, a gap or a repeated number.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise broken(folder, "frames", "no such folder", "a folder of numbered images", _REPLACE)
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGES or path.name.startswith("."):
            continue
        match = re.search(r"(\d+)$", path.stem)
        if match is None:
            raise broken(path, "file name", path.name, "a name that ends in the frame number", _REPLACE)
        if int(match[1]) in numbered:
            raise broken(path, "frame number", f"{int(match[1])} twice", "each number once", _REPLACE)
        numbered[int(match[1])] = path
    if not numbered:
        raise broken(folder, "frames", "0 images", "at least one .jpg or .png", _REPLACE)
    for place, number in enumerate(sorted(numbered), start=1):
        if number != place:
            raise broken(folder, "frame numbering", f"{number} after {place - 1}", f"{place}", _REPLACE)
    return [numbered[number] for number in sorted(numbered)]


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """One image file as uint8 RGB; MediaError when it is unreadable, truncated or not a 3-channel image."""
    try:
        with Image.open(path) as image:
            if image.mode != "RGB":
                raise broken(path, "channels", f"mode {image.mode}", "3 channels (RGB)", _REPLACE)
            image.load()
            return resize(image, size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise broken(path, "image", str(error), "a complete image file", _REPLACE) from None


def read_frames(source: Path, rule: FrameRule | Sequence[int], seconds: int, size: int | None = None) -> np.ndarray:
    """Frames of a video file or image folder, uint8 RGB [n, size, size, 3].

    ``rule`` names how one frame a second is taken, or lists 1-based indices. Raises MediaError for a missing, truncated or
    unreadable source, too few frames, a gap in the numbering, an image without three channels.
    """
    source = Path(source)
    if source.is_dir() or not source.suffix:
        paths = list_frames(source)
        wanted = _wanted(source, rule, len(paths), seconds)
        pictures = {int(k): read_image(paths[k - 1], size) for k in np.unique(wanted)}
    else:
        wanted, pictures = _read_video(source, rule, seconds, size)
    shapes = {picture.shape for picture in pictures.values()}
    if len(shapes) > 1:
        raise broken(source, "frame size", f"{len(shapes)} different sizes", "one size in a clip", _REPLACE)
    return np.stack([pictures[int(k)] for k in wanted])


def _wanted(source: Path, rule: FrameRule | Sequence[int], m: int, seconds: int) -> np.ndarray:
    if isinstance(rule, str):
        if rule == "middle" and m < seconds:
            raise broken(source, "frames", f"{m}", f"at least {seconds}, one a second", _REPLACE)
        return chosen(rule, m, seconds)
    wanted = np.asarray(rule, dtype=np.int64)
    if wanted.min() < 1 or wanted.max() > m:
        raise broken(source, "frames", f"{m}", f"at least {int(wanted.max())}", _REPLACE)
    return wanted


def _read_video(
    path: Path, rule: FrameRule | Sequence[int], seconds: int, size: int | None
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Wanted indices and those pictures of a video; no other frame is kept in memory while it is decoded to its end."""
    promised, pictures, count, wanted = 0, {}, 0, np.zeros(0, dtype=np.int64)
    for promised, number, frame in _decode(path):
        if number == 1 and promised:
            wanted = _wanted(path, rule, promised, seconds)
        if number in wanted:
            pictures[number] = _picture(frame, size)
        count = number
    if count == 0 or count < promised:
        raise broken(path, "picture stream", f"{count} frames", f"{max(promised, 1)} as its header says", _REPLACE)
    if count != promised:  # the header does not know how many there are
        wanted = _wanted(path, rule, count, seconds)
        pictures = {n: _picture(frame, size) for _, n, frame in _decode(path) if n in wanted}
    return wanted, pictures


def _picture(frame: Any, size: int | None) -> np.ndarray:
    # With the default, threads are started for every picture, which takes longer than converting it.
    return resize(frame.to_image(threads=1), size)


def _decode(path: Path) -> Iterator[tuple[int, int, Any]]:
    """(frames that the header promises or 0, 1-based number, decoder frame) of a video; MediaError where it does not decode."""
    import av
    from av.error import FFmpegError

    check_complete(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise broken(path, "picture stream", "none", "one picture stream", _REPLACE)
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise broken(path, "picture stream", "no known codec", "a video that decodes", _REPLACE)
            stream.codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(stream), start=1):
                yield stream.frames, number, frame
    except FFmpegError as error:
        raise broken(path, "picture stream", str(error), "a video that decodes to its end", _REPLACE) from None
