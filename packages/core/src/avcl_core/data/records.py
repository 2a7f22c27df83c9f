"""Numbered lines of an annotation file, and what is wrong with them: every malformed line is named before any is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from avcl_core.data.problems import MediaError, Problem, Severity, broken

Result = TypeVar("Result")
NAMED = 20
"""Further errors that the message of an exception names; `data verify` lists all."""


@dataclass
class AnnotationFile:
    """One annotation file: its lines, and the findings of reading them."""

    path: Path
    problems: list[Problem] = field(default_factory=list)

    def lines(self) -> list[tuple[int, str]]:
        """Return (1-based number, text) of every line; empty lines at the end are no lines.

        Raises:
            DataError: the file is missing, empty or not UTF-8.
        """
        if not self.path.is_file():
            raise broken(self.path, "file", "no such file", "an annotation file", "put the published file there")
        content = self.path.read_bytes()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            found = f"byte 0x{content[error.start]:02x} at offset {error.start}"
            raise broken(self.path, "encoding", found, "UTF-8 text", "save it as UTF-8", f"line {line}") from None
        lines = [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")]
        if lines == [""]:
            raise broken(self.path, "content", "an empty file", "annotation rows", "put the published file there")
        return list(enumerate(lines, start=1))

    def collect(self, read: Callable[[AnnotationFile], list[Result]]) -> list[Result]:
        """Return what ``read`` makes of the file; if it cannot be read at all, that is a finding, and there is nothing."""
        try:
            return read(self)
        except MediaError as error:
            self.problems.append(error.problem)
            return []

    def note(
        self, line: int | None, name: str, found: str, expected: str, action: str, severity: Severity = "error"
    ) -> None:
        """Record a finding at ``line`` (``None``: the whole file) in the field ``name``."""
        record = "" if line is None else f"line {line}"
        self.problems.append(Problem(str(self.path), record, name, found, expected, action, severity))

    def integer(self, line: int, name: str, text: str, low: int, high: int) -> int | None:
        """Return ``text`` as an integer in low…high, or record what is wrong with it and return ``None``."""
        if re.fullmatch(r"[+-]?[0-9]{1,18}", text) and low <= int(text) <= high:
            return int(text)
        self.note(line, name, repr(text), f"an integer in {low}…{high}", "correct the row")
        return None


def refuse_errors(problems: Iterable[Problem]) -> None:
    """Raise the first error among ``problems`` as DataError; the message names further ones too."""
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return
    first = errors[0]
    if len(errors) > 1:
        others = [
            f"{Path(problem.file).name} [{problem.record}] {problem.field}: {problem.found}" for problem in errors[1:]
        ]
        others[NAMED:] = ["…"] if len(others) > NAMED else []
        first = replace(first, action=f"{first.action}; {len(errors) - 1} more: {', '.join(others)}")
    raise MediaError(first)
