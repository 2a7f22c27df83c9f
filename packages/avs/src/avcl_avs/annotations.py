"""All metadata files of an AVSBench folder together: the rows of every setting that is there, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from avcl_avs.data import SPLITS, Row, Setting, read_rows
from avcl_core.data.problems import Problem
from avcl_core.data.records import AnnotationFile

PUBLISHED: dict[Setting, tuple[int, int, int]] = {"s4": (3452, 740, 740), "ms3": (296, 64, 64)}
"""Videos for training, validation and test of the published settings (tasks.md 3.1)."""


@dataclass(frozen=True)
class Annotations:
    """The well-formed rows of every setting, and the findings of reading them."""

    rows: Mapping[Setting, tuple[Row, ...]]
    problems: tuple[Problem, ...]


def read_annotations(metadata: Mapping[Setting, Path], categories: Path | None) -> Annotations:
    """Read the metadata file of every setting; nothing is raised.

    Args:
        categories: file with one category name per line, which a generated world has, because its classes are its own.
    """
    names = AnnotationFile(categories) if categories is not None else None
    known = [text.strip() for _, text in names.collect(AnnotationFile.lines)] if names is not None else []
    rows, problems = {}, [*names.problems] if names is not None else []
    for setting, path in metadata.items():
        file = AnnotationFile(path)
        rows[setting] = tuple(file.collect(lambda file, setting=setting: read_rows(file, setting, known)))
        if categories is None and rows[setting]:
            check_sizes(file, setting, rows[setting])
        problems += file.problems
    return Annotations(rows, tuple(problems))


def check_sizes(file: AnnotationFile, setting: Setting, rows: tuple[Row, ...]) -> None:
    """Record a warning where a split has another number of videos than the published data set."""
    counts = Counter(row.split for row in rows)
    found = " / ".join(f"{counts[split]:,}" for split in SPLITS)
    expected = " / ".join(f"{count:,}" for count in PUBLISHED[setting])
    if found != expected:
        action = "compare with the published file: results are of these videos"
        file.note(None, "videos per split", found, f"{expected}, as published", action, "warning")
