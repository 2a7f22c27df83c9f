"""All metadata files of an AVSBench folder together: the rows of every setting that is there, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from avcl_avs.data import Row, Setting, read_rows
from avcl_core.data.problems import Problem
from avcl_core.data.records import AnnotationFile


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
        problems += file.problems
    return Annotations(rows, tuple(problems))
