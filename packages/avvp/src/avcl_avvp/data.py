"""LLP's label files: weak labels per video, dense audible and visible spans per event, 25 classes in the published order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avcl_core.data.problems import broken
from avcl_core.data.records import AnnotationFile, refuse_errors
from avcl_core.errors import nearest

SECONDS = 10
"""Length of a clip in seconds, which is the number of its segments."""
LLP_CLASSES = (
    "Speech",
    "Car",
    "Cheering",
    "Dog",
    "Cat",
    "Frying_(food)",
    "Basketball_bounce",
    "Fire_alarm",
    "Chainsaw",
    "Cello",
    "Banjo",
    "Singing",
    "Chicken_rooster",
    "Violin_fiddle",
    "Vacuum_cleaner",
    "Baby_laughter",
    "Accordion",
    "Lawn_mower",
    "Motorcycle",
    "Helicopter",
    "Acoustic_guitar",
    "Telephone_bell_ringing",
    "Baby_cry_infant_cry",
    "Blender",
    "Clapping",
)
"""Classes of LLP in index order; a ``categories.txt`` beside the label files of another data set replaces them."""
WEAK_HEADER = ("filename", "event_labels")
DENSE_HEADER = ("filename", "onset", "offset", "event_labels")
ID_LENGTH = 11
"""Length of a video id, which a file name begins with; an id may itself contain ``_`` or begin with ``-``."""
_NAME = re.compile(rf".{{{ID_LENGTH}}}_[0-9]+(\.[0-9]+)?_[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True)
class WeakRow:
    """The events of one video, wherever they are: class indices, each once. ``line`` is 1-based.

    ``listed`` is how many labels the file lists, repeated ones included.
    """

    line: int
    name: str
    labels: tuple[int, ...]
    listed: int

    @property
    def video(self) -> str:
        """The video id, which names the media files."""
        return self.name[:ID_LENGTH]


@dataclass(frozen=True)
class DenseRow:
    """One event of one modality: its class index and span [onset, offset) in seconds. ``line`` is 1-based."""

    line: int
    name: str
    onset: int
    offset: int
    label: int


def weak_labels(csv: str | Path) -> tuple[list[str], np.ndarray]:
    """Return the video-level labels of one split (``AVVP_train.csv`` and its like), in file order.

    Returns:
        whole file names ``<id>_<start>_<end>``, and a 0/1 integer array ``[N, 25]``; a label that is listed twice counts
        once (Tian et al., ECCV 2020; tasks.md 2.1). A ``categories.txt`` beside the file replaces LLP's 25 classes.

    Raises:
        DataError: the file is missing or malformed; names file, line, field, found and expected value.
    """
    file = AnnotationFile(Path(csv))
    classes = categories_beside(file) or LLP_CLASSES
    rows = read_weak(file, classes)
    refuse_errors(file.problems)
    return [row.name for row in rows], np.stack([multi_hot(row, len(classes)) for row in rows])


def segment_labels(eval_csv: str | Path, names: Sequence[str]) -> np.ndarray:
    """Return the dense labels of one modality for ``names``, a 0/1 integer array ``[N, 25, 10]``.

    The file is read literally (tasks.md 2.6): rows whose name is not in ``names``, and rows without a second
    (offset ≤ onset), mark nothing.

    Raises:
        DataError: the file is missing or malformed; names file, line, field, found and expected value.
    """
    file = AnnotationFile(Path(eval_csv))
    classes = categories_beside(file) or LLP_CLASSES
    rows = read_dense(file, classes)
    refuse_errors(file.problems)
    return mark_seconds(rows, names, len(classes))


def categories_beside(labels: AnnotationFile) -> list[str]:
    """Return the lines of the ``categories.txt`` beside a label file; nothing where there is none."""
    path = labels.path.with_name("categories.txt")
    return [text.strip() for _, text in AnnotationFile(path).lines()] if path.exists() else []


def multi_hot(row: WeakRow, classes: int) -> np.ndarray:
    """Return the labels of a row as a 0/1 vector, int64 ``[classes]``."""
    labels = np.zeros(classes, dtype=np.int64)
    labels[list(row.labels)] = 1
    return labels


def mark_seconds(rows: Sequence[DenseRow], names: Sequence[str], classes: int) -> np.ndarray:
    """Return which seconds of which video the rows mark, 0/1 int64 ``[len(names), classes, 10]``."""
    marks = np.zeros((len(names), classes, SECONDS), dtype=np.int64)
    index = {name: place for place, name in enumerate(names)}
    for row in rows:
        if row.name in index:
            marks[index[row.name], row.label, row.onset : row.offset] = 1
    return marks


def read_weak(file: AnnotationFile, classes: Sequence[str]) -> list[WeakRow]:
    """Return the well-formed rows of a weak label file; the others are recorded in ``file.problems``.

    Raises:
        DataError: the file is missing, empty, not UTF-8, or has another header.
    """
    rows: dict[str, WeakRow] = {}
    for line, (name, text) in _cells(file, WEAK_HEADER):
        before = len(file.problems)
        if not _NAME.fullmatch(name):
            file.note(line, "filename", repr(name), f"<{ID_LENGTH} characters>_<start>_<end>", "correct the row")
        if name in rows:
            file.note(line, "filename", f"{name}, also in line {rows[name].line}", "each video once", "remove one row")
        labels = [_label(file, line, label, classes) for label in text.split(",")]
        if len(file.problems) > before:
            continue
        distinct = tuple(dict.fromkeys(label for label in labels if label is not None))
        if len(distinct) < len(labels):
            file.note(line, "event_labels", text, "each label once", "nothing to do: taken once", "warning")
        rows[name] = WeakRow(line, name, distinct, len(labels))
    if not rows and not file.problems:
        file.note(None, "rows", "a header and nothing else", "at least one video", "put the published file there")
    return list(rows.values())


def read_dense(file: AnnotationFile, classes: Sequence[str]) -> list[DenseRow]:
    """Return the well-formed rows of a dense label file, those without a second included, with a warning for each of these.

    Whether a name belongs to a video is not checked here. Other malformed rows are recorded in ``file.problems``.

    Raises:
        DataError: the file is missing, empty, not UTF-8, or has another header.
    """
    rows = []
    for line, (name, first, last, text) in _cells(file, DENSE_HEADER):
        onset, offset = (
            file.integer(line, field, value, 0, SECONDS) for field, value in (("onset", first), ("offset", last))
        )
        label = _label(file, line, text, classes)
        if onset is None or offset is None or label is None:
            continue
        if offset <= onset:
            file.note(
                line, "offset", f"{offset}, not after onset {onset}", "an offset after the onset", "ignored", "warning"
            )
        rows.append(DenseRow(line, name, onset, offset, label))
    return rows


def _cells(file: AnnotationFile, header: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of the rows below the header; those with another number of cells are recorded."""
    (_, first), *rest = file.lines()
    if tuple(first.split("\t")) != header:
        action = "restore the tab-separated header line"
        raise broken(file.path, "header", repr(first), repr("\t".join(header)), action, "line 1")
    for line, text in rest:
        values = text.split("\t")
        if len(values) == len(header):
            yield line, values
        else:
            file.note(line, "fields", f"{len(values)}", f"{len(header)} separated by tabs", "correct the row")


def _label(file: AnnotationFile, line: int, text: str, classes: Sequence[str]) -> int | None:
    if text in classes:
        return classes.index(text)
    file.note(line, "event_labels", repr(text), "a known class", f"correct the row{nearest(text, [*classes])}")
    return None
