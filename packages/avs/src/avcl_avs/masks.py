"""Mask files: reading one, joining those of a clip into bits, and finding masks that are not two-valued."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from avcl_avs.data import EDGE, SECONDS
from avcl_core.data.problems import MediaError, broken

MODES = ("1", "L", "P", "I;16", "RGB")
"""Pixel formats of masks. Of a palette the indices count, of colours the largest channel."""
_REPLACE = "put the published mask there"


def read_values(path: Path) -> np.ndarray:
    """Return the values of a mask file, an array ``[224, 224]`` of numbers.

    Raises:
        MediaError: the file is missing, unreadable, of another size or no mask.
    """
    if not path.is_file():
        raise broken(path, "mask", "no such file", "a mask for every annotated frame", _REPLACE)
    try:
        with Image.open(path) as image:
            if image.mode not in MODES:
                raise broken(path, "mask", f"mode {image.mode}", f"one of {', '.join(MODES)}", _REPLACE)
            if image.size != (EDGE, EDGE):
                found = f"{image.width}×{image.height} pixels"
                raise broken(path, "mask size", found, f"{EDGE}×{EDGE}", _REPLACE)
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise broken(path, "mask", str(error), "a complete image file", _REPLACE) from None
    return values.max(2) if values.ndim == 3 else values


def read_masks(paths: tuple[Path, ...]) -> np.ndarray:
    """Return the masks of a clip as bits along x, uint8 ``[5, 224, 28]``; frames beyond the annotated ones are zero.

    Any value above zero is foreground (tasks.md 3.1).

    Raises:
        MediaError: as :func:`read_values`.
    """
    masks = np.zeros((SECONDS, EDGE, EDGE), dtype=bool)
    for frame, path in enumerate(paths):
        masks[frame] = read_values(path) > 0
    return np.packbits(masks, axis=-1)


def unpack(bits: np.ndarray) -> np.ndarray:
    """Return masks, bool ``[…, H, W]``, from bits ``[…, H, W / 8]``."""
    return np.unpackbits(bits, axis=-1).astype(bool)


def many_valued(paths: Iterable[Path]) -> list[Path]:
    """Return the masks that have values besides zero and their maximum; broken files are not among them."""
    found = []
    for path in paths:
        try:
            values = read_values(path)
        except MediaError:
            continue
        if bool(((values != 0) & (values != values.max())).any()):
            found.append(path)
    return found
