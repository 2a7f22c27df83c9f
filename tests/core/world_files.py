"""Miniature MNIST idx files and spoken-digit recordings in the exact published formats, made of noise and tones."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import soundfile

SPEAKERS = ("anna", "bela", "cyril", "dora", "emil", "fritz")


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(folder: Path, train: int = 120, test: int = 40, suffix: str = ".gz") -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 6:22, 10:18] = rng.integers(100, 256, (count, 16, 8))
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
    return folder


def _tone(digit: int, number: int) -> bytes:
    wave = 0.4 * np.sin(2 * np.pi * (200 + 60 * digit) * np.arange(3200 + 100 * number) / 8000)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 8000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def recordings() -> dict[str, bytes]:
    return {f"{d}_{who}_{k}.wav": _tone(d, k) for d in range(10) for who in SPEAKERS for k in range(2)}


def write_speech(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, data in recordings().items():
        (folder / name).write_bytes(data)
    return folder


def write_speech_archive(path: Path) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        for name, data in recordings().items():
            member = tarfile.TarInfo(f"fsdd/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
