"""Motion features of LLP: one r2plus1d_18 vector per second in ``feats/r2plus1d_18/<id>.npy``, and the record of who computed them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from avcl_avvp.data import SECONDS
from avcl_core.data.layout import ClipSource, Extra
from avcl_core.data.problems import Problem, broken

MOTION = "motion"
"""Name of the features among a clip's arrays and in a batch's inputs."""
MOTION_WIDTH = 512
FOLDER = "feats/r2plus1d_18"
"""Where the published layout has the features, below its media folder."""
RECORD = "recipe.json"
"""Beside the features: how ``avvp features`` computed them. The published files have none."""
_REPLACE = "compute it again (avvp features) or remove the clip"


def read_motion(paths: tuple[Path, ...]) -> np.ndarray:
    """Return the features of a clip, float32 ``[10, 512]``; MediaError for a missing, unreadable or misshapen file."""
    (path,) = paths
    if not path.is_file():
        raise broken(path, MOTION, "no such file", "features of every clip, or of none", _REPLACE)
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise broken(path, MOTION, str(error), "a .npy array of numbers", _REPLACE) from None
    expected = (SECONDS, MOTION_WIDTH)
    if not isinstance(array, np.ndarray) or array.shape != expected:
        raise broken(path, MOTION, f"shape {getattr(array, 'shape', None)}", f"shape {expected}", _REPLACE)
    if array.dtype.kind != "f":
        raise broken(path, MOTION, f"dtype {array.dtype}", "float32", _REPLACE)
    if not np.isfinite(array).all():
        raise broken(
            path, MOTION, f"{int((~np.isfinite(array)).sum())} NaN or infinite values", "finite numbers", _REPLACE
        )
    return array.astype(np.float32)


def with_motion(
    base: Path, clips: Sequence[ClipSource]
) -> tuple[tuple[ClipSource, ...], dict[str, Path], list[Problem]]:
    """Return the clips with their features, if any clip has them below ``base``, the record beside them, and findings.

    Once there are features, every clip needs them: preparation quarantines a clip whose file is missing.
    """
    folder = base / FOLDER
    found = {path.stem for path in folder.glob("*.npy")}
    spare = sorted(found - {clip.id for clip in clips})
    problems = []
    if spare and clips:
        named = ", ".join(spare[:10]) + (", …" if len(spare) > 10 else "")
        text = f"{len(spare)} ids without annotation: {named}"
        expected, action = "features of annotated clips only", "nothing to do: not used"
        problems.append(Problem(str(folder), "", MOTION, text, expected, action, "warning"))
    if not found & {clip.id for clip in clips}:
        return tuple(clips), {}, problems
    extended = tuple(replace(c, extras=(Extra(MOTION, (folder / f"{c.id}.npy",), read_motion),)) for c in clips)
    record = folder / RECORD
    return extended, {MOTION: record} if record.is_file() else {}, problems


def origin(record: Path | None) -> str:
    """Return the note of a report on features whose ``recipe.json`` is at ``record``, ``None`` where they have none.

    Raises:
        DataError: the record is not what ``avvp features`` writes.
    """
    if record is None:
        return "motion features: as found, without a record of their making (the published files have none)"
    try:
        recipe = json.loads(record.read_text(encoding="utf-8"))
        checkpoint, digest = str(recipe["checkpoint"]), str(recipe["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        action = "restore the file that avvp features wrote"
        raise broken(record, "content", repr(error), "checkpoint and sha256", action) from None
    return f"motion features: avvp features with {checkpoint} (sha256 {digest[:12]})"
