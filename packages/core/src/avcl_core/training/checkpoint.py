"""A checkpoint is committed all or nothing: staged, synced, described by a manifest, renamed, and only then named LATEST."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from avcl_core.errors import IntegrityError

FORMAT = 1
_TENSOR = "__tensor__"


@dataclass(frozen=True)
class Checkpoint:
    """What a commit holds.

    Attributes:
        trained: owned tensors by name.
        method: the method's state, nested dictionaries and lists of tensors and JSON values.
        optimizer: optimiser name → parameter name → state.
        selected: owned tensors of the best epoch so far, empty outside training.
        state: JSON: position, result matrix, log offsets, digests.
    """

    trained: Mapping[str, Tensor]
    method: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    selected: Mapping[str, Tensor]
    state: Mapping[str, Any]


class CheckpointStore:
    """The ``checkpoints/`` folder of a run.

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

    def commit(self, checkpoint: Checkpoint, label: str = "") -> str:
        """Write a checkpoint durably and return its tag; a ``label`` makes it last beyond ``keep``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left_over in self.folder.glob(".staging-*"):
            shutil.rmtree(left_over)
        previous = self.latest()
        number = int(previous.split("-")[0]) + 1 if previous else 1
        tag = f"{number:06d}" + (f"-{re.sub(r'[^A-Za-z0-9._-]+', '-', label)}" if label else "")
        staging = self.folder / f".staging-{tag}"
        staging.mkdir()
        save_file(_contiguous(checkpoint.trained), staging / "trained.safetensors")
        tensors, structure = pack(checkpoint.method)
        save_file(tensors, staging / "method.safetensors", metadata={"structure": json.dumps(structure)})
        save_file(_contiguous(checkpoint.selected), staging / "selected.safetensors")
        torch.save(checkpoint.optimizer, staging / "optimizer.pt")
        (staging / "state.json").write_text(json.dumps(checkpoint.state, indent=1, sort_keys=True))
        manifest = {"format": FORMAT, "files": {}}
        for path in sorted(staging.iterdir()):
            manifest["files"][path.name] = {"sha256": file_digest(path), "bytes": path.stat().st_size}
            sync(path)
        (staging / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
        sync(staging / "manifest.json")
        sync(staging)
        target = self.folder / tag
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
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

    def load(self, tag: str | None = None) -> Checkpoint:
        """Read a checkpoint, by default the latest, after checking every file against its manifest.

        Raises:
            IntegrityError: there is none, or a file is missing or differs from the manifest.
        """
        tag = tag or self.latest()
        if tag is None:
            raise IntegrityError(f"{self.folder}: no checkpoint was committed; start the run again")
        folder = self.folder / tag
        manifest_path = folder / "manifest.json"
        if not manifest_path.is_file():
            have = ", ".join(self.tags()) or "none"
            raise IntegrityError(
                f"{folder}: manifest.json is missing, so this is no complete checkpoint; complete ones: {have}"
            )
        manifest = _manifest(manifest_path)
        if manifest["format"] != FORMAT:
            raise IntegrityError(f"{manifest_path}: field format is {manifest['format']}, this version reads {FORMAT}")
        for name, entry in manifest["files"].items():
            path = folder / name
            found = file_digest(path) if path.is_file() else "missing"
            if found != entry["sha256"]:
                raise IntegrityError(
                    f"{path}: sha256 {found[:12]}, manifest says {entry['sha256'][:12]}; restore the file or write another "
                    f"complete tag ({', '.join(self.tags())}) into {self.folder / 'LATEST'}"
                )
        from safetensors import safe_open

        with safe_open(folder / "method.safetensors", "pt") as opened:
            structure = json.loads(opened.metadata()["structure"])
        return Checkpoint(
            trained=load_file(folder / "trained.safetensors"),
            method=unpack(load_file(folder / "method.safetensors"), structure),
            optimizer=torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True),
            selected=load_file(folder / "selected.safetensors"),
            state=json.loads((folder / "state.json").read_text()),
        )


_FILES = ("trained.safetensors", "method.safetensors", "selected.safetensors", "optimizer.pt", "state.json")


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
        lacking = [name for name in _FILES if name not in manifest["files"]] if manifest["format"] == FORMAT else []
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path}: not a manifest ({type(error).__name__}: {error}); restore the file") from error
    if lacking:
        raise IntegrityError(f"{path}: field files lacks {lacking}; restore the file")
    return manifest


def pack(value: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested dictionaries and lists into named tensors and a JSON structure that refers to them."""
    tensors: dict[str, Tensor] = {}

    def visit(node: Any) -> Any:
        if isinstance(node, Tensor):
            name = f"t{len(tensors):06d}"
            tensors[name] = node.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {_TENSOR: name}
        if isinstance(node, Mapping):
            for key in node:
                if not isinstance(key, str):
                    raise TypeError(
                        f"method state has the key {key!r}; use strings, other keys would not come back as they were"
                    )
            return {key: visit(child) for key, child in node.items()}
        if isinstance(node, (list, tuple)):
            return [visit(child) for child in node]
        if node is None or isinstance(node, (str, int, float, bool)):
            return node
        raise TypeError(
            f"method state holds a {type(node).__name__}; use tensors, numbers, strings, lists and dictionaries"
        )

    return tensors, visit(value)


def unpack(tensors: Mapping[str, Tensor], structure: Any) -> Any:
    """Undo :func:`pack`."""
    if isinstance(structure, dict):
        if structure.keys() == {_TENSOR}:
            return tensors[structure[_TENSOR]]
        return {key: unpack(tensors, child) for key, child in structure.items()}
    if isinstance(structure, list):
        return [unpack(tensors, child) for child in structure]
    return structure


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


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
