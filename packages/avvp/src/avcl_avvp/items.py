"""LLP as PHP's paper lists it: every video once per label, with the labels of the whole video as target in every split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from avcl_avvp.annotations import read_annotations
from avcl_avvp.data import WeakRow, multi_hot
from avcl_avvp.layout import WEAK_FILES
from avcl_core.data.prepared import Prepared
from avcl_core.data.problems import broken
from avcl_core.data.records import refuse_errors


class VideoItems:
    """LLP's items (php.md 2.2): 16,057 for training, 1,170 for validation and 2,179 for test.

    A sample is one label of one video, as often as the file lists it; its key is ``<name>#<place of the label>``. All items of a
    video have the same input and the same target. The dense label files are not read.

    Args:
        prepared: a data set that was prepared from LLP's layout.

    Raises:
        DataError: a weak label file has an error, or the data set is another one.
    """

    def __init__(self, prepared: Prepared) -> None:
        if prepared.layout != "avvp":
            raise broken(prepared.folder, "layout", prepared.layout, "avvp", "name the folder of prepared LLP data")
        found = read_annotations({split: prepared.annotation(split) for split in WEAK_FILES}, {})
        refuse_errors(found.problems)
        self.prepared, self.classes = prepared, found.classes
        self._rows = {
            split: {f"{row.name}#{place}": row for row in rows for place in range(row.listed)}
            for split, rows in found.weak.items()
        }
        counts = ", ".join(f"{split} {len(rows)} as {len(self._rows[split])}" for split, rows in found.weak.items())
        self.note = f"protocol paper (php), no parsing: videos listed once per label ({counts}), judged by weak labels"

    def keys(self, split: str) -> tuple[str, ...]:
        """Return the sample keys of a split in the order of its file."""
        return tuple(self._rows[split])

    def split(self, split: str) -> ItemClips:
        """Return the items of a split."""
        return ItemClips(self.prepared, len(self.classes), self._rows[split])


@dataclass
class ItemClips:
    """The items of one split."""

    prepared: Prepared
    classes: int
    rows: Mapping[str, WeakRow]
    drawn: frozenset[str] = frozenset()

    def inputs(self, key: str, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Return ``visual`` uint8 ``[10, H, W, 3]`` and ``audio`` float32 ``[10, 32000]``; DataError for a broken clip."""
        video = self.rows[key].video
        return {"visual": self.prepared.frames(video), "audio": self.prepared.wave(video)}

    def targets(self, key: str) -> dict[str, np.ndarray]:
        """Return ``labels`` float32 ``[C]``: 1 for each label of the video, not normalised."""
        return {"labels": multi_hot(self.rows[key], self.classes).astype(np.float32)}

    def digest(self, key: str) -> str:
        """Return the digest of the clip's arrays; DataError for a broken clip."""
        return self.prepared.sample_digest(self.rows[key].video)


def video_of(key: str) -> str:
    """Return the name of the video whose item ``key`` is."""
    return key.rpartition("#")[0]
