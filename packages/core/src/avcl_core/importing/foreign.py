"""A checkpoint of foreign code enters as named tensors only, read by a process of its own; its file is told by its digest."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

import avcl_core
import shared_backbones
from avcl_core.errors import IntegrityError
from avcl_core.training.checkpoint import file_digest

PARALLEL = "module."
"""Prefix that data-parallel training leaves on every key."""


@dataclass(frozen=True)
class Foreign:
    """A checkpoint as it was found.

    Attributes:
        file: where it lies.
        sha256: digest of the whole file.
        tensors: the tensors under the authors' names, without the prefix of data-parallel training.
    """

    file: Path
    sha256: str
    tensors: dict[str, Tensor]


def read_foreign(file: Path) -> Foreign:
    """Read a checkpoint in a separate process that admits tensors only.

    Raises:
        IntegrityError: there is no such file, or it holds no named tensors.
    """
    if not file.is_file():
        raise IntegrityError(f"{file}: no such file; expected a checkpoint to import")
    with tempfile.TemporaryDirectory(prefix="avcl-import-") as folder:
        target = Path(folder) / "tensors.safetensors"
        command = [sys.executable, "-P", "-m", "avcl_core.importing", str(file), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": _search()})
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()[-1:] or ["no message"]
            if done.returncode == IntegrityError.exit_code:
                raise IntegrityError(said[0])
            raise IntegrityError(f"{file}: the reading process ended with code {done.returncode}: {said[0]}")
        return as_foreign(file, load_file(target))


def as_foreign(file: Path, tensors: Mapping[str, Tensor]) -> Foreign:
    """Return the record of a checkpoint from the tensors that were read of it."""
    parallel = all(name.startswith(PARALLEL) for name in tensors)
    named = {name.removeprefix(PARALLEL) if parallel else name: tensor for name, tensor in tensors.items()}
    return Foreign(file, file_digest(file), named)


def _search() -> str:
    """The process must import these very packages, also where they were found through ``sys.path`` alone."""
    roots = [str(Path(str(package.__file__)).parents[1]) for package in (avcl_core, shared_backbones)]
    return os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])])
