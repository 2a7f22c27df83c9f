"""A checkpoint is committed all or nothing: staged, synced, described by a manifest, renamed, and only then named LATEST."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from avcl_core.errors import IntegrityError
from avcl_core.ownership import matches
from avcl_core.training.owned_files import as_bytes, owned_files
from avcl_core.training.packing import pack, unpack

FORMAT = 2
TRAINED, SELECTED = "trained", "selected"
"""Folders of a checkpoint with one file per owner."""
_FILES = ("method.safetensors", "optimizer.pt", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """What a commit holds.

    Attributes:
        trained: owned tensors by name.
        owners: name → owner of every owned tensor; each owner has a file of its own.
        method: the method's state, nested dictionaries and lists of tensors and JSON values.
        optimizer: optimiser name → parameter name → state.
        selected: owned tensors of the best epoch so far, empty outside training.
        state: JSON: position, result matrix, log offsets, digests.
    """

    trained: Mapping[str, Tensor]
    owners: Mapping[str, str]
    method: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    selected: Mapping[str, Tensor]
    state: Mapping[str, Any]


class CheckpointStore:
    """The ``checkpoints/`` folder of a run.

    A file that the previous commit has with the same content is linked from it, not written again: of a stream, every task's
    tensors are written while they are learnt and never after. Commits share such a file, so it must not be changed in place.

    Args:
        folder: the folder; created on the first commit.
        keep: how many commits without a lasting name are kept, at least two.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, max(2, keep)

    def tags(self) -> list[str]:
        """Return the tags of complete checkpoints in order of commit."""
        if not self.folder.is_dir():
            return []
        return sorted(
            p.name
            for p in self.folder.iterdir()
            if p.is_dir() and not p.name.startswith(".") and (p / "manifest.json").is_file()
        )

    def latest(self) -> str | None:
        """Return the tag that ``LATEST`` names, or ``None`` before the first commit."""
        pointer = self.folder / "LATEST"
        return pointer.read_text().strip() if pointer.is_file() else None

    # ------------------------------------------------------------------ writing
    def commit(self, checkpoint: Checkpoint, label: str = "") -> str:
        """Write a checkpoint durably and return its tag; a ``label`` makes it last beyond ``keep``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left_over in self.folder.glob(".staging-*"):
            shutil.rmtree(left_over)
        previous = self.latest()
        number = int(previous.split("-")[0]) + 1 if previous else 1
        tag = f"{number:06d}" + (f"-{re.sub(r'[^A-Za-z0-9._-]+', '-', label)}" if label else "")
        staging = _Staging(self.folder / f".staging-{tag}", self.folder / previous if previous else None)
        for folder, tensors in ((TRAINED, checkpoint.trained), (SELECTED, checkpoint.selected)):
            for owner, name, content in owned_files(tensors, checkpoint.owners):
                staging.put(f"{folder}/{name}", content, owner=owner)
        tensors, structure = pack(checkpoint.method)
        staging.put("method.safetensors", as_bytes(tensors, {"structure": json.dumps(structure)}))
        staging.put("state.json", json.dumps(checkpoint.state, indent=1, sort_keys=True).encode())
        torch.save(checkpoint.optimizer, staging.folder / "optimizer.pt")
        staging.take("optimizer.pt")
        staging.seal()
        target = self.folder / tag
        if target.exists():
            shutil.rmtree(target)
        staging.folder.rename(target)
        sync(self.folder)
        replace_text(self.folder / "LATEST", tag + "\n")
        self._prune()
        return tag

    def _prune(self) -> None:
        unlabelled = [tag for tag in self.tags() if "-" not in tag]
        latest = self.latest()
        for tag in unlabelled[: -self.keep]:
            if tag != latest:
                shutil.rmtree(self.folder / tag)

    # ------------------------------------------------------------------ reading
    def load(self, tag: str | None = None) -> Checkpoint:
        """Read a checkpoint, by default the latest, after checking every file against its manifest.

        Raises:
            IntegrityError: there is none, or a file is missing or differs from the manifest.
        """
        folder, files = self._described(tag)
        self._check(folder, files)
        with safe_open(folder / "method.safetensors", "pt") as opened:
            structure = json.loads(opened.metadata()["structure"])
        trained, selected = (_read(folder, _part(files, part)) for part in (TRAINED, SELECTED))
        return Checkpoint(
            trained={name: tensor for part in trained.values() for name, tensor in part.items()},
            owners={name: owner for owner, part in trained.items() for name in part},
            method=unpack(load_file(folder / "method.safetensors"), structure),
            optimizer=torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True),
            selected={name: tensor for part in selected.values() for name, tensor in part.items()},
            state=json.loads((folder / "state.json").read_text()),
        )

    def trained(self, tag: str | None = None, owners: Sequence[str] = ("*",)) -> dict[str, dict[str, Tensor]]:
        """Return owner → its tensors by name, for owners that match a pattern; no other file is read or checked.

        Raises:
            IntegrityError: as :meth:`load`, for these files alone.
        """
        folder, files = self._described(tag)
        wanted = {name: entry for name, entry in _part(files, TRAINED).items() if matches(entry["owner"], owners)}
        self._check(folder, wanted)
        return _read(folder, wanted)

    def _described(self, tag: str | None) -> tuple[Path, dict[str, Any]]:
        """The folder of a tag and what its manifest lists."""
        tag = tag or self.latest()
        if tag is None:
            raise IntegrityError(f"{self.folder}: no checkpoint was committed; start the run again")
        path = self.folder / tag / "manifest.json"
        if not path.is_file():
            have = ", ".join(self.tags()) or "none"
            raise IntegrityError(
                f"{path.parent}: manifest.json is missing, so this is no complete checkpoint; complete ones: {have}"
            )
        return path.parent, _manifest(path)

    def _check(self, folder: Path, files: Mapping[str, Any]) -> None:
        for name, entry in files.items():
            found = file_digest(folder / name) if (folder / name).is_file() else None
            if found != entry["sha256"]:
                what = "is missing" if found is None else f"has sha256 {found[:12]}"
                raise IntegrityError(
                    f"{folder / name}: {what}, the manifest says {entry['sha256'][:12]}; restore the file, or "
                    + self._others(folder.name)
                )

    def _others(self, damaged: str) -> str:
        """What else can be resumed from: tags whose files are all as they were written; they may share the damaged one."""
        whole = []
        for tag in self.tags():
            try:
                folder, files = self._described(tag)
            except IntegrityError:
                continue
            if tag != damaged and all(_is(folder / name, entry) for name, entry in files.items()):
                whole.append(tag)
        if not whole:
            return "start the run again: no other commit is whole"
        return f"write a whole commit's tag ({', '.join(whole)}) into {self.folder / 'LATEST'}"


class _Staging:
    """A commit's folder while it is written: every file is synced and listed; what ``previous`` has already is linked."""

    def __init__(self, folder: Path, previous: Path | None) -> None:
        folder.mkdir()
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}
        self.known: dict[str, Path] = {}
        if previous is not None:
            # A damaged manifest has nothing to give: then everything is written.
            with suppress(IntegrityError, OSError):
                for name, entry in _manifest(previous / "manifest.json").items():
                    self.known[entry["sha256"]] = previous / name

    def put(self, name: str, content: bytes, **more: str) -> None:
        """Have a file with this content, and list it."""
        path = self.folder / name
        if not path.parent.is_dir():
            path.parent.mkdir()
        digest = hashlib.sha256(content).hexdigest()
        if not _linked(self.known.get(digest), path, content):
            path.write_bytes(content)
            sync(path)
            self.known[digest] = path
        self.files[name] = {"sha256": digest, "bytes": len(content), **more}

    def take(self, name: str) -> None:
        """List a file that was written here."""
        path = self.folder / name
        sync(path)
        self.files[name] = {"sha256": file_digest(path), "bytes": path.stat().st_size}

    def seal(self) -> None:
        """Write the manifest and make the folder durable."""
        manifest = {"format": FORMAT, "files": self.files}
        path = self.folder / "manifest.json"
        path.write_text(json.dumps(manifest, indent=1, sort_keys=True))
        sync(path)
        for folder in (*(p for p in sorted(self.folder.iterdir()) if p.is_dir()), self.folder):
            sync(folder)


