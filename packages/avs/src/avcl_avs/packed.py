"""`AVS.npy`, a pickle of many waves: opened once by the command `avs unpack`, which admits numbers only, never in training."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from avcl_avs.annotations import read_annotations
from avcl_avs.data import SECONDS, Row
from avcl_avs.layout import PARTS, Part, metadata_below
from avcl_core.data.atomic import write_chunks
from avcl_core.data.problems import MediaError, Problem, broken
from avcl_core.data.records import refuse_errors

SAMPLES = SECONDS * 32_000
"""Length of a wave at 32 kHz."""
_REPLACE = "put the published file there, or delete it to use the sound files"
_ADMITTED = {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype")}
"""What a pickle of a dictionary of arrays may name: the array, its type, and the functions that rebuild them."""


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds arrays; every other name in the pickle is refused before anything is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")
        return super().find_class(module, name)


def read_packed(path: Path) -> dict[str, np.ndarray]:
    """Return file name → wave of a packed file.

    Raises:
        MediaError: it is anything but a pickled dictionary of names and arrays of floats.
    """
    expected = "a pickled dictionary of names and float arrays"
    try:
        with open(path, "rb") as file:
            content = _load(file)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise broken(path, "content", str(error) or type(error).__name__, expected, _REPLACE) from None
    if not isinstance(content, dict):
        raise broken(path, "content", f"a {type(content).__name__}", expected, _REPLACE)
    for name, wave in content.items():
        if not isinstance(name, str):
            raise broken(path, "key", f"{name!r}", expected, _REPLACE)
        if not isinstance(wave, np.ndarray) or wave.dtype.kind != "f":
            found = f"an array of {wave.dtype}" if isinstance(wave, np.ndarray) else f"a {type(wave).__name__}"
            raise broken(path, "wave", found, expected, _REPLACE, name)
    return content


def _load(file: BinaryIO) -> Any:
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        raise ValueError("another version of the .npy format")
    if shape != () or dtype != np.dtype(object):
        raise ValueError(f"an array of {dtype} with shape {shape}")
    content = _ArrayUnpickler(file).load()
    return content.item() if isinstance(content, np.ndarray) and content.shape == () else content


def unpack(root: Path, out: Path | None = None, say: Callable[[str], None] = lambda line: None) -> int:
    """Write one .npy per video of every packed file below ``root``, and return how many.

    Args:
        out: folder to write below, where not ``root``; `avcl data prepare avs ROOT waves=OUT` reads it.
        say: is told of every packed file.

    Raises:
        DataError: a metadata file or a packed file is broken, or lacks a video; what could be written has been.
    """
    metadata, categories = metadata_below(Path(root))
    if not metadata:
        expected = " or ".join(part.metadata for part in PARTS.values())
        raise broken(root, "file", "no metadata file", expected, "name the folder of the data set")
    found = read_annotations(metadata, categories)
    problems, written = list(found.problems), 0
    for setting, rows in found.rows.items():
        part = PARTS[setting]
        packs: dict[Path, list[Row]] = {}
        for row in rows:
            packs.setdefault(Path(root) / part.packed(row), []).append(row)
        for path, members in packs.items():
            if not path.is_file():
                continue
            count, wrong = _unpack_one(path, members, part, Path(out or root))
            written += count
            problems += wrong
            say(f"{path}: {count} waves")
    refuse_errors(problems)
    return written


def _unpack_one(path: Path, rows: list[Row], part: Part, out: Path) -> tuple[int, list[Problem]]:
    try:
        waves = read_packed(path)
    except MediaError as error:
        return 0, [error.problem]
    problems, written = [], 0
    for row in rows:
        name = f"{row.video}.wav"
        wave = waves.get(name)
        if wave is None:
            problems.append(Problem(str(path), row.id, "key", f"no {name!r}", "a wave of every video", _REPLACE))
        elif wave.shape != (SAMPLES,):
            expected = f"shape ({SAMPLES},), five seconds at 32 kHz"
            problems.append(Problem(str(path), row.id, "length", f"shape {wave.shape}", expected, _REPLACE))
        else:
            buffer = io.BytesIO()
            np.save(buffer, wave.astype(np.float32))
            write_chunks(out / part.wave(row), [buffer.getvalue()], flush=False)
            written += 1
    return written, problems
