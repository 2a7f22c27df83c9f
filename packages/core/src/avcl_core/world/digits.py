"""The digits bank: MNIST images are what is seen, spoken digits are what is heard. Real input from folders the user names."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avcl_core.data.atomic import sha256_of
from avcl_core.data.problems import broken
from avcl_core.world.bank import SubsetBank, check_class, check_split
from avcl_core.world.seeds import rng_for

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VERSION = "1"
_SIDE = 56
_NAME = re.compile(r"(\d)_([A-Za-z]+)_(\d+)\.wav$")
_IDX = "the canonical MNIST idx file"


def read_idx(path: Path, rank: int) -> np.ndarray:
    """An idx file of unsigned bytes (gzip or plain): uint8 with ``rank`` dimensions; MediaError when it is anything else."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise broken(path, "content", str(error), _IDX, "download the file again") from None
    header = 4 + 4 * rank
    if len(data) < header or data[:4] != bytes([0, 0, 8, rank]):
        raise broken(
            path,
            "magic number",
            data[:4].hex() or "an empty file",
            f"000008{rank:02x} (unsigned bytes, {rank} dimensions)",
            f"give {_IDX}",
        )
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", rank, 4))
    if len(data) - header != int(np.prod(shape)):
        raise broken(
            path,
            "length",
            f"{len(data) - header} bytes",
            f"{int(np.prod(shape))} for shape {shape}",
            "download the file again",
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _idx_path(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.is_file():
            return path
    raise broken(folder / f"{stem}.gz", "file", "no such file", _IDX, "give the folder that holds the four MNIST files")


@lru_cache(maxsize=4)
def _images(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    paths = _idx_path(folder, f"{part}-images-idx3-ubyte"), _idx_path(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(images) != len(labels):
        raise broken(
            paths[1], "length", f"{len(labels)} labels", f"{len(images)}, one per image", "give files of one release"
        )
    if len(labels) and labels.max() > 9:
        raise broken(paths[1], "labels", f"a label {int(labels.max())}", "0 to 9", f"give {_IDX}")
    return images, labels


@lru_cache(maxsize=2)
def _recordings(source: Path) -> dict[str, bytes]:
    """Name (``7_theo_3``) -> bytes of the wav file, from a folder or a tar archive."""
    found: dict[str, bytes] = {}
    if source.is_dir():
        folder = source / "fsdd" if (source / "fsdd").is_dir() else source
        files = ((path.name, path.read_bytes()) for path in sorted(folder.glob("*.wav")))
        found = {name[:-4]: data for name, data in files if _NAME.search(name)}
    elif source.is_file():
        try:
            with tarfile.open(source) as archive:
                for member in archive:
                    name = Path(member.name).name
                    if member.isfile() and _NAME.search(name):
                        content = archive.extractfile(member)
                        assert content is not None
                        found[name[:-4]] = content.read()
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise broken(
                source, "content", str(error), "a complete tar archive", "download the archive again"
            ) from None
    else:
        raise broken(source, "file", "no such file", "a folder of spoken digits or its tar archive", "name it")
    if not found:
        raise broken(
            source,
            "recordings",
            "0",
            "files named <digit>_<speaker>_<index>.wav",
            "name the folder fsdd or fsdd.tar.xz",
        )
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class DigitsBank:
    """MNIST × spoken digits, classes ``zero`` … ``nine``.

    Images: the first five sixths of the train file are ``train``, the rest ``val``, the t10k file is ``test``. Speakers, by name:
    the last is ``test``, the one before ``val``, all others ``train`` (six speakers: 4 / 1 / 1). Nothing is shared.
    """

    mnist: Path
    speech: Path

    @property
    def name(self) -> str:
        return "digits"

    @property
    def version(self) -> str:
        return VERSION

    @property
    def classes(self) -> tuple[str, ...]:
        return DIGITS

    @property
    def speakers(self) -> dict[str, tuple[str, ...]]:
        """Speakers of each split; MediaError when there are fewer than three."""
        names = sorted({name.split("_")[1] for name in _recordings(self.speech)})
        if len(names) < 3:
            raise broken(
                self.speech,
                "speakers",
                ", ".join(names),
                "at least three, one for each split",
                "give the whole data set",
            )
        return {"train": tuple(names[:-2]), "val": (names[-2],), "test": (names[-1],)}

    def sprites(self, cls: str, split: str) -> tuple[str, ...]:
        return _sprite_ids(self, check_class(self, cls), check_split(split))

    def sounds(self, cls: str, split: str) -> tuple[str, ...]:
        return _sound_ids(self, check_class(self, cls), check_split(split))

    def sprite(self, cls: str, id: str) -> np.ndarray:
        digit = check_class(self, cls)
        part, number = id.rsplit("-", 1)
        images, labels = _images(self.mnist, part)
        if int(number) >= len(labels) or labels[int(number)] != digit:
            raise broken(self.mnist, "sprite", id, f"an image of {cls}", "use an id that sprites() lists")
        return _paint(images[int(number)], id)

    def sound(self, cls: str, id: str, rate: int) -> np.ndarray:
        digit = check_class(self, cls)
        if not id.startswith(f"{digit}_") or id not in _recordings(self.speech):
            raise broken(self.speech, "sound", id, f"a recording of {cls}", "use an id that sounds() lists")
        return _speech(self.speech, id, rate)

    def describe(self) -> dict[str, Any]:
        return _describe(self)

    def subset(self, classes: Sequence[str]) -> SubsetBank:
        return SubsetBank(self, tuple(classes))


def digits(mnist: Path | str, speech: Path | str) -> DigitsBank:
    """The digits bank from the folder of the four MNIST files and ``fsdd`` (a folder of wav files, or ``fsdd.tar.xz`` itself).

    Files are read at first use; MediaError (a DataError) names what is missing or malformed.
    """
    return DigitsBank(Path(mnist), Path(speech))


@lru_cache(maxsize=64)
def _sprite_ids(bank: DigitsBank, digit: int, split: str) -> tuple[str, ...]:
    part = "t10k" if split == "test" else "train"
    _, labels = _images(bank.mnist, part)
    border = len(labels) * 5 // 6
    first, last = {"train": (0, border), "val": (border, len(labels)), "test": (0, len(labels))}[split]
    ids = tuple(f"{part}-{number}" for number in range(first, last) if labels[number] == digit)
    if not ids:
        raise broken(bank.mnist, f"{split} images of {DIGITS[digit]}", "0", "at least one", "give the whole data set")
    return ids


@lru_cache(maxsize=64)
def _sound_ids(bank: DigitsBank, digit: int, split: str) -> tuple[str, ...]:
    wanted = bank.speakers[split]
    ids = tuple(
        name for name in _recordings(bank.speech) if name.startswith(f"{digit}_") and name.split("_")[1] in wanted
    )
    if not ids:
        raise broken(
            bank.speech, f"{split} recordings of {DIGITS[digit]}", "0", "at least one", "give the whole data set"
        )
    return ids


@lru_cache(maxsize=4)
def _describe(bank: DigitsBank) -> dict[str, Any]:
    parts = [
        _idx_path(bank.mnist, f"{part}-{kind}")
        for part in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    return {
        "name": bank.name,
        "version": bank.version,
        "classes": list(bank.classes),
        "sprites": {
            split: {cls: len(bank.sprites(cls, split)) for cls in DIGITS} for split in ("train", "val", "test")
        },
        "sounds": {split: {cls: len(bank.sounds(cls, split)) for cls in DIGITS} for split in ("train", "val", "test")},
        "speakers": {split: list(names) for split, names in bank.speakers.items()},
        "files": {path.name: sha256_of(path) for path in parts},
        "recordings": len(_recordings(bank.speech)),
        "recordings_crc32": zlib.crc32(b"".join(_recordings(bank.speech).values())),
    }


def _paint(ink: np.ndarray, id: str) -> np.ndarray:
    """A grey digit as a coloured sprite, uint8 RGBA [56, 56, 4] trimmed to its ink; alpha is the ink."""
    rng = rng_for("digit colour", VERSION, id)
    rows, columns = np.flatnonzero(ink.max(axis=1) > 64), np.flatnonzero(ink.max(axis=0) > 64)
    if len(rows) and len(columns):
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = ink.shape
    factor = _SIDE / max(height, width)
    target = (max(4, round(width * factor)), max(4, round(height * factor)))
    alpha = np.asarray(Image.fromarray(ink).resize(target, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    alpha = np.clip((alpha - 0.2) / 0.4, 0, 1)  # firm strokes: the pen's grey rim would be a see-through object
    base = rng.uniform(40, 255, 3)
    base *= 255 / max(base.max(), 1.0) if rng.random() < 0.7 else 0.3
    colour = np.broadcast_to(base, (*alpha.shape, 3)) + rng.normal(0, 6, (*alpha.shape, 3))
    return np.concatenate([np.clip(colour, 0, 255), alpha[..., None] * 255], axis=2).astype(np.uint8)


@lru_cache(maxsize=512)
def _speech(source: Path, id: str, rate: int) -> np.ndarray:
    import soundfile

    from avcl_core.data.waves import resample

    try:
        wave, own = soundfile.read(io.BytesIO(_recordings(source)[id]), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise broken(
            source, "content", str(error), "a readable wav file", "download the data set again", f"{id}.wav"
        ) from None
    if len(wave) == 0:
        raise broken(source, "length", "0 samples", "at least one sample", "download the data set again", f"{id}.wav")
    return resample(wave.mean(axis=1, dtype=np.float32), own, rate)
