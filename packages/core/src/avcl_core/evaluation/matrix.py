"""The result matrix: every metric of every test set after "start" and after each experience; cells may be missing."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avcl_core.errors import IntegrityError

START = "start"
"""Row of the evaluation before the first experience."""


def encode_number(value: float) -> float | str:
    """Return ``value`` as strict JSON can hold it: non-finite values become ``"NaN"``, ``"Infinity"``, ``"-Infinity"``."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


@dataclass(frozen=True)
class Cell:
    """All metrics of one test set at one row, and which of them is the primary one."""

    primary: str
    metrics: Mapping[str, float]

    @property
    def value(self) -> float:
        """The primary metric; NaN where it is undefined, for example a correlation with constant predictions."""
        return self.metrics[self.primary]

    def __eq__(self, other: object) -> bool:
        # NaN metrics (a question type without items) are equal here: the same evaluation gives the same cell.
        if not isinstance(other, Cell):
            return NotImplemented
        return self.primary == other.primary and _encoded(self.metrics) == _encoded(other.metrics)

    __hash__ = None  # type: ignore[assignment]


def _encoded(metrics: Mapping[str, float]) -> dict[str, float | str]:
    return {name: encode_number(value) for name, value in metrics.items()}


class ResultMatrix:
    """Rows: ``start`` and experience names, columns: test-set names, both in the order in which they were first seen.

    Values are the tasks' metrics as reported (larger is better for the primary one). One column has one primary metric.
    """

    def __init__(self, columns: Sequence[str] = ()) -> None:
        """Create an empty matrix; ``columns`` fixes the column order in advance (the stream's test sets)."""
        self.rows: list[str] = []
        self.columns: list[str] = list(dict.fromkeys(columns))
        self._cells: dict[tuple[str, str], Cell] = {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResultMatrix):
            return NotImplemented
        return (self.rows, self.columns, self._cells) == (other.rows, other.columns, other._cells)

    __hash__ = None  # type: ignore[assignment]

    def record(self, row: str, column: str, primary: str, metrics: Mapping[str, float]) -> None:
        """Store one evaluation.

        Recording the same values twice is allowed (an evaluation that is repeated after an interruption).

        Raises:
            IntegrityError: the primary metric is not among the metrics, differs from the column's, or the cell already
                holds other values.
        """
        where = f"result after {row!r} on test set {column!r}"
        if primary not in metrics:
            raise IntegrityError(
                f"{where}: primary metric {primary!r} is not among the metrics {sorted(metrics)}; "
                "the task's score must include it"
            )
        if self.primary(column) not in (None, primary):
            raise IntegrityError(
                f"{where}: primary metric is {primary!r}, but the column has {self.primary(column)!r}; "
                "one test set has one primary metric"
            )
        cell = Cell(primary, MappingProxyType({name: float(value) for name, value in metrics.items()}))
        if self._cells.get((row, column), cell) != cell:
            raise IntegrityError(
                f"{where}: recorded twice with different values "
                f"({primary} {self._cells[row, column].value!r}, then {cell.value!r}); evaluation is not repeatable"
            )
        if row not in self.rows:
            self.rows.append(row)
        if column not in self.columns:
            self.columns.append(column)
        self._cells[row, column] = cell

    def cell(self, row: str, column: str) -> Cell | None:
        """Return all metrics of a cell, or ``None`` if it was not evaluated."""
        return self._cells.get((row, column))

    def value(self, row: str, column: str) -> float:
        """Return the primary metric of a cell; NaN if it was not evaluated."""
        cell = self.cell(row, column)
        return math.nan if cell is None else cell.value

    def primary(self, column: str) -> str | None:
        """Return the name of the column's primary metric, or ``None`` before its first evaluation."""
        return next((cell.primary for (_, name), cell in self._cells.items() if name == column), None)

    def array(self) -> NDArray[np.float64]:
        """Return the primary metrics ``[rows, columns]`` in the order of :attr:`rows` and :attr:`columns`; NaN if missing."""
        return np.array([[self.value(r, c) for c in self.columns] for r in self.rows], dtype=np.float64).reshape(
            len(self.rows), len(self.columns)
        )

    def square(self, experiences: Sequence[str], tests: Sequence[str] | None = None) -> NDArray[np.float64]:
        """Return R ``[T, T]`` for ``avcl_core.evaluation.continual``.

        Args:
            experiences: the T experience names in stream order: the rows.
            tests: the test set that judges each experience; by default the one with the experience's name.

        Returns:
            NaN wherever a row or a cell was not evaluated.
        """
        columns = list(experiences if tests is None else tests)
        if len(columns) != len(experiences):
            raise ValueError(f"{len(columns)} test sets for {len(experiences)} experiences; expected one for each")
        return np.array([[self.value(r, c) for c in columns] for r in experiences], dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return a strict-JSON record that :meth:`from_json` restores exactly."""
        cells = [
            {"row": row, "column": column, "primary": cell.primary, "metrics": _encoded(cell.metrics)}
            for (row, column), cell in self._ordered()
        ]
        return {"rows": list(self.rows), "columns": list(self.columns), "cells": cells}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ResultMatrix:
        """Rebuild a matrix from :meth:`to_json`'s record."""
        matrix = cls(record["columns"])
        matrix.rows = list(record["rows"])
        for entry in record["cells"]:
            metrics = {name: float(value) for name, value in entry["metrics"].items()}
            matrix.record(entry["row"], entry["column"], entry["primary"], metrics)
        return matrix

    def write_csv(self, path: Path) -> None:
        """Write the primary metrics as CSV: floats in ``repr`` (exact), empty where not evaluated, ``\\n`` line ends."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["after", *self.columns])
        for row in self.rows:
            cells = [self.cell(row, column) for column in self.columns]
            writer.writerow([row, *("" if cell is None else repr(cell.value) for cell in cells)])
        path.write_bytes(text.getvalue().encode())

    def _ordered(self) -> list[tuple[tuple[str, str], Cell]]:
        keys = [(row, column) for row in self.rows for column in self.columns]
        return [(key, self._cells[key]) for key in keys if key in self._cells]
