"""Checking a prepared folder against its manifest, and a published layout against what can be read."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from avcl_core.data.atomic import sha256_of
from avcl_core.data.clips import open_clip, read_clip, read_extras
from avcl_core.data.layout import ClipSource, Layout
from avcl_core.data.pool import Progress, run_jobs
from avcl_core.data.prepare import sample_digest
from avcl_core.data.prepared import Prepared, check_files, read_manifest
from avcl_core.data.problems import QUARANTINE, Problem, read_problems, write_problems
from avcl_core.errors import ConfigError

Level = Literal["fast", "full"]


def verify(folder: Path, level: Level = "fast") -> list[Problem]:
    """Problems of a prepared folder: ``fast`` compares presence and sizes, ``full`` the sha256 of every file too.

    A damaged shard names the clips whose samples changed; they are added to ``quarantine.jsonl``, from which the next
    `avcl data prepare` removes them. Raises DataError when the folder is not a finished preparation.
    """
    _check_level(level)
    folder = Path(folder)
    manifest = read_manifest(folder)
    problems = check_files(folder, manifest)
    if level == "full" and not problems:
        wrong = [name for name, entry in manifest["files"].items() if sha256_of(folder / name) != entry["sha256"]]
        for name in wrong:
            expected = manifest["files"][name]["sha256"]
            problems.append(
                Problem(
                    str(folder / name), "", "sha256", "another content", expected[:16], "run `avcl data prepare` again"
                )
            )
        if any(name.endswith(".npy") for name in wrong):
            problems += _changed_clips(folder)
    if problems:
        write_problems(folder / QUARANTINE, [*read_problems(folder / QUARANTINE), *problems])
    return problems


def _changed_clips(folder: Path) -> list[Problem]:
    data, problems = Prepared(folder), []
    for id in data.ids:
        if id in data.quarantined:
            continue
        frames = data.frames(id) if data.manifest["picture"] else None
        wave = data.wave(id).reshape(-1) if data.manifest["sound"] else None
        extras = [data.extra(name, id) for name in data.extras]
        if sample_digest(frames, wave, *extras) != data.sample_digest(id):
            where = str(folder / "frames, waves or extras")
            problems.append(
                Problem(
                    where, id, "sha256", "another content", data.sample_digest(id)[:16], "run `avcl data prepare` again"
                )
            )
    return problems


def verify_source(
    layout: Layout,
    level: Level = "fast",
    *,
    rate: int = 32000,
    workers: int = 1,
    quarantine: Path | None = None,
    progress: Progress | None = None,
) -> list[Problem]:
    """Problems of a published layout: those of its annotation files, then of every clip in order.

    ``fast`` opens headers and lists folders, ``full`` decodes everything. ``quarantine`` is where the list is written, if given.
    """
    _check_level(level)
    picture, sound = any(clip.picture for clip in layout.clips), any(clip.sound for clip in layout.clips)
    look = partial(_look, level=level, rate=rate, picture=picture, sound=sound)
    found: dict[int, list[Problem]] = {}
    for done, (position, problems) in enumerate(run_jobs(look, layout.clips, workers), start=1):
        found[position] = problems
        if progress:
            progress(done, len(layout.clips))
    everything = [
        *layout.problems,
        *_annotation_files(layout),
        *(p for position in sorted(found) for p in found[position]),
    ]
    if quarantine is not None:
        write_problems(quarantine, everything)
    return everything


def _look(clip: ClipSource, *, level: Level, rate: int, picture: bool, sound: bool) -> list[Problem]:
    if level == "fast":
        return open_clip(clip, rate=rate, picture=picture, sound=sound)
    media = read_clip(clip, frame_size=None, rate=rate, picture=picture, sound=sound)[2]
    return [*media, *read_extras(clip)[1]]


def _annotation_files(layout: Layout) -> list[Problem]:
    return [
        Problem(str(path), "", "file", "no such file", f"the annotation file {name!r}", "add it")
        for name, path in sorted(layout.annotations.items())
        if not Path(path).is_file()
    ]


def _check_level(level: str) -> None:
    if level not in ("fast", "full"):
        raise ConfigError(f"verify: level {level!r} is unknown; expected fast or full")
