"""Disk cache of front-end outputs (log-mels): work that depends on no trainable parameter is done once per clip."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from avcl_core.errors import ConfigError

_CHECK = 4  # bytes of checksum after the array


class FrontendCache:
    """One file per clip below ``folder``, keyed by the digest of the prepared sample and the digest of the front-end.

    Several processes may share a folder, and any of them may be killed at any time: an entry is written beside its place and
    renamed, and carries a checksum, so a reader sees a whole entry or computes the value itself. What :meth:`get` returns is equal,
    bit for bit, to what ``compute`` returns.
    """

    def __init__(self, folder: Path | str, digest: str, shape: Sequence[int], dtype: str = "float32"):
        """``digest`` identifies the front-end (weights, options, sample rate); ``shape`` and ``dtype`` are those of one value."""
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.folder = Path(folder) / digest[:32]

    def path(self, sample_digest: str) -> Path:
        """Where the entry of a sample lives."""
        return self.folder / sample_digest[:2] / f"{sample_digest}.npy"

    def get(self, sample_digest: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The cached value of a sample, computed and stored at the first call; a damaged entry is computed again.

        Raises ConfigError when ``compute`` returns another shape or type than the cache was made for.
        """
        path = self.path(sample_digest)
        value = self._read(path)
        if value is None:
            value = np.ascontiguousarray(compute())
            if value.shape != self.shape or value.dtype != self.dtype:
                raise ConfigError(
                    f"front-end cache {self.folder}: found a value {value.shape} {value.dtype}; expected {self.shape} {self.dtype}"
                )
            self._write(path, value)
        return value

    def _read(self, path: Path) -> np.ndarray | None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        body, check = data[:-_CHECK], data[-_CHECK:]
        if len(data) <= _CHECK or zlib.crc32(body) != int.from_bytes(check, "little"):
            return None
        value = np.load(BytesIO(body), allow_pickle=False)
        return value if value.shape == self.shape and value.dtype == self.dtype else None

    def _write(self, path: Path, value: np.ndarray) -> None:
        buffer = BytesIO()
        np.save(buffer, value)
        body = buffer.getvalue()
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        with open(staged, "wb") as file:
            file.write(body)
            file.write(zlib.crc32(body).to_bytes(_CHECK, "little"))
        os.replace(staged, path)
