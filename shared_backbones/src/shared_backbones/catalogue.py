"""The catalogue of weight files: what users already have, where it comes from, and how to check and convert it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from shared_backbones.convert import Conversion, convert_file
from shared_backbones.errors import WeightsError, nearest
from shared_backbones.weights import sha256_of

CATALOGUE = Path(__file__).parent / "weights.toml"


@dataclass(frozen=True)
class Entry:
    """One known file. ``sha256`` and ``sha256_prefix`` (as published in file names) and ``size`` are None where not known."""

    file: str
    tower: str
    variant: str
    converter: str
    source: str
    licence: str
    sha256: str | None = None
    sha256_prefix: str | None = None
    size: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Verification:
    """``status``: match, mismatch (another or damaged file), or unknown (no digest is published for it)."""

    path: str
    entry: Entry
    bytes: int
    sha256: str
    status: Literal["match", "mismatch", "unknown"]


@cache
def list_weights() -> tuple[Entry, ...]:
    """All entries of ``weights.toml``, in its order."""
    return tuple(Entry(**table) for table in tomllib.loads(CATALOGUE.read_text())["weights"])


def entry_of(file: str) -> Entry:
    """The entry of a file name. WeightsError where there is none, or several towers use that name."""
    found = [entry for entry in list_weights() if entry.file == file]
    if not found:
        raise WeightsError(f"{file}: not in the catalogue{nearest(file, {e.file for e in list_weights()})}")
    if len(found) > 1:
        uses = ", ".join(f"{entry.tower} {entry.variant}" for entry in found)
        raise WeightsError(f"{file}: the catalogue has {len(found)} files of this name ({uses}); give the entry")
    return found[0]


def verify(path: str | Path, entry: Entry | None = None) -> Verification:
    """Compare a file with its published digest; ``entry`` None: found by the file's name. WeightsError without the file."""
    path = Path(path)
    if path.is_dir():
        raise WeightsError(
            f"{path}: a folder, of which no digest is published; converting it compares every key and shape"
        )
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    entry = entry or entry_of(path.name)
    digest = sha256_of(path)
    published = entry.sha256 or entry.sha256_prefix
    status = "unknown" if published is None else "match" if digest.startswith(published) else "mismatch"
    return Verification(str(path), entry, path.stat().st_size, digest, status)


def convert(
    src: str | Path, dst: str | Path, entry: Entry | None = None, options: Mapping[str, str] | None = None
) -> Conversion:
    """Convert a file or folder in its authors' layout to safetensors, in a separate process; see `convert.convert_file`.

    ``entry`` None: found by the file's name, else the layout is recognised by its keys. With an entry, a digest that differs
    from the published one is a WeightsError, and so is another tower or variant inside. ``options`` are the converter's; of folders no
    digests are published.
    """
    src = Path(src)
    if entry is None and [e.file for e in list_weights()].count(src.name) == 1:
        entry = entry_of(src.name)
    if entry is None or src.is_dir():
        named = (entry.converter, entry.tower) if entry else (None, None)
        return convert_file(src, dst, *named, options=options)
    check = verify(src, entry)
    if check.status == "mismatch":
        published = entry.sha256 or f"{entry.sha256_prefix}…"
        raise WeightsError(
            f"{src}: sha256 {check.sha256}; published is {published}, so fetch it again from {entry.source}"
        )
    done = convert_file(src, dst, entry.converter, entry.tower, options)
    if done.variant != entry.variant:
        Path(done.file).unlink()
        raise WeightsError(f"{src}: holds variant {done.variant!r}; the catalogue expects {entry.variant!r}")
    return done
