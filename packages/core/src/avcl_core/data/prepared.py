"""Reading the prepared form: what training and evaluation see of a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from avcl_core.data.atomic import sha256_of
from avcl_core.data.problems import QUARANTINE, MediaError, Problem, read_problems
from avcl_core.errors import DataError, nearest

FORMAT = "avcl-prepared"
VERSION = 2
SETTINGS, INDEX, MANIFEST = "settings.json", "index.json", "manifest.json"


class Prepared:
    """A prepared data set: frames and waves by clip id, annotation files by name.

    Can be pickled to loader processes; array files are memory-mapped there at first use. Raises DataError when ``folder`` is
    missing, unfinished, of another version, or has files whose size is not the recorded one.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self.manifest: dict[str, Any] = manifest
        self.digest: str = sha256_of(self.folder / MANIFEST)
        """sha256 of the manifest, which holds the sha256 of every file: the identity of the whole data set."""
        self.layout: str = manifest["layout"]
        self.seconds: int = manifest["seconds"]
        self.frame_size: int = manifest["frame_size"]
        self.rate: int = manifest["rate"]
        self.extras: tuple[str, ...] = tuple(manifest["extras"])
        """Names of the further arrays that every clip has."""
        for problem in check_files(self.folder, manifest):
            raise MediaError(problem)
        index = _read_index(self.folder, manifest)
        self._rows: dict[str, tuple[int, int, str]] = {
            id: (shard, row, digest) for id, shard, row, digest in index["clips"]
        }
        self._left_out: tuple[str, ...] = tuple(index["left_out"])
        self._annotations: dict[str, str] = index["annotations"]
        self._maps: dict[tuple[str, int], np.ndarray] = {}
        self._quarantined: dict[str, Problem] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, id: object) -> bool:
        return id in self._rows

    @property
    def ids(self) -> tuple[str, ...]:
        """Clips that are there, in the order of the layout; broken ones are in :attr:`quarantined`."""
        return tuple(self._rows)

    @property
    def quarantined(self) -> dict[str, Problem]:
        """Clip id -> the first error that keeps it out, from ``quarantine.jsonl``."""
        if self._quarantined is None:
            known = {*self._rows, *self._left_out}
            found: dict[str, Problem] = {}
            for problem in read_problems(self.folder / QUARANTINE):
                if problem.severity == "error" and problem.record in known:
                    found.setdefault(problem.record, problem)
            self._quarantined = found
        return self._quarantined

    def frames(self, id: str) -> np.ndarray:
        """Frames of a clip, uint8 RGB [T, S, S, 3], one a second. MediaError (a DataError) for a quarantined or unknown clip."""
        return np.array(self._array("frames", id))

    def wave(self, id: str) -> np.ndarray:
        """Sound of a clip by seconds, float32 [T, rate]. MediaError (a DataError) for a quarantined or unknown clip."""
        return np.array(self._array("waves", id)).reshape(self.seconds, self.rate)

    def extra(self, name: str, id: str) -> np.ndarray:
        """A further array of a clip. MediaError (a DataError) for a quarantined or unknown clip, DataError for an unknown name."""
        if name not in self.extras:
            raise DataError(f"{self.folder}: extra array {name!r} is unknown{nearest(name, self.extras)}")
        return np.array(self._array(f"extras/{name}", id))

    def sample_digest(self, id: str) -> str:
        """sha256 of the clip's frames, wave and further arrays: part of the key of every cache."""
        return self._row(id)[2]

    @property
    def annotations(self) -> tuple[str, ...]:
        """Names of the annotation files."""
        return tuple(self._annotations)

    def annotation(self, name: str) -> Path:
        """The copy of an annotation file; DataError when the data set has none of this name."""
        if name not in self._annotations:
            raise DataError(f"{self.folder}: annotation {name!r} is unknown{nearest(name, tuple(self._annotations))}")
        return self.folder / self._annotations[name]

    def _row(self, id: str) -> tuple[int, int, str]:
        if (problem := self.quarantined.get(id)) is not None:
            raise MediaError(problem)
        if id not in self._rows:
            action = "check the id against the annotation files or run data prepare again"
            raise MediaError(
                Problem(str(self.folder), id, "clip", "no such clip", f"one of the {len(self)} prepared clips", action)
            )
        return self._rows[id]

    def _array(self, kind: str, id: str) -> np.ndarray:
        shard, row, _ = self._row(id)
        if (kind, shard) not in self._maps:
            if not self.manifest.get({"frames": "picture", "waves": "sound"}.get(kind, "extras")):
                raise DataError(f"{self.folder}: {kind}: found none; the layout {self.layout} has no such media")
            self._maps[kind, shard] = np.load(
                self.folder / kind / f"{shard:05d}.npy", mmap_mode="r", allow_pickle=False
            )
        return self._maps[kind, shard][row]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder; DataError says which command makes one when it is missing, unfinished or too old."""
    path = folder / MANIFEST
    if not path.is_file():
        state = "an unfinished preparation" if (folder / SETTINGS).is_file() else "no prepared data"
        raise DataError(
            f"{folder}: manifest.json: found {state}; expected a prepared data set; run `avcl data prepare` (again) for this folder"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        form, version = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: content: found {error!r}; expected a manifest; run `avcl data prepare` again"
        ) from None
    if form != FORMAT or version != VERSION:
        raise DataError(
            f"{path}: version: found {form} {version}; expected {FORMAT} {VERSION}; delete the folder and run `avcl data prepare` again"
        )
    return manifest


def check_files(folder: Path, manifest: dict[str, Any]) -> list[Problem]:
    """Files of the manifest that are missing or have another size."""
    problems = []
    for name, entry in manifest["files"].items():
        path = folder / name
        found = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
        if found != f"{entry['bytes']} bytes":
            problems.append(
                Problem(str(path), "", "size", found, f"{entry['bytes']} bytes", "run `avcl data prepare` again")
            )
    return problems


def _read_index(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    path = folder / INDEX
    if sha256_of(path) != manifest["files"][INDEX]["sha256"]:
        problem = Problem(
            str(path), "", "sha256", "another content", "the one in manifest.json", "run `avcl data prepare` again"
        )
        raise MediaError(problem)
    return json.loads(path.read_text(encoding="utf-8"))
