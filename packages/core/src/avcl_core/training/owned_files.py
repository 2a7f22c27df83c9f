"""Owned tensors lie in one safetensors file per owner, so that what a task owns is a file of its own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping

from safetensors.torch import save
from torch import Tensor

_PLAIN = re.compile(r"[a-z0-9]+(:[a-z0-9._-]+)?")
_LONGEST = 100


def owner_file(owner: str) -> str:
    """Return the file name of an owner, different for every owner also where capitals do not count: ``task-ave.safetensors``.

    A name that is no plain lower-case word after the kind gets what can be read of it, ``~`` and a digest.
    """
    if _PLAIN.fullmatch(owner) and len(owner) <= _LONGEST:
        return owner.replace(":", "-") + ".safetensors"
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", owner).strip("-.")[:_LONGEST]
    return f"{readable}~{hashlib.sha256(owner.encode()).hexdigest()[:16]}.safetensors"


def owned_files(tensors: Mapping[str, Tensor], owners: Mapping[str, str]) -> Iterator[tuple[str, str, bytes]]:
    """Yield owner, file name and content for every owner of ``tensors``; equal tensors give equal bytes.

    Args:
        tensors: owned tensors by name.
        owners: name → owner, of at least these tensors.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(owners[name], {})[name] = tensor
    for owner, part in sorted(parts.items()):
        yield owner, owner_file(owner), as_bytes(part, {"owner": owner})


def as_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a safetensors file. More than one key of ``metadata`` would have no fixed order."""
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return save(held, None if metadata is None else dict(metadata))
