"""Getting weights into a tower: a checkpoint file (converted first where needed) or the embedded tiny weights."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_backbones.convert import convert_file
from shared_backbones.errors import WeightsError
from shared_backbones.registry import build

if TYPE_CHECKING:
    from torch import Tensor

    from shared_backbones.tower import Tower, TowerInfo

# Constants of the geometry and counters without effect in eval mode: the tower has them already, a file may omit them.
OPTIONAL = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")
EMBEDDED = Path(__file__).parent / "embedded"
REBUILD = "avcl weights pretrain"


def sha256_of(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header(path: Path) -> dict[str, str] | None:
    """The metadata of a safetensors file, or None where the file is not one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return None


def load_tensors(tower: Tower, tensors: dict[str, Tensor], origin: str) -> None:
    """Copy tensors into ``tower.net``; every name and shape must fit. WeightsError lists all that do not."""
    import torch

    own = tower.net.state_dict()
    faults = compare(own, tensors)
    if faults:
        i = tower.info
        raise WeightsError(f"{origin}: does not fit tower {i.name} ({i.size}, {i.variant}): {'; '.join(faults)}")
    # Half-precision storage is exact in float32, so loading is deterministic whatever the storage. One tensor after the other: a
    # language model's weights are not to be in memory twice.
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def compare(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs between two tables of tensors: missing names, unknown names, wrong shapes; empty when all fit."""
    faults = []
    if missing := sorted(name for name in set(expected) - set(found) if name.rpartition(".")[2] not in OPTIONAL):
        faults.append(f"missing {len(missing)} keys: {', '.join(missing)}")
    if unknown := sorted(set(found) - set(expected)):
        faults.append(f"unknown {len(unknown)} keys: {', '.join(unknown)}")
    if shapes := [
        f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(found))
        if tuple(found[name].shape) != tuple(expected[name].shape)
    ]:
        faults.append(f"wrong shapes: {', '.join(shapes)}")
    return faults


def fitting_file(info: TowerInfo, path: Path) -> Path:
    """A converted file for a tower: the one given, or the converted twin of one in the authors' layout.

    Raises WeightsError where the file is absent, damaged, or of another tower, size or variant.
    """
    if path.is_dir():
        raise WeightsError(
            f"{path}: a folder; convert it once with `avcl weights convert {path} FILE.safetensors` and name that file"
        )
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; expected weights of tower {info.name}")
    header = read_header(path)
    if header is None or "tower" not in header:
        path = converted(path, info.name)
        header = read_header(path) or {}
    wanted = {"tower": info.name, "size": info.size, "variant": info.part_of or info.variant}
    for field, value in wanted.items():
        if header.get(field) != value:
            raise WeightsError(
                f"{path}: {field} {header.get(field)!r}; expected {value!r}, so name the fitting one or another file"
            )
    return path


def load_file_into(tower: Tower, path: Path) -> None:
    """Load a converted file; every name and shape must fit. WeightsError lists all that do not.

    A tower that is a part of another variant takes its own tensors out of a file that must hold all of that variant's.
    """
    from safetensors.torch import load_file

    tensors, info = load_file(path), tower.info
    if info.part_of is not None:
        whole = build(info.name, info.size, {"variant": info.part_of}, device="meta").net.state_dict()
        if faults := compare(whole, tensors):
            raise WeightsError(f"{path}: does not fit tower {info.name} ({info.part_of}): {'; '.join(faults)}")
        tensors = {name: tensors[name] for name in tower.net.state_dict() if name in tensors}
    load_tensors(tower, tensors, str(path))


def converted(source: Path, tower: str) -> Path:
    """The converted twin of a foreign checkpoint, made when there is none or the source has changed.

    It lies beside the source, or in ``$AVCL_CACHE`` (default ``~/.cache/avcl``) where that folder cannot be written.
    """
    digest = sha256_of(source)
    cache = Path(os.environ.get("AVCL_CACHE", Path.home() / ".cache" / "avcl")) / "weights"
    places = [source.with_name(f"{source.name}.{tower}.safetensors"), cache / f"{digest[:16]}.{tower}.safetensors"]
    for place in places:
        if place.is_file() and (read_header(place) or {}).get("source_sha256") == digest:
            return place
    target = places[0] if os.access(source.parent, os.W_OK) else places[1]
    return Path(convert_file(source, target, tower=tower).file)


def load_embedded(tower: Tower) -> None:
    """Load the tiny weights that ship with the package. WeightsError where there are none, or the digest differs."""
    name = tower.info.name
    path, manifest = EMBEDDED / f"{name}.safetensors", EMBEDDED / "manifest.json"
    table: dict[str, Any] = json.loads(manifest.read_text()) if manifest.is_file() else {}
    if not path.is_file() or name not in table:
        raise WeightsError(
            f"tower {name}: no embedded tiny weights at {path}; rebuild them with `{REBUILD}`, "
            "or take random weights with pretrained=False"
        )
    found = sha256_of(path)
    if found != table[name]["sha256"]:
        raise WeightsError(
            f"{path}: sha256 {found}, manifest.json says {table[name]['sha256']}; reinstall the package or rebuild with `{REBUILD}`"
        )
    load_file_into(tower, path)


def save_embedded(tower: Tower, path: Path | None = None, provenance: dict[str, Any] | None = None) -> Path:
    """Store a tiny tower's weights in half precision and enter them in ``manifest.json`` beside them.

    ``path``: the folder, default the package's own. ``provenance``: how they were made (JSON-like: command, data digest,
    seed). Returns the file. Values round to half precision: reload before measuring anything with them.
    """
    from safetensors.torch import save_file

    folder = Path(path) if path else EMBEDDED
    folder.mkdir(parents=True, exist_ok=True)
    name = tower.info.name
    tensors = {
        key: (tensor.detach().cpu().half() if tensor.is_floating_point() else tensor.detach().cpu()).contiguous()
        for key, tensor in tower.net.state_dict().items()
    }
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(f"tower {name}: {key} is not finite in half precision; not saved")
    file = folder / f"{name}.safetensors"
    save_file(tensors, file, metadata={"tower": name, "variant": tower.info.variant, "size": tower.info.size})
    manifest = folder / "manifest.json"
    table = json.loads(manifest.read_text()) if manifest.is_file() else {}
    table[name] = {"sha256": sha256_of(file), "provenance": provenance or {}}
    manifest.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")
    return file
