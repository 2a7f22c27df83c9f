"""From a published layout to the prepared form: shards of frames and waves, an index, annotation copies, a manifest.

Work is done by shard. A shard is kept when its sources and settings are the ones it was made from and its files have the digests
it recorded; everything else is made again. So a killed run is continued by running it again, with the same bytes as result.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avcl_core.data.atomic import digest_of, flush, sha256_of, write_chunks, write_json
from avcl_core.data.clips import read_clip, read_extras
from avcl_core.data.layout import ClipSource, Layout
from avcl_core.data.pool import Progress, run_jobs
from avcl_core.data.prepared import FORMAT, INDEX, MANIFEST, SETTINGS, VERSION, Prepared
from avcl_core.data.problems import QUARANTINE, Problem, write_problems
from avcl_core.data.records import refuse_errors
from avcl_core.errors import DataError

SHARD = 64
"""Clips per shard: the unit of work and of resuming, about 100 MB at 96 pixels and 10 s."""


@dataclass(frozen=True)
class _Job:
    out: Path
    number: int
    clips: tuple[ClipSource, ...]
    settings: dict[str, Any]
    sources: str

    @property
    def record(self) -> Path:
        return self.out / "shards" / f"{self.number:05d}.json"


def prepare(
    layout: Layout, out: Path, *, frame_size: int, rate: int = 32000, workers: int = 2, progress: Progress | None = None
) -> Prepared:
    """Write the prepared form of ``layout`` into ``out`` and open it.

    Frames are uint8 RGB at ``frame_size``, one a second; waves mono float32 at ``rate`` Hz. Broken clips are listed in
    ``quarantine.jsonl`` and left out, never replaced. The result depends only on the media and the settings, not on workers,
    interruptions or ``out``. ``progress`` is called with (clips done, clips). Raises DataError for repeated clip ids, clips of
    different length, a missing annotation file, or a folder that holds another preparation.
    """
    out = Path(out)
    settings = _settings(layout, frame_size, rate)
    _check_folder(out, settings)
    jobs = [
        _Job(out, number, layout.clips[first : first + SHARD], settings, _sources(layout.clips[first : first + SHARD]))
        for number, first in enumerate(range(0, len(layout.clips), SHARD))
    ]
    kept = (
        [position for position, good in run_jobs(_is_kept, jobs, workers) if good] if (out / "shards").is_dir() else []
    )
    missing = [job for position, job in enumerate(jobs) if position not in kept]
    done = sum(len(jobs[position].clips) for position in kept)
    if missing:
        (out / MANIFEST).unlink(missing_ok=True)  # from here on, until its end, the folder is unfinished
    write_json(out / SETTINGS, settings)
    if progress:
        progress(done, len(layout.clips))
    for position in kept:
        _flush(jobs[position])
    for position, _ in run_jobs(_make_shard, missing, workers):
        _flush(missing[position])  # here, where no worker waits for the disk
        done += len(missing[position].clips)
        if progress:
            progress(done, len(layout.clips))
    _finish(layout, out, settings, jobs)
    return Prepared(out)


def _settings(layout: Layout, frame_size: int, rate: int) -> dict[str, Any]:
    if not layout.clips:
        refuse_errors(layout.problems)
        raise DataError(f"{layout.name}: clips: found none; expected at least one; check the folder of the data set")
    repeated = sorted({clip.id for clip in layout.clips} & _repeats([clip.id for clip in layout.clips]))
    if repeated:
        raise DataError(
            f"{layout.name}: clip ids: {', '.join(repeated[:10])} found more than once; expected each id once"
        )
    lengths = sorted({clip.seconds for clip in layout.clips})
    if len(lengths) > 1:
        raise DataError(
            f"{layout.name}: seconds: found clips of {', '.join(map(str, lengths))} s; expected one length in a layout"
        )
    return {
        "format": FORMAT,
        "version": VERSION,
        "layout": layout.name,
        "seconds": lengths[0],
        "frame_size": frame_size,
        "rate": rate,
        "shard": SHARD,
        "picture": any(clip.picture is not None for clip in layout.clips),
        "sound": any(clip.sound is not None for clip in layout.clips),
        "extras": _extras(layout),
    }


def _extras(layout: Layout) -> list[str]:
    """Names of the further arrays, which are the same for all clips of a layout."""
    kinds = {tuple(extra.name for extra in clip.extras) for clip in layout.clips}
    if len(kinds) > 1:
        raise DataError(
            f"{layout.name}: extra arrays: found clips with {sorted(kinds)}; expected the same for every clip"
        )
    return list(kinds.pop())


def _repeats(ids: Sequence[str]) -> set[str]:
    seen: set[str] = set()
    return {id for id in ids if id in seen or seen.add(id)}


def _check_folder(out: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder of other files or of other settings."""
    if not out.is_dir() or all(_is_staged(path) for path in out.iterdir()):
        return
    path = out / SETTINGS
    try:
        present = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{out}: found files that are not prepared data; expected an empty or new folder") from None
    except ValueError as error:
        raise DataError(f"{path}: found {error}; expected JSON; delete the folder and run data prepare again") from None
    for key, value in settings.items():
        if present.get(key) != value:
            raise DataError(
                f"{path}: {key}: found {present.get(key)!r}; expected {value!r}; choose another folder or delete this one"
            )


