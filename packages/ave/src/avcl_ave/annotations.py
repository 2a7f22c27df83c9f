"""All of AVE's annotation files together: the rows of every split, and what is wrong across rows and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avcl_ave.classes import CLASSES
from avcl_ave.data import Row, categories_beside, class_names, read_rows, read_split
from avcl_core.data.problems import Problem
from avcl_core.data.records import AnnotationFile


@dataclass(frozen=True)
class Annotations:
    """The well-formed rows of ``Annotations.txt`` and of every split file, and the findings of reading them."""

    rows: tuple[Row, ...]
    splits: Mapping[str, tuple[Row, ...]]
    problems: tuple[Problem, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Event classes in index order."""
        return class_names(self.rows)

    def shared_with_evaluation(self) -> frozenset[str]:
        """Return the training video ids that validation or test has too."""
        judged = {row.video for split in ("val", "test") for row in self.splits[split]}
        return frozenset(row.video for row in self.splits["train"]) & judged


def read_annotations(annotations: Path, splits: Mapping[str, Path]) -> Annotations:
    """Read ``Annotations.txt``, the split files and the ``categories.txt`` beside the first; nothing is raised.

    Where there is no ``categories.txt``, class names are checked against the published ones.
    """
    table = AnnotationFile(annotations)
    files = {split: AnnotationFile(path) for split, path in splits.items()}
    categories = table.collect(categories_beside)
    unreadable = bool(table.problems)
    rows = table.collect(lambda file: read_rows(file, categories if categories or unreadable else CLASSES))
    # Without the table every split line would be an unknown row: the table's own error says it better.
    parts = {
        split: file.collect(lambda file: read_split(file, rows, categories)) if rows else []
        for split, file in files.items()
    }
    if categories and not any(problem.severity == "error" for problem in table.problems):
        check_class_order(table, rows, categories)
    check_repeats(files, parts)
    problems = [problem for file in (table, *files.values()) for problem in file.problems]
    return Annotations(tuple(rows), {split: tuple(part) for split, part in parts.items()}, tuple(problems))


def check_class_order(table: AnnotationFile, rows: Sequence[Row], categories: Sequence[str]) -> None:
    """Record where the order of first appearance, which numbers the classes, is not that of ``categories.txt``."""
    seen = class_names(rows)
    expected = [name for name in categories if name in seen]
    for name, wanted in zip(seen, expected, strict=True):
        if name != wanted:
            line = next(row.line for row in rows if row.category == name)
            found, action = f"{name!r} before {wanted!r}", "restore the published row order"
            table.note(line, "Category", found, "classes first appear in the order of categories.txt", action)
            return
    for name in categories:
        if name not in seen:
            expected, action = "rows of every class in categories.txt", "remove the class there, or add clips of it"
            table.note(None, "Category", f"no row of class {name!r}", expected, action, "warning")


def check_repeats(files: Mapping[str, AnnotationFile], rows: Mapping[str, Sequence[Row]]) -> None:
    """Record repeated rows (error), ids shared by validation and test (error), and training ids found there (warning).

    An id may occur in several rows with different classes: AVE has 45 such ids. `clean` leaves the training rows out
    whose id is also in validation or test.
    """
    first: dict[tuple[str, str], tuple[str, int]] = {}
    for split, part in rows.items():
        for row in part:
            split_before, line = first.setdefault((row.video, row.category), (split, row.line))
            if (split_before, line) != (split, row.line):
                found = f"{row.video} with {row.category!r}, also in line {line} of {files[split_before].path.name}"
                files[split].note(row.line, "VideoID", found, "each clip once per class", "remove one of the rows")
    judged = {split: {row.video: row.line for row in rows.get(split, [])} for split in ("val", "test")}
    for row in rows.get("test", []):
        if row.video in judged["val"]:
            found = f"{row.video}, also in line {judged['val'][row.video]} of {files['val'].path.name}"
            files["test"].note(row.line, "VideoID", found, "an id that is not in validation", "remove one of the rows")
    for row in rows.get("train", []):
        for split, lines in judged.items():
            if row.video in lines:
                found = f"{row.video}, also in line {lines[row.video]} of {files[split].path.name}"
                action = "nothing to do: protocol clean leaves the training row out"
                files["train"].note(row.line, "VideoID", found, f"an id that is not in {split}", action, "warning")
