"""Files that are there completely or not at all: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_chunks(path: Path, chunks: Iterable[bytes | memoryview], *, flush: bool = True) -> tuple[int, str]:
    """Write ``chunks`` to ``path`` atomically; returns (bytes, sha256). Safe against kill -9 and against a second writer.

    ``flush=False`` leaves the moment of reaching the disk to the system: for many small files that can be made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest, size = hashlib.sha256(), 0
    with open(staged, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk) if isinstance(chunk, bytes) else chunk.nbytes
        if flush:
            file.flush()
            os.fsync(file.fileno())
    os.replace(staged, path)
    return size, digest.hexdigest()


def flush(path: Path) -> None:
    """Return when a written file has reached the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> tuple[int, str]:
    """Write a JSON file with sorted keys, atomically; returns (bytes, sha256)."""
    return write_chunks(path, [(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()])


def sha256_of(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """sha256 of a JSON value in canonical form."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()
