"""AVE's HDF5 files say again what the text files say; where they are present, they are compared row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from avcl_ave.data import Row, class_names, segments
from avcl_ave.hdf5 import EXTRA, h5py_module, read_hdf5
from avcl_core.data.problems import MediaError, Problem

NOISY = "labels_noisy.h5"
"""Labels of background-only clips for the weak setting; which videos they belong to is published nowhere."""


def compare_redundant(folder: Path, annotations: Sequence[Row], splits: Mapping[str, Sequence[Row]]) -> list[Problem]:
    """Return the first contradiction of each HDF5 file in ``folder`` to the text files.

    ``labels.h5`` holds ``avadataset`` ``[rows, 10, classes + 1]``, one-hot; ``labels_closs.h5`` ``[rows, 10]``, 1 = event;
    ``mil_labels.h5`` ``[rows, classes + 1]``, the clip's class; ``<split>_order.h5`` holds ``order``, the annotation row of
    each line of the split file. Without the extra avcl-ave[h5] a warning names each file. :data:`NOISY` cannot be used: it
    holds no video ids.
    """
    classes = class_names(annotations)
    rows = np.array([segments(row, classes) for row in annotations]).reshape(len(annotations), -1)
    clips = np.array([classes.index(row.category) for row in annotations], dtype=np.int64)
    one_hot = np.eye(len(classes) + 1, dtype=np.int64)
    places = {row.content: place for place, row in enumerate(annotations)}
    expected = {
        "labels.h5": ("avadataset", one_hot[rows]),
        "labels_closs.h5": ("avadataset", (rows < len(classes)).astype(np.int64)),
        "mil_labels.h5": ("avadataset", one_hot[clips]),
    }
    for split, part in splits.items():
        expected[f"{split}_order.h5"] = ("order", np.array([places[row.content] for row in part], dtype=np.int64))
    found = [_compare(folder / name, key, values) for name, (key, values) in expected.items()]
    if (folder / NOISY).is_file():
        action = "nothing to do: the weak setting trains without these clips"
        found.append(
            Problem(str(folder / NOISY), "", "clips", "labels without video ids", "video ids", action, "warning")
        )
    return [problem for problem in found if problem is not None]


def _compare(path: Path, key: str, expected: np.ndarray) -> Problem | None:
    if not path.is_file():
        return None
    if h5py_module() is None:
        how = f"install the extra {EXTRA} to compare it, or delete it: it is not needed"
        return Problem(
            str(path), "", "content", "not compared: h5py is not installed", "the text files' labels", how, "warning"
        )
    try:
        values = read_hdf5(path, key)
    except MediaError as error:
        return error.problem
    action = "delete the file (it is not needed) or take all files from one release"
    if values.shape != expected.shape:
        return Problem(str(path), "", key, f"shape {values.shape}", f"shape {expected.shape}", action)
    different = np.flatnonzero((values != expected).reshape(len(expected), -1).any(1))
    if not len(different):
        return None
    row = int(different[0])
    found = f"{len(different)} rows differ from the text files"
    return Problem(str(path), f"row {row}", key, found, f"{expected[row].tolist()}", action)
