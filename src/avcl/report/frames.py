"""Strips of one clip's frames: the predicted mask bright and tinted, the outline of the true one as a path around it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from avcl.report.style import figure_style
from avcl_core.evaluation.examples import MaskedFrames

SIDE = 100
"""Pixels of the longer side of a frame on the page, two strips of five beside each other; larger ones are made smaller."""
TINT = np.array([255.0, 90.0, 190.0])
"""A pink that hardly occurs in recordings."""
_OPACITY, _DIM = 0.45, 0.6
_QUALITY = 80


@dataclass(frozen=True)
class Frame:
    """One frame: the picture as a data URI of ``width`` × ``height`` pixels, and an SVG path around the true mask."""

    number: int
    picture: str
    width: int
    height: int
    outline: str
    known: bool
    words: str


@dataclass(frozen=True)
class Strip:
    """The frames of one clip in order."""

    title: str
    frames: tuple[Frame, ...]


def strip(example: MaskedFrames) -> Strip:
    """Return the drawing of one example. A frame without a known truth has no outline."""
    frames = []
    height, width = example.frames.shape[1:3]
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    parts = zip(example.frames, example.truth, example.predicted, example.known, strict=True)
    for number, (frame, truth, predicted, known) in enumerate(parts, start=1):
        picture = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX), dtype=np.float64)
        inside = _shrunk(predicted, size)[..., None]
        # Lightness as well as colour tells a mask from the rest: bright and tinted inside, dimmed outside.
        picture = inside * (picture * (1 - _OPACITY) + TINT * _OPACITY) + (1 - inside) * picture * _DIM
        covered = f"predicted mask {predicted.mean():.0%} of the frame"
        true = f"true mask {truth.mean():.0%}" if known else "truth unknown"
        frames.append(
            Frame(
                number=number,
                picture=_jpeg(picture),
                width=size[0],
                height=size[1],
                outline=outline(_shrunk(truth, size)) if known else "",
                known=bool(known),
                words=f"frame {number}: {covered}, {true}",
            )
        )
    return Strip(example.title, tuple(frames))


def outline(mask: np.ndarray) -> str:
    """Return an SVG path around a mask ``[H, W]`` of shares in [0, 1], in pixels; empty for an empty mask."""
    highest = float(mask.max())
    if highest == 0.0:
        return ""
    # A border of zeros closes the outline at the edge; a mask thinner than half a pixel still gets one.
    with figure_style():
        contour = Figure().subplots().contour(np.pad(mask, 1), levels=[min(0.5, highest / 2)])
    pieces = []
    for path in contour.get_paths():
        for loop in path.to_polygons(closed_only=False):
            # Pixel i covers [i, i + 1) and its value stands at the middle; the border moved it by one.
            points = [f"{x:.1f} {y:.1f}" for x, y in np.asarray(loop) - 0.5]
            pieces.append(f"M{'L'.join(points)}")
    return "".join(pieces)


def _shrunk(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    return np.asarray(picture, dtype=np.float64) / 255


def _jpeg(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    rounded = np.clip(np.round(picture), 0, 255).astype(np.uint8)
    # Colour at full resolution: the edge of the tint is the content.
    Image.fromarray(rounded).save(buffer, format="JPEG", quality=_QUALITY, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