def _is_staged(path: Path) -> bool:
    """Whether a file is the leftover of a write that was killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _sources(clips: Sequence[ClipSource]) -> str:
    """Digest of what a shard is made from: ids, rules, and name, size and time of every media file."""
    return digest_of(
        [
            [
                clip.id,
                clip.frame_rule,
                clip.sound_rule,
                _stamp(clip.picture),
                _stamp(clip.sound),
                [[extra.name, *map(_stamp, extra.paths)] for extra in clip.extras],
            ]
            for clip in clips
        ]
    )


def _stamp(path: Path | None) -> list[Any] | None:
    if path is None or not path.exists():
        return None
    if path.is_dir():
        with os.scandir(path) as entries:
            return sorted([entry.name, entry.stat().st_size, entry.stat().st_mtime_ns] for entry in entries)
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _is_kept(job: _Job) -> bool:
    record = _read_record(job.record)
    if record is None or record.get("settings") != digest_of(job.settings) or record.get("sources") != job.sources:
        return False
    return all(
        (job.out / name).is_file() and sha256_of(job.out / name) == digest
        for name, (_, digest) in record["files"].items()
    )


def _flush(job: _Job) -> None:
    """Bring the arrays of a shard to the disk: the manifest, which says that they are there, is written after that."""
    for name in json.loads(job.record.read_text(encoding="utf-8"))["files"]:
        flush(job.out / name)


def _make_shard(job: _Job) -> None:
    """Read the clips of a shard and write its arrays, then its record: the record makes it count."""
    rows: list[list[str]] = []
    arrays: dict[str, list[np.ndarray]] = {}
    left_out: list[str] = []
    problems: list[Problem] = []
    picture, sound = job.settings["picture"], job.settings["sound"]
    for clip in job.clips:
        shots, wave, found = read_clip(
            clip, frame_size=job.settings["frame_size"], rate=job.settings["rate"], picture=picture, sound=sound
        )
        extras, lacking = read_extras(clip)
        problems += [*found, *lacking]
        if (picture and shots is None) or (sound and wave is None) or lacking:
            left_out.append(clip.id)
            continue
        rows.append([clip.id, sample_digest(shots, wave, *extras.values())])
        media = {"frames": shots, "waves": wave, **{f"extras/{name}": array for name, array in extras.items()}}
        for kind, array in media.items():
            if array is not None:
                arrays.setdefault(kind, []).append(array)
    files = {}
    for kind, stack in arrays.items():
        shapes = {(array.shape, array.dtype.str) for array in stack}
        if len(shapes) > 1:
            raise DataError(
                f"{job.settings['layout']}: {kind}: found arrays of {sorted(shapes)}; expected one shape and type"
            )
        name = f"{kind}/{job.number:05d}.npy"
        files[name] = write_chunks(job.out / name, _npy(stack), flush=False)
    record = {
        "settings": digest_of(job.settings),
        "sources": job.sources,
        "rows": rows,
        "left_out": left_out,
        "files": files,
        "problems": [vars(problem) for problem in problems],
    }
    write_json(job.record, record)


def _npy(arrays: list[np.ndarray]):
    """The bytes of np.save(np.stack(arrays)) without stacking."""
    from io import BytesIO

    header = BytesIO()
    shape = (len(arrays), *arrays[0].shape)
    description = {"descr": np.lib.format.dtype_to_descr(arrays[0].dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    yield header.getvalue()
    for array in arrays:
        yield np.ascontiguousarray(array).data.cast("B")


def sample_digest(*arrays: np.ndarray | None) -> str:
    """sha256 over shape, type and bytes of a clip's frames, wave and further arrays: its identity for caches and checks."""
    digest = hashlib.sha256()
    for array in arrays:
        if array is not None:
            flat = np.ascontiguousarray(array)
            digest.update(f"{flat.shape}{flat.dtype.str}".encode())
            digest.update(flat.data.cast("B"))
    return digest.hexdigest()


def _finish(layout: Layout, out: Path, settings: dict[str, Any], jobs: Sequence[_Job]) -> None:
    """Index, annotation copies, quarantine list and, as the last act, the manifest; leftovers of larger layouts go."""
    records = [json.loads(job.record.read_text(encoding="utf-8")) for job in jobs]
    files: dict[str, tuple[int, str]] = {}
    for record in records:
        files.update({name: (size, digest) for name, (size, digest) in record["files"].items()})
    annotations = {}
    for name, path in sorted(layout.annotations.items()):
        if not Path(path).is_file():
            raise DataError(
                f"{path}: file: found no such file; expected the annotation file {name!r} of {layout.name}; add it"
            )
        annotations[name] = f"annotations/{name}{Path(path).suffix}"
        files[annotations[name]] = write_chunks(out / annotations[name], [Path(path).read_bytes()])
    index = {
        "clips": [
            [id, number, row, digest]
            for number, record in enumerate(records)
            for row, (id, digest) in enumerate(record["rows"])
        ],
        "left_out": [id for record in records for id in record["left_out"]],
        "annotations": annotations,
    }
    files[INDEX] = write_json(out / INDEX, index)
    files[SETTINGS] = ((out / SETTINGS).stat().st_size, sha256_of(out / SETTINGS))
    wanted = {out / name for name in files} | {job.record for job in jobs}
    for folder in ("frames", "waves", "extras", "shards", "annotations"):
        for path in (out / folder).rglob("*"):
            if path.is_file() and path not in wanted:
                path.unlink()
    for path in out.iterdir():
        if _is_staged(path):
            path.unlink()
    found = [Problem(**values) for record in records for values in record["problems"]]
    write_problems(out / QUARANTINE, [*layout.problems, *found])
    listing = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()}
    write_json(out / MANIFEST, {**settings, "files": listing})
