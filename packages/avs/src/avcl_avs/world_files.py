"""The files of a generated AVSBench: frames, masks of what is seen and heard, sound, metadata and the record of the world."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from avcl_avs.data import EDGE, SECONDS, Row
from avcl_avs.layout import PARTS
from avcl_core.data.atomic import digest_of, write_chunks, write_json
from avcl_core.data.pool import Progress, run_jobs
from avcl_core.errors import DataError
from avcl_core.world.bank import SourceBank
from avcl_core.world.composer import DIFFICULTY
from avcl_core.world.render import frames, masks, sound_track
from avcl_core.world.scene import Scene, mask_of
from avcl_core.world.writer import RECORD, WorldSize, read_record

TIMES = np.arange(SECONDS) + 15.5 / 16
"""When frames are taken: the middle of the last of sixteen parts of every second (tasks.md 3.1)."""
RATE = 16_000
"""Sample rate of the sound files in Hz, as published."""
_BEGUN = ".world-unfinished"


@dataclass(frozen=True)
class Clip:
    """A scene and its row of the metadata file."""

    row: Row
    scene: Scene


def sounding_masks(scene: Scene, bank: SourceBank, size: int | None = None) -> np.ndarray:
    """Return where something is both seen and heard, bool ``[5, size, size]``: the target of the task."""
    shown = masks(scene, bank, size, TIMES)
    heard = np.array([mask_of(source.audible, SECONDS) for source in scene.sources])
    return np.logical_or.reduce(shown & heard[:, :, None, None], axis=0)


def write_clip(clip: Clip, root: Path, bank: SourceBank) -> dict[str, str]:
    """Write frames, masks and sound of one clip below ``root`` and return {relative path: sha256}.

    Pictures of the scene's size are stretched to 224 pixels without smoothing, so that masks stay exact.
    """
    part, row = PARTS[clip.row.setting], clip.row
    pictures = {part.frame(row, n): shot for n, shot in enumerate(frames(clip.scene, bank, times=TIMES), start=1)}
    truth = sounding_masks(clip.scene, bank)[: row.annotated]
    pictures |= {part.mask(row, n): mask.astype(np.uint8) * 255 for n, mask in enumerate(truth, start=1)}
    files = {name: _png(picture) for name, picture in pictures.items()}
    files[part.sound(row)] = _wav(sound_track(clip.scene, bank, RATE))
    return {name: write_chunks(root / name, [content], flush=False)[1] for name, content in files.items()}


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).resize((EDGE, EDGE), Image.Resampling.NEAREST).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _wav(wave: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def write_clips(
    root: Path,
    clips: Sequence[Clip],
    bank: SourceBank,
    annotations: Mapping[str, str],
    *,
    seed: int,
    size: WorldSize,
    workers: int,
    progress: Progress | None,
) -> None:
    """Write a whole data set and its ``world.json``, the complete truth beside it in ``scenes.jsonl``.

    A folder that already holds this very world is left as it is; an interrupted one is written again.

    Raises:
        DataError: the folder holds anything else.
    """
    wish: dict[str, Any] = {
        "task": "avs",
        "seed": seed,
        "bank": bank.describe(),
        "difficulty": DIFFICULTY.record(),
        "size": asdict(size),
        "scenes": digest_of([clip.scene.to_json() for clip in clips]),
        "annotations": {name: digest_of(text) for name, text in sorted(annotations.items())},
    }
    if not _is_free(root, digest_of(wish)):
        return
    (root / _BEGUN).touch()
    for staged in root.rglob(".*.tmp"):  # left by an interrupted run
        staged.unlink()
    digests: dict[str, str] = {}
    for done, (_, files) in enumerate(run_jobs(partial(write_clip, root=root, bank=bank), clips, workers), start=1):
        digests.update(files)
        if progress:
            progress(done, len(clips))
    scenes = "".join(json.dumps(clip.scene.to_json(), separators=(",", ":")) + "\n" for clip in clips)
    texts = {"scenes.jsonl": scenes, **annotations}
    written = {name: write_chunks(root / name, [text.encode()])[1] for name, text in sorted(texts.items())}
    record = {"format": "avcl-world", **wish, "wish": digest_of(wish), "clips": len(clips), "files": written}
    write_json(root / RECORD, {**record, "media_files": len(digests), "media_digest": digest_of(digests)})
    (root / _BEGUN).unlink()


def _is_free(root: Path, wish: str) -> bool:
    """Return whether the world has to be written; refuse a folder that holds anything else, make it where it is missing."""
    present = read_record(root)
    if present is not None:
        if present.get("wish") == wish:
            return False
        raise DataError(f"{root / RECORD}: found another world; choose another folder or delete this one")
    if root.is_dir() and any(root.iterdir()) and not (root / _BEGUN).exists():
        raise DataError(f"{root}: found files that are not a generated world; expected an empty or new folder")
    root.mkdir(parents=True, exist_ok=True)
    return True
