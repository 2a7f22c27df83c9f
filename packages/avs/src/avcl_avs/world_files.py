"""The files of one clip of a generated AVSBench: frames, masks of what is both seen and heard, sound."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from avcl_avs.data import EDGE, SECONDS, Row
from avcl_avs.layout import PARTS
from avcl_core.data.atomic import write_chunks
from avcl_core.world.bank import SourceBank
from avcl_core.world.render import frames, masks, sound_track
from avcl_core.world.scene import Scene, mask_of

TIMES = np.arange(SECONDS) + 15.5 / 16
"""When frames are taken: the middle of the last of sixteen parts of every second (tasks.md 3.1)."""
RATE = 16_000
"""Sample rate of the sound files in Hz, as published."""


def sounding_masks(scene: Scene, bank: SourceBank, size: int | None = None) -> np.ndarray:
    """Return where something is both seen and heard, bool ``[5, size, size]``: the target of the task."""
    shown = masks(scene, bank, size, TIMES)
    heard = np.array([mask_of(source.audible, SECONDS) for source in scene.sources])
    return np.logical_or.reduce(shown & heard[:, :, None, None], axis=0)


def write_clip(root: Path, scene: Scene, bank: SourceBank, rows: Mapping[str, Row]) -> dict[str, str]:
    """Write frames, masks and sound of one clip below ``root`` and return {relative path: sha256}; ``rows`` by scene id.

    Pictures of the scene's size are stretched to 224 pixels without smoothing, so that masks stay exact.
    """
    row = rows[scene.id]
    part = PARTS[row.setting]
    pictures = {part.frame(row, n): shot for n, shot in enumerate(frames(scene, bank, times=TIMES), start=1)}
    truth = sounding_masks(scene, bank)[: row.annotated]
    pictures |= {part.mask(row, n): mask.astype(np.uint8) * 255 for n, mask in enumerate(truth, start=1)}
    files = {name: _png(picture) for name, picture in pictures.items()}
    files[part.sound(row)] = _wav(sound_track(scene, bank, RATE))
    return {name: write_chunks(root / name, [content], flush=False)[1] for name, content in files.items()}


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).resize((EDGE, EDGE), Image.Resampling.NEAREST).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _wav(wave: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
