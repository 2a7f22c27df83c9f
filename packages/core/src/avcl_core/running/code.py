"""The version of the code as a digest, because a version number does not tell two states of an editable installation apart."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import avcl_core


def digest_of_sources(folder: Path) -> str:
    """Return the SHA-256 over names and bytes of all ``.py`` files below a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return found.hexdigest()


@cache
def code_digest() -> str:
    """Return the digest of the installed ``avcl_core``, as it is at the first call."""
    return digest_of_sources(Path(avcl_core.__path__[0]))
