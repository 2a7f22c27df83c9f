"""Prepared AVE as samples by key: which rows belong to a split under a protocol, and what a row holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from avcl_ave.annotations import read_annotations
from avcl_ave.data import SPLIT_FILES, Row, segments
from avcl_core.data.prepared import Prepared
from avcl_core.data.problems import broken
from avcl_core.data.records import refuse_errors


class EventData:
    """AVE under a protocol.

    A sample is a row of a split file; its key is ``<video id>#<class index>`` with two digits, because a video id may occur
    in several rows, always with different classes. `clean` leaves out the training rows whose video id is also in
    validation or test; `paper` keeps them (tasks.md 0.4).

    Args:
        prepared: a data set that was prepared from AVE's layout.
        protocol: ``clean`` or ``paper``.

    Raises:
        DataError: the annotation files have an error, or the data set is another one.
    """

    def __init__(self, prepared: Prepared, protocol: str) -> None:
        if prepared.layout != "ave":
            action = "name the folder of prepared AVE data"
            raise broken(prepared.folder, "layout", prepared.layout, "ave", action)
        paths = {split: prepared.annotation(split) for split in SPLIT_FILES}
        found = read_annotations(prepared.annotation("annotations"), paths)
        refuse_errors(found.problems)
        self.prepared, self.protocol = prepared, protocol
        self.classes = found.classes
        shared = found.shared_with_evaluation()
        held_back = shared if protocol == "clean" else frozenset()
        self._rows = {
            split: {self.key(row): row for row in part if split != "train" or row.video not in held_back}
            for split, part in found.splits.items()
        }
        total, kept = len(found.splits["train"]), len(self._rows["train"])
        overlap = sum(row.video in shared for row in found.splits["train"])
        if protocol == "clean":
            self.note = (
                f"{total - kept} of {total} training rows left out: their video id is also in validation or test"
            )
        else:
            self.note = f"{overlap} of {total} training rows share a video id with validation or test"

    def key(self, row: Row) -> str:
        """Return the sample key of a row."""
        return f"{row.video}#{self.classes.index(row.category):02d}"

    def keys(self, split: str) -> tuple[str, ...]:
        """Return the sample keys of a split in the order of its file."""
        return tuple(self._rows[split])

    def split(self, split: str, spans: bool = True) -> EventClips:
        """Return the samples of a split; without ``spans`` their targets do not say when the event happens."""
        return EventClips(self.prepared, self.classes, self._rows[split], spans)


@dataclass
class EventClips:
    """The samples of one split."""

    prepared: Prepared
    classes: tuple[str, ...]
    rows: Mapping[str, Row]
    spans: bool = True
    drawn: frozenset[str] = frozenset()

    def inputs(self, key: str, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Return ``visual`` uint8 ``[10, H, W, 3]`` and ``audio`` float32 ``[10, 32000]``; DataError for a broken clip."""
        video = self.rows[key].video
        return {"visual": self.prepared.frames(video), "audio": self.prepared.wave(video)}

    def targets(self, key: str) -> dict[str, np.ndarray]:
        """Return ``segments`` ``[10]``, the class of each second (background last; only with ``spans``), and ``event``,
        the row's class.
        """
        row = self.rows[key]
        event = {"event": np.array(self.classes.index(row.category))}
        return {"segments": segments(row, self.classes), **event} if self.spans else event

    def digest(self, key: str) -> str:
        """Return the digest of the clip's frames and sound; DataError for a broken clip."""
        return self.prepared.sample_digest(self.rows[key].video)
