"""AVE's annotation files: one `&`-separated row per clip, its event and span; classes are numbered by first appearance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from avcl_ave.hdf5 import read_hdf5
from avcl_core.data.records import AnnotationFile, refuse_errors
from avcl_core.errors import nearest

SECONDS = 10
"""Length of a clip in seconds, which is the number of its segments."""
SPLIT_FILES = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}
"""Split → file of full annotation rows."""
HEADER = ("Category", "VideoID", "Quality", "StartTime", "EndTime")
ID_LENGTH = 11
"""Length of a video id."""
ORDER_FILES = {split: f"{split}_order.h5" for split in SPLIT_FILES}
"""Split → file with the annotation rows of the split, which stands for a missing text file (tasks.md 1.1)."""


@dataclass(frozen=True)
class Row:
    """One annotation row: the event of a clip and its span [start, end) in seconds; ``line`` is 1-based."""

    line: int
    category: str
    video: str
    start: int
    end: int

    @property
    def content(self) -> tuple[str, str, int, int]:
        """Everything but the place in the file: equal for a split line and its annotation row."""
        return (self.category, self.video, self.start, self.end)


def segment_labels(annotations: str | Path, split: str | Path) -> tuple[list[str], np.ndarray]:
    """Return the class of every second of the clips of one split, in the order of the split file.

    Classes are numbered by first appearance in ``annotations``; their number is the index of background (28 for AVE).
    Label and times come from the split row's own fields, because 45 video ids stand in several rows (Tian et al.,
    ECCV 2018; tasks.md 1.2).

    Args:
        annotations: path of ``Annotations.txt``, with or without its header. Where a ``categories.txt`` lies beside it,
            class names are checked against that.
        split: path of one split file, or of its ``*_order.h5``.

    Returns:
        video ids, and an integer array ``[N, 10]``.

    Raises:
        DataError: a file is missing or malformed; names file, line, field, found and expected value.
    """
    table, chosen = AnnotationFile(Path(annotations)), AnnotationFile(Path(split))
    categories = categories_beside(table)
    known = read_rows(table, categories)
    refuse_errors(table.problems)
    rows = read_split(chosen, known, categories)
    refuse_errors(chosen.problems)
    classes = class_names(known)
    return [row.video for row in rows], np.stack([segments(row, classes) for row in rows])


def segments(row: Row, classes: Sequence[str]) -> np.ndarray:
    """Return the class of every second of a row, int64 ``[10]``: its event inside [start, end), else background."""
    labels = np.full(SECONDS, len(classes), dtype=np.int64)
    labels[row.start : row.end] = classes.index(row.category)
    return labels


def class_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the categories by first appearance, which is their index order."""
    return tuple(dict.fromkeys(row.category for row in rows))


def categories_beside(annotations: AnnotationFile) -> list[str]:
    """Return the lines of the ``categories.txt`` beside an annotation file; nothing where there is none."""
    path = annotations.path.with_name("categories.txt")
    return [text.strip() for _, text in AnnotationFile(path).lines()] if path.exists() else []


def read_rows(file: AnnotationFile, categories: Sequence[str]) -> list[Row]:
    """Return the well-formed rows of an annotation or split file; the others are recorded in ``file.problems``.

    Class names are checked against ``categories`` unless that is empty.

    The header is detected by its text. A sixth column (``Domain``) is accepted and ignored.

    Raises:
        DataError: the file is missing, empty or not UTF-8.
    """
    lines = file.lines()
    if tuple(lines[0][1].split("&")[: len(HEADER)]) == HEADER:
        lines = lines[1:]
    if not lines:
        file.note(
            None, "rows", "a header and nothing else", "at least one annotation row", "put the published file there"
        )
    return [row for line, text in lines if (row := _row(file, line, text, categories)) is not None]


def read_split(file: AnnotationFile, annotations: Sequence[Row], categories: Sequence[str]) -> list[Row]:
    """Return the rows of a split file; a line that is no row of ``annotations`` is recorded as an error and left out.

    Without ``categories``, those of the annotation rows are the known classes. An HDF5 file holds ``order``, which are
    places of annotation rows.
    """
    if file.path.suffix == ".h5":
        return _read_order(file, annotations)
    known = {row.content for row in annotations}
    rows = []
    for row in read_rows(file, categories or class_names(annotations)):
        if row.content in known:
            rows.append(row)
        else:
            found = f"{row.category}&{row.video}&…&{row.start}&{row.end}"
            advice = "take split file and Annotations.txt from the same release"
            file.note(row.line, "row", found, "a row of Annotations.txt", advice)
    return rows


def _read_order(file: AnnotationFile, annotations: Sequence[Row]) -> list[Row]:
    order = read_hdf5(file.path, "order")
    if order.ndim != 1 or order.dtype.kind not in "iu" or not order.size:
        expected, advice = "one dimension of integers", "take the file from the release again"
        file.note(None, "order", f"{order.dtype} of shape {order.shape}", expected, advice)
        return []
    rows = []
    for line, place in enumerate(order.tolist(), start=1):
        if 0 <= place < len(annotations):
            rows.append(replace(annotations[place], line=line))
        else:
            advice = "take it and Annotations.txt from the same release"
            file.note(line, "order", f"{place}", f"a row of Annotations.txt, 0…{len(annotations) - 1}", advice)
    return rows


def _row(file: AnnotationFile, line: int, text: str, categories: Sequence[str]) -> Row | None:
    """Parse one line, or record every field that is wrong and return ``None``."""
    fields = text.split("&")
    if len(fields) not in (len(HEADER), len(HEADER) + 1):
        file.note(line, "fields", f"{len(fields)}", f"{len(HEADER)} separated by &", "correct the row")
        return None
    category, video, quality = fields[:3]
    before = len(file.problems)
    if not category:
        file.note(line, "Category", "nothing", "a class name", "correct the row")
    elif categories and category not in categories:
        file.note(
            line, "Category", repr(category), "a known class", f"correct the row{nearest(category, [*categories])}"
        )
    if len(video) != ID_LENGTH:
        file.note(line, "VideoID", f"{video!r}, {len(video)} characters", f"{ID_LENGTH} characters", "correct the row")
    start, end = (file.integer(line, name, fields[i], 0, SECONDS) for i, name in ((3, "StartTime"), (4, "EndTime")))
    if start is not None and end is not None and end < start:
        file.note(
            line, "EndTime", f"{end} before StartTime {start}", f"an integer in {start}…{SECONDS}", "correct the row"
        )
    if start is None or end is None or len(file.problems) > before:
        return None
    if quality != "good":
        file.note(line, "Quality", repr(quality), "good", "check the clip; it is used as it is", "warning")
    if end == start:
        action = "nothing to do: the clip is all background"
        file.note(line, "EndTime", f"{end}, equal to StartTime", "an end after the start", action, "warning")
    return Row(line, category, video, start, end)
