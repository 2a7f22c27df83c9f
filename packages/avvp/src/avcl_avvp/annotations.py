"""All of LLP's label files together: the rows of every split and modality, and what is wrong across rows and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avcl_avvp.data import LLP_CLASSES, DenseRow, WeakRow, categories_beside, read_dense, read_weak
from avcl_avvp.defects import LOST, corrupted
from avcl_core.data.problems import Problem
from avcl_core.data.records import AnnotationFile


@dataclass(frozen=True)
class Annotations:
    """The well-formed rows of every label file, and the findings of reading them.

    Attributes:
        classes: class names in index order.
        weak: split → rows. dense: modality → rows, as the file has them.
    """

    classes: tuple[str, ...]
    weak: Mapping[str, tuple[WeakRow, ...]]
    dense: Mapping[str, tuple[DenseRow, ...]]
    problems: tuple[Problem, ...]

    def judged(self) -> frozenset[str]:
        """Return the names of validation and test videos."""
        return frozenset(row.name for split in ("val", "test") for row in self.weak[split])


def read_annotations(weak: Mapping[str, Path], dense: Mapping[str, Path]) -> Annotations:
    """Read the weak label files by split, the dense ones by modality, and a ``categories.txt``; nothing is raised."""
    weak_files = {split: AnnotationFile(path) for split, path in weak.items()}
    dense_files = {modality: AnnotationFile(path) for modality, path in dense.items()}
    files = (*weak_files.values(), *dense_files.values())
    classes = tuple(files[0].collect(categories_beside)) or LLP_CLASSES
    videos = {split: file.collect(lambda file: read_weak(file, classes)) for split, file in weak_files.items()}
    events = {modality: file.collect(lambda file: read_dense(file, classes)) for modality, file in dense_files.items()}
    check_repeats(weak_files, videos)
    names = {row.name for split in ("val", "test") for row in videos[split]}
    for modality, file in dense_files.items():
        check_names(file, events[modality], names)
        check_overlaps(file, events[modality])
    return Annotations(
        classes,
        {split: tuple(rows) for split, rows in videos.items()},
        {modality: tuple(rows) for modality, rows in events.items()},
        tuple(problem for file in files for problem in file.problems),
    )


def check_repeats(files: Mapping[str, AnnotationFile], rows: Mapping[str, Sequence[WeakRow]]) -> None:
    """Record video ids that stand in two rows, of one split or of two."""
    first: dict[str, tuple[str, int]] = {}
    for split, part in rows.items():
        for row in part:
            before, line = first.setdefault(row.video, (split, row.line))
            if (before, line) != (split, row.line):
                found = f"{row.name}; its id is also in line {line} of {files[before].path.name}"
                files[split].note(
                    row.line, "filename", found, "each video id once in all splits", "remove one of the rows"
                )


def check_names(file: AnnotationFile, rows: Iterable[DenseRow], names: set[str]) -> None:
    """Record dense rows that belong to no validation or test video: known defects, and others, which `clean` refuses."""
    for row in rows:
        if row.name in names:
            continue
        defect = corrupted(row)
        if defect is not None:
            action = (
                f"nothing to do: clean repairs the row, which belongs to {defect.belongs_to}; paper reads it literally"
            )
        elif row.name in LOST:
            action = "nothing to do: its events are lost in every published copy"
        else:
            action = "correct the name; protocol clean refuses it"
        file.note(row.line, "filename", repr(row.name), "a validation or test video", action, "warning")


def check_overlaps(file: AnnotationFile, rows: Sequence[DenseRow]) -> None:
    """Record rows that mark seconds of an event again, the same row twice included."""
    first: dict[tuple[str, int, int], int] = {}
    for row in rows:
        seconds = [(row.name, row.label, second) for second in range(row.onset, row.offset)]
        again = next((first[second] for second in seconds if second in first), None)
        if again is not None:
            found = f"{row.name} {row.onset} {row.offset}, overlapping line {again}"
            file.note(row.line, "onset", found, "spans of an event do not overlap", "nothing to do: united", "warning")
        for second in seconds:
            first.setdefault(second, row.line)
