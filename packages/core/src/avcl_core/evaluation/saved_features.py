"""A tower's final features, averaged over seconds and tokens: one row per sample, in one file per test set."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from avcl_core.collective import Collective
from avcl_core.errors import IntegrityError, RunError
from avcl_core.trace import Trace
from avcl_core.training.checkpoint import sync

FOLDER = "features"
"""Where an evaluation's files stand."""
_KEYS, _GROUPS = "keys", "groups"


@dataclass(frozen=True)
class SavedFeatures:
    """The rows of one test set, in the order of its keys.

    Attributes:
        keys: sample keys.
        groups: the first of each sample's groups (``Task.groups``); empty where it has none.
        means: modality → mean final features ``[n, C]`` float32.
    """

    keys: tuple[str, ...]
    groups: tuple[str, ...]
    means: Mapping[str, np.ndarray]


class FeatureMeans:
    """Collects what traces heard, row by row on the host.

    Args:
        groups: sample key → names of its groups, of the whole split.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]]) -> None:
        self.groups = groups
        self.rows: dict[str, dict[str, np.ndarray]] = {}  # key → modality → [C]

    def add(self, trace: Trace, keys: Sequence[str]) -> None:
        """Add the features of the samples ``keys``, in their order.

        Raises:
            RunError: the model told none, or not one row per sample.
        """
        if not trace.features:
            raise RunError("features=true: this model tells no features (Trace.tell_features); leave the option out")
        for name, value in trace.features.items():
            if value.ndim != 2 or len(value) != len(keys):
                raise RunError(
                    f"features=true: the features of {name} have shape {tuple(value.shape)}; expected [{len(keys)}, C]"
                )
            for key, row in zip(keys, value.to("cpu", torch.float32).numpy(), strict=True):
                self.rows.setdefault(key, {})[name] = row

    def joined(self, keys: Sequence[str], collective: Collective) -> SavedFeatures:
        """Return the rows of all ranks in the order of ``keys``. Every rank must call it."""
        rows: dict[str, dict[str, np.ndarray]] = {}
        for part in collective.join(self.rows):
            rows |= part
        names = list(rows[keys[0]]) if keys else []
        return SavedFeatures(
            tuple(keys),
            tuple(next(iter(self.groups[key]), "") for key in keys),
            {name: np.stack([rows[key][name] for key in keys]) for name in names},
        )


def features_file(evaluation: Path, test: str) -> Path:
    """Return where the features of a test set stand in a folder of ``evaluations``; characters that file names lack become dashes."""
    return evaluation / FOLDER / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', test)}.npz"


def write_features(evaluation: Path, test: str, found: SavedFeatures) -> Path:
    """Write one array per modality, ``keys`` and ``groups``; the same content gives the same bytes."""
    path = features_file(evaluation, test)
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = {_KEYS, _GROUPS} & set(found.means)
    if taken:
        raise RunError(f"{path}: a tower is named {sorted(taken)}, which the file needs for itself; rename the tower")
    arrays = {_KEYS: np.array(found.keys, str), _GROUPS: np.array(found.groups, str), **found.means}
    staged = path.with_name(f".{path.name}.tmp")
    with staged.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **arrays)
    sync(staged)
    staged.replace(path)
    return path


def read_features(path: Path) -> SavedFeatures:
    """Read a file of :func:`write_features`.

    Raises:
        IntegrityError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, f"is not an archive of arrays ({error})") from error
    for name in (_KEYS, _GROUPS):
        if name not in arrays or arrays[name].dtype.kind != "U" or arrays[name].ndim != 1:
            raise _damaged(path, f"array {name}: expected text, one per sample")
    keys, groups = arrays.pop(_KEYS), arrays.pop(_GROUPS)
    if len(groups) != len(keys) or len(set(keys.tolist())) != len(keys):
        raise _damaged(
            path, f"{len(keys)} keys and {len(groups)} groups; expected one group for each of different keys"
        )
    if not arrays:
        raise _damaged(path, "has no array of a modality")
    for name, value in arrays.items():
        if value.dtype != np.float32 or value.ndim != 2 or len(value) != len(keys):
            raise _damaged(
                path, f"array {name}: found {value.dtype} {list(value.shape)}, expected float32 [{len(keys)}, C]"
            )
    return SavedFeatures(tuple(keys.tolist()), tuple(groups.tolist()), arrays)


def _damaged(path: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{path}: {what}; delete it and evaluate the run again with features=true")
