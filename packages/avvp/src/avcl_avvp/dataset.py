"""Prepared LLP as samples by key: weak labels for training, dense ones for validation and test, under a protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from avcl_avvp.annotations import Annotations, read_annotations
from avcl_avvp.data import DenseRow, WeakRow, mark_seconds, multi_hot
from avcl_avvp.defects import CORRUPTED, LOST, is_llp, repair
from avcl_avvp.layout import DENSE_FILES, WEAK_FILES
from avcl_avvp.motion import FOLDER, MOTION, origin
from avcl_core.data.prepared import Prepared
from avcl_core.data.problems import Problem, broken
from avcl_core.data.records import refuse_errors


class ParsingData:
    """LLP under a protocol.

    A sample is a video; its key is the whole file name ``<id>_<start>_<end>``. `clean` repairs the three corrupted rows of
    the audio ground truth where it meets them; `paper` needs the file with these rows and reads it literally (tasks.md
    2.2).

    Args:
        prepared: a data set that was prepared from LLP's layout.
        protocol: ``clean`` or ``paper``.
        motion: whether samples bring the clips' motion features; ``None``: where the prepared data have them.

    Raises:
        DataError: the label files have an error; `clean` meets a row that belongs to no video beyond the known ones;
            `paper` meets the repaired file; the data set is another one; or ``motion`` is asked for and not there.
    """

    def __init__(self, prepared: Prepared, protocol: str, motion: bool | None = None) -> None:
        if prepared.layout != "avvp":
            raise broken(prepared.folder, "layout", prepared.layout, "avvp", "name the folder of prepared LLP data")
        weak = {split: prepared.annotation(split) for split in WEAK_FILES}
        dense = {modality: prepared.annotation(modality) for modality in DENSE_FILES}
        found = read_annotations(weak, dense)
        refuse_errors(found.problems)
        self.prepared, self.protocol = prepared, protocol
        self.classes = found.classes
        self._videos = {split: {row.name: row for row in rows} for split, rows in found.weak.items()}
        audio, truth = ground_truth(found, protocol, str(dense["audio"]))
        self.motion = _uses_motion(prepared, motion)
        self.note = "; ".join(filter(None, (truth, self._motion_note(found))))
        self._dense: dict[str, dict[str, np.ndarray]] = {}
        names = sorted(found.judged())
        for modality, rows in {**found.dense, "audio": audio}.items():
            if protocol == "clean":
                refuse_unknown(rows, names, str(dense[modality]))
            marks = mark_seconds(rows, names, len(self.classes)).astype(np.uint8)
            self._dense[modality] = dict(zip(names, marks, strict=True))

    def keys(self, split: str) -> tuple[str, ...]:
        """Return the sample keys of a split in the order of its file."""
        return tuple(self._videos[split])

    def split(self, split: str) -> ParsingClips:
        """Return the videos of a split; those of training have no dense labels."""
        dense = {} if split == "train" else self._dense
        return ParsingClips(self.prepared, len(self.classes), self._videos[split], dense, self.motion)

    def _motion_note(self, found: Annotations) -> str:
        """Say whose motion features there are, and of LLP also that there are none."""
        if self.motion:
            recorded = f"annotations/{MOTION}.json" in self.prepared.manifest["files"]
            return origin(self.prepared.annotation(MOTION) if recorded else None)
        return "no motion features" if is_llp([row.name for row in found.weak["test"]]) else ""


def _uses_motion(prepared: Prepared, asked: bool | None) -> bool:
    there = MOTION in prepared.extras
    if asked and not there:
        action = (
            f"put {FOLDER}/<id>.npy below LLP_dataset (avvp features makes them) and prepare again, or set motion: null"
        )
        raise broken(prepared.folder, MOTION, "none", "features of every clip", action)
    return there if asked is None else asked


def ground_truth(found: Annotations, protocol: str, file: str) -> tuple[list[DenseRow], str]:
    """Return the audio rows that the protocol judges by, and a note for reports.

    Raises:
        DataError: `paper` is asked for and the file of LLP has fewer than the three corrupted rows.
    """
    rows = list(found.dense["audio"])
    if not is_llp([row.name for row in found.weak["test"]]):
        return rows, ""
    repaired, count = repair(rows)
    if protocol == "clean":
        return (
            repaired,
            f"audio ground truth: {count} corrupted rows repaired" if count else "audio ground truth: already repaired",
        )
    if count < len(CORRUPTED):
        action = "give paper AVVP_eval_audio.csv as the forks of LLP ship it (results are published on that), or use protocol clean"
        raise broken(file, "rows", f"{count} of the corrupted rows: a repaired file", f"all {len(CORRUPTED)}", action)
    return rows, f"audio ground truth as shipped: {count} corrupted rows match no video"


def refuse_unknown(rows: Iterable[DenseRow], names: Iterable[str], file: str) -> None:
    """Raise DataError that names the rows of no known video, unless their name is lost in every published copy."""
    known = {*names, *LOST}
    expected, action = "a validation or test video", "correct the name, or use the weak label files of the same release"
    refuse_errors(
        Problem(file, f"line {row.line}", "filename", repr(row.name), expected, action)
        for row in rows
        if row.name not in known
    )


@dataclass
class ParsingClips:
    """The videos of one split; ``dense`` is modality → name → 0/1 ``[C, 10]``, empty for training."""

    prepared: Prepared
    classes: int
    rows: Mapping[str, WeakRow]
    dense: Mapping[str, Mapping[str, np.ndarray]]
    motion: bool = False
    drawn: frozenset[str] = frozenset()

    def inputs(self, key: str, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Return ``visual`` uint8 ``[10, H, W, 3]``, ``audio`` float32 ``[10, 32000]`` and, where samples have it, ``motion``
        float32 ``[10, 512]``; DataError for a broken clip."""
        video = self.rows[key].video
        motion = {MOTION: self.prepared.extra(MOTION, video)} if self.motion else {}
        return {"visual": self.prepared.frames(video), "audio": self.prepared.wave(video), **motion}

    def targets(self, key: str) -> dict[str, np.ndarray]:
        """Return ``labels`` ``[C]``; outside training also ``audio`` and ``visual`` ``[C, 10]``, 0 or 1, and ``listed``, the number
        of labels that the file lists for the video."""
        row = self.rows[key]
        labels = {"labels": multi_hot(row, self.classes).astype(np.uint8)}
        if not self.dense:
            return labels
        dense = {modality: marks[key] for modality, marks in self.dense.items()}
        return {**labels, **dense, "listed": np.array(row.listed)}

    def digest(self, key: str) -> str:
        """Return the digest of the clip's arrays; DataError for a broken clip."""
        return self.prepared.sample_digest(self.rows[key].video)
