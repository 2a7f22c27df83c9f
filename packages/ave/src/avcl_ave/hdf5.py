"""Reading AVE's HDF5 files, which needs the extra avcl-ave[h5]."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np

from avcl_core.data.problems import broken

EXTRA = "avcl-ave[h5]"
"""What to install for these files."""


def h5py_module() -> ModuleType | None:
    """Return h5py, or ``None`` where the extra is not installed."""
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return h5py


def read_hdf5(path: Path, key: str) -> np.ndarray:
    """Return the data set ``key`` of a file.

    Raises:
        DataError: the extra is not installed, the file cannot be read, or it has no such data set.
    """
    h5py = h5py_module()
    if h5py is None:
        raise broken(path, "content", "an HDF5 file, and h5py is not installed", "h5py", f"install the extra {EXTRA}")
    try:
        with h5py.File(path, "r") as file:
            return np.asarray(file[key])
    except (OSError, KeyError, ValueError) as error:
        raise broken(
            path, key, str(error), "a readable HDF5 data set", "take the file from the release again"
        ) from None
