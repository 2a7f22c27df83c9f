"""A user's own bank: ``images/<class>/…`` is what is seen, ``sounds/<class>/…`` is what is heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avcl_core.data.atomic import digest_of, sha256_of
from avcl_core.data.problems import broken
from avcl_core.errors import DataError
from avcl_core.world.bank import SubsetBank, check_class, check_class_names, check_split
from avcl_core.world.seeds import rng_for

VERSION = "1"
_KINDS = {"images": (".png", ".jpg", ".jpeg", ".webp", ".bmp"), "sounds": (".wav", ".flac", ".ogg", ".mp3")}
_SIDE = 128


@dataclass(frozen=True)
class FolderBank:
    """Files split by a seeded shuffle of their names: 70 % train, 15 % val, 15 % test, at least one file in each."""

    root: Path
    seed: int = 0

    @property
    def name(self) -> str:
        return f"folder-{self.root.name}"

    @property
    def version(self) -> str:
        return VERSION

    @property
    def classes(self) -> tuple[str, ...]:
        return _classes(self.root)

    def sprites(self, cls: str, split: str) -> tuple[str, ...]:
        check_class(self, cls)
        return _files(self.root, "images", cls, self.seed)[check_split(split)]

    def sounds(self, cls: str, split: str) -> tuple[str, ...]:
        check_class(self, cls)
        return _files(self.root, "sounds", cls, self.seed)[check_split(split)]

    def sprite(self, cls: str, id: str) -> np.ndarray:
        check_class(self, cls)
        return _picture(self.root / "images" / cls / id)

    def sound(self, cls: str, id: str, rate: int) -> np.ndarray:
        check_class(self, cls)
        return _recording(self.root / "sounds" / cls / id, rate)

    def describe(self) -> dict[str, Any]:
        files = {}
        for cls in self.classes:
            for kind in _KINDS:
                for names in _files(self.root, kind, cls, self.seed).values():
                    files.update({f"{kind}/{cls}/{name}": sha256_of(self.root / kind / cls / name) for name in names})
        counts = {
            kind: {
                split: {cls: len(_files(self.root, kind, cls, self.seed)[split]) for cls in self.classes}
                for split in ("train", "val", "test")
            }
            for kind in _KINDS
        }
        return {
            "name": self.name,
            "version": self.version,
            "seed": self.seed,
            "classes": list(self.classes),
            **counts,
            "files": digest_of(files),
        }

    def subset(self, classes: Sequence[str]) -> SubsetBank:
        return SubsetBank(self, tuple(classes))


def folder(root: Path | str, seed: int = 0) -> FolderBank:
    """The bank of a folder pair ``root/images/<class>/`` and ``root/sounds/<class>/``.

    Pictures with an alpha channel are cut out by it, others count as a whole. Raises DataError for a missing folder, classes
    that have only pictures or only sounds, fewer than three files of a kind, unreadable files.
    """
    bank = FolderBank(Path(root), seed)
    for cls in bank.classes:
        for kind in _KINDS:
            _files(bank.root, kind, cls, seed)
    return bank


@lru_cache(maxsize=8)
def _classes(root: Path) -> tuple[str, ...]:
    found = {}
    for kind in _KINDS:
        if not (root / kind).is_dir():
            raise broken(root / kind, "folder", "no such folder", f"one folder per class below {kind}/", "create it")
        found[kind] = {path.name for path in (root / kind).iterdir() if path.is_dir() and not path.name.startswith(".")}
    lonely = sorted(found["images"] ^ found["sounds"])
    if lonely:
        missing = ", ".join(f"{cls} (no {'sounds' if cls in found['images'] else 'images'})" for cls in lonely)
        raise DataError(
            f"{root}: classes: found {missing}; expected the same classes below images/ and sounds/; add or remove folders"
        )
    return check_class_names(sorted(found["images"]), str(root))


@lru_cache(maxsize=1024)
def _files(root: Path, kind: str, cls: str, seed: int) -> dict[str, tuple[str, ...]]:
    place = root / kind / cls
    names = sorted(
        path.name for path in place.iterdir() if path.suffix.lower() in _KINDS[kind] and not path.name.startswith(".")
    )
    if len(names) < 3:
        raise broken(
            place, "files", f"{len(names)}", f"at least 3 of {', '.join(_KINDS[kind])}, one for each split", "add files"
        )
    mixed = [names[int(index)] for index in rng_for("folder bank", seed, kind, cls).permutation(len(names))]
    held = max(1, round(0.15 * len(names)))
    return {
        "test": tuple(sorted(mixed[:held])),
        "val": tuple(sorted(mixed[held : 2 * held])),
        "train": tuple(sorted(mixed[2 * held :])),
    }


@lru_cache(maxsize=512)
def _picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            image.load()
            picture = image.convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:
        raise broken(path, "image", str(error), "a complete image file", "replace or remove it") from None
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    array = np.asarray(picture)
    if not (array[..., 3] > 127).any():
        raise broken(
            path, "alpha channel", "a wholly transparent picture", "some opaque pixels", "replace or remove it"
        )
    return array


@lru_cache(maxsize=128)
def _recording(path: Path, rate: int) -> np.ndarray:
    from avcl_core.data.waves import read_sound

    wave = read_sound(path, rate)
    if not wave.any():
        raise broken(path, "samples", "only zeros", "a sound", "replace or remove it")
    return wave