def _linked(source: Path | None, target: Path, content: bytes) -> bool:
    """Link ``source`` as ``target`` if it still has this content; damage must not spread from commit to commit."""
    try:
        if source is None or not _holds(source, content):
            return False
        os.link(source, target)
    except OSError:  # a file system without links, or a file with as many as it can have
        return False
    return True


def _holds(path: Path, content: bytes, chunk: int = 1 << 20) -> bool:
    if path.stat().st_size != len(content):
        return False
    with path.open("rb") as handle:
        return all(handle.read(chunk) == content[at : at + chunk] for at in range(0, len(content), chunk))


def _is(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["bytes"] and file_digest(path) == entry["sha256"]


def _manifest(path: Path) -> dict[str, Any]:
    """File name → its entry in a manifest."""
    try:
        manifest = json.loads(path.read_text())
        found, files = manifest["format"], manifest["files"]
        lacking = [name for name in _FILES if name not in files] if found == FORMAT else []
        for name, entry in files.items() if found == FORMAT else ():
            _ = entry["sha256"], entry["bytes"], entry["owner"] if "/" in name else ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}: not a manifest ({type(error).__name__}: {error}); restore the file") from error
    if found != FORMAT:
        raise IntegrityError(f"{path}: field format is {found}, this version reads {FORMAT}; start the run again")
    if lacking:
        raise IntegrityError(f"{path}: field files lacks {lacking}; restore the file")
    return files


def _part(files: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The entries of one of the folders with a file per owner."""
    return {name: entry for name, entry in files.items() if name.startswith(f"{part}/")}


def _read(folder: Path, files: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Owner → its tensors."""
    return {entry["owner"]: load_file(folder / name) for name, entry in files.items()}


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Replace a small file atomically and durably."""
    staged = path.with_name(f".{path.name}.tmp")
    staged.write_text(text)
    sync(staged)
    staged.replace(path)
    sync(path.parent)
