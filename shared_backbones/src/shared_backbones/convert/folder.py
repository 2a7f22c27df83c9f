"""A checkpoint that is a folder: ``config.json`` and tensors in shards, mapped from disk and never all in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared_backbones.errors import WeightsError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Folder:
    """What lies in a folder: the values of its config, its tensors by name, and a sha256 over names and digests of all files read."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    sha256: str


def read_folder(path: Path) -> Folder:
    """Read the layout of transformers: ``config.json``, and either an index with its shards or one file of weights.

    Where both kinds lie there, safetensors are taken. Raises WeightsError: a file is missing or damaged, or a shard does not hold
    the tensors that the index says.
    """
    config = _read_json(path / "config.json")
    index = next((path / name for name in INDEXES if (path / name).is_file()), None)
    single = next((path / name for name in SINGLE if (path / name).is_file()), None)
    if index is not None:
        tensors = _read_shards(path, index)
        files = sorted({path / "config.json", index, *(path / shard for shard in _weight_map(index).values())})
    elif single is not None:
        tensors, files = _map_file(single), [path / "config.json", single]
    else:
        raise WeightsError(f"{path}: no weights; expected one of {', '.join((*INDEXES, *SINGLE))}")
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            total.update(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return Folder(path, config, tensors, total.hexdigest())


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise WeightsError(f"{file}: no such file; expected the folder of a checkpoint, with its {file.name}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise WeightsError(f"{file}: no JSON ({error})") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{file}: a JSON {type(found).__name__}; expected an object")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    found = _read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise WeightsError(f"{index}: no weight_map; expected tensor names with their shards")
    for shard in found.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise WeightsError(f"{index}: shard {shard!r}; expected the name of a file beside the index")
    return found


def _read_shards(path: Path, index: Path) -> dict[str, Tensor]:
    listed: dict[str, set[str]] = {}
    for name, shard in _weight_map(index).items():
        listed.setdefault(shard, set()).add(name)
    if missing := sorted(shard for shard in listed if not (path / shard).is_file()):
        raise WeightsError(f"{path}: {len(missing)} of {len(listed)} shards are missing: {', '.join(missing)}")
    tensors: dict[str, Tensor] = {}
    for shard, names in sorted(listed.items()):
        found = _map_file(path / shard)
        faults = [f"lacks {', '.join(lacking)}"] if (lacking := sorted(names - found.keys())) else []
        faults += [f"has {', '.join(more)} too"] if (more := sorted(found.keys() - names)) else []
        if faults:
            raise WeightsError(f"{path / shard}: {'; '.join(faults)}, unlike {index.name} says")
        tensors |= found
    return tensors


def _map_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped: they take no memory until they are read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file}: damaged ({error})") from None
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{file}: no torch file of tensors that can be mapped ({reason})") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{file}: not a plain table of tensors")
    return {str(name): value.detach() for name, value in found.items()}
