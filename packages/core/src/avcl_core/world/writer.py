"""Writing a world: the media of its scenes in a data set's own layout, its annotation files, and ``world.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from avcl_core.data.atomic import digest_of, sha256_of, write_chunks, write_json
from avcl_core.data.frames import chosen
from avcl_core.data.mp4 import write_mp4
from avcl_core.data.pool import Progress, run_jobs
from avcl_core.errors import ConfigError, DataError
from avcl_core.world.bank import SourceBank
from avcl_core.world.composer import DIFFICULTY, Difficulty
from avcl_core.world.render import frame_times, frames, sound_track
from avcl_core.world.scene import Scene

RECORD = "world.json"
_BEGUN = ".world-unfinished"
RATE = 32000
Media = Literal["mp4", "frames"]
ClipWriter = Callable[[Path, Scene, SourceBank], dict[str, str]]
"""Writes the files of one clip below a folder and returns {relative path: sha256}; it travels to worker processes."""


@dataclass(frozen=True)
class WorldSize:
    """Clips per split and their shape."""

    train: int
    val: int
    test: int
    seconds: int = 10
    size: int = 96
    fps: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ConfigError(f"world size: {name} is {value}; expected at least 1")
        if self.size % 2:
            raise ConfigError(f"world size: size is {self.size}; expected an even number of pixels (H.264)")

    def items(self) -> list[tuple[str, int]]:
        """(split, clips) for train, val, test."""
        return [("train", self.train), ("val", self.val), ("test", self.test)]


@dataclass(frozen=True)
class Places:
    """Where a layout keeps its media, relative to its root; ``{id}`` is the clip. The defaults are those of AVE.

    ``frame_times`` says which frames a ``frames`` world stores: ``all`` at the scene's frame rate, or one from the ``middle``
    of every second.
    """

    video: str = "video/{id}.mp4"
    frames: str = "frames/{id}"
    frame_name: str = "{number:08d}.jpg"
    wave: str = "wave/{id}.npy"
    frame_times: Literal["all", "middle"] = "all"


def write_clip(
    folder: Path, scene: Scene, bank: SourceBank, media: Media = "mp4", places: Places | None = None
) -> dict[str, str]:
    """Write one clip below ``folder``: an mp4 (H.264 + AAC), or numbered images and a 32-kHz wave (.npy float32 or .wav).

    Returns {relative path: sha256} of the files written. Each file appears completely or not at all.
    """
    where = places or Places()
    if media == "mp4":
        target = where.video.format(id=scene.id)
        write_mp4(folder / target, frames(scene, bank), scene.fps, sound_track(scene, bank, RATE), RATE)
        return {target: sha256_of(folder / target)}
    if media != "frames":
        raise ConfigError(f"world: media {media!r} is unknown; expected mp4 or frames")
    times = frame_times(scene)
    if where.frame_times == "middle":
        times = times[chosen("middle", len(times), scene.seconds) - 1]
    written = {}
    for number, picture in enumerate(frames(scene, bank, times=times), start=1):
        target = f"{where.frames.format(id=scene.id)}/{where.frame_name.format(id=scene.id, number=number)}"
        written[target] = write_chunks(folder / target, [_image_bytes(picture, target)], flush=False)[1]
    target = where.wave.format(id=scene.id)
    written[target] = write_chunks(folder / target, [_wave_bytes(sound_track(scene, bank, RATE), target)], flush=False)[
        1
    ]
    return written


def _image_bytes(picture: np.ndarray, name: str) -> bytes:
    buffer = BytesIO()
    if name.endswith(".png"):
        Image.fromarray(picture).save(buffer, "PNG")
    else:
        Image.fromarray(picture).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _wave_bytes(wave: np.ndarray, name: str) -> bytes:
    buffer = BytesIO()
    if name.endswith(".npy"):
        np.save(buffer, wave)
    else:
        import soundfile

        soundfile.write(buffer, wave, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _job(scene: Scene, *, folder: Path, bank: SourceBank, write: ClipWriter) -> dict[str, str]:
    return write(folder, scene, bank)


def write_world(
    root: Path,
    scenes: Sequence[Scene],
    bank: SourceBank,
    annotations: Mapping[str, str],
    *,
    task: str,
    seed: int,
    size: WorldSize,
    media: Media = "mp4",
    places: Places | None = None,
    write: ClipWriter | None = None,
    difficulty: Difficulty = DIFFICULTY,
    workers: int = 2,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a whole data set in its published layout and return the record that ``world.json`` then holds.

    ``annotations`` maps a relative path to the text of an annotation file. ``scenes.jsonl`` keeps the scenes, the complete
    truth. ``write`` writes the files of one clip where they are more than ``media`` at ``places``: masks, several settings. A folder that already holds this very world is left as it is; an interrupted one is written again. Raises DataError
    when the folder holds anything else.
    """
    root, where = Path(root), places or Places()
    form = {"media": media, "places": asdict(where)} if write is None else {"media": "written by the task"}
    truth = [scene.to_json() for scene in scenes]
    wish: dict[str, Any] = {
        "task": task,
        "seed": seed,
        "bank": bank.describe(),
        "difficulty": difficulty.record(),
        "size": asdict(size),
        **form,
        "scenes": digest_of(truth),
        "annotations": {name: digest_of(text) for name, text in sorted(annotations.items())},
    }
    if len({scene.id for scene in scenes}) != len(scenes):
        raise ConfigError(f"world {task}: scene ids repeat; expected one id per clip")
    present = read_record(root)
    if present is not None:
        if present.get("wish") == digest_of(wish):
            return present
        raise DataError(
            f"{root / RECORD}: found another world (task {present.get('task')}, seed {present.get('seed')}); choose another folder or delete this one"
        )
    if root.is_dir() and any(root.iterdir()) and not (root / _BEGUN).exists():
        raise DataError(f"{root}: found files that are not a generated world; expected an empty or new folder")
    root.mkdir(parents=True, exist_ok=True)
    (root / _BEGUN).touch()
    for staged in root.rglob(".*.tmp"):  # left by an interrupted run
        staged.unlink()
    work = partial(_job, folder=root, bank=bank, write=write or partial(write_clip, media=media, places=where))
    media_digests: dict[str, str] = {}
    for done, (_, files) in enumerate(run_jobs(work, scenes, workers), start=1):
        media_digests.update(files)
        if progress:
            progress(done, len(scenes))
    texts = {
        "scenes.jsonl": "".join(json.dumps(scene, separators=(",", ":")) + "\n" for scene in truth),
        **annotations,
    }
    record = {
        "format": "avcl-world",
        **wish,
        "wish": digest_of(wish),
        "clips": len(scenes),
        "files": {name: write_chunks(root / name, [text.encode()])[1] for name, text in sorted(texts.items())},
        "media_files": len(media_digests),
        "media_digest": digest_of(media_digests),
    }
    write_json(root / RECORD, record)
    (root / _BEGUN).unlink()
    return record


def read_record(root: Path) -> dict[str, Any] | None:
    """The ``world.json`` of a folder, None when it is not a generated world; DataError when the file is damaged."""
    path = Path(root) / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path}: found {error}; expected JSON; delete the folder and generate the world again"
        ) from None
    if not isinstance(record, dict) or record.get("format") != "avcl-world":
        raise DataError(f"{path}: format: expected 'avcl-world'; this is not the record of a generated world")
    return record


def read_scenes(root: Path) -> list[Scene]:
    """The scenes of a generated world, in the order they were given; DataError when they are missing or damaged."""
    path = Path(root) / "scenes.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the scenes of a generated world; generate it again")
    scenes = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            scenes.append(Scene.from_json(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path}: line {number}: found {error}; expected a scene; generate the world again"
            ) from None
    return scenes
