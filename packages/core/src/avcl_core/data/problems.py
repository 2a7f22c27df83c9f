"""What is wrong with a data file, as one record: the lines of ``quarantine.jsonl`` and the text of every data error."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from avcl_core.errors import DataError

QUARANTINE = "quarantine.jsonl"
Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One finding. ``record`` is the line, row or clip id inside or behind the file (empty: the whole file)."""

    file: str
    record: str
    field: str
    found: str
    expected: str
    action: str
    severity: Severity = "error"

    def __str__(self) -> str:
        where = f"{self.file} [{self.record}]" if self.record else self.file
        return f"{where}: {self.field}: found {self.found}; expected {self.expected}; {self.action}"


class MediaError(DataError):
    """A broken or missing media or data file; ``problem`` is its record."""

    def __init__(self, problem: Problem):
        super().__init__(str(problem))
        self.problem = problem

    def __reduce__(self):  # travels from worker processes
        return (MediaError, (self.problem,))


def broken(file: Path | str, field: str, found: str, expected: str, action: str, record: str = "") -> MediaError:
    """The error to raise for a file: names path, field, found, expected and what to do, in one line."""
    return MediaError(Problem(str(file), record, field, " ".join(str(found).split()), expected, action))


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Replace ``path`` by one JSON line per problem, atomically and without repetitions."""
    lines = dict.fromkeys(json.dumps(asdict(problem), ensure_ascii=False) for problem in problems)
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    staged.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(staged, path)


def read_problems(path: Path) -> list[Problem]:
    """Problems of a ``quarantine.jsonl``; an absent file holds none. DataError names a line that is not a problem."""
    if not path.exists():
        return []
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            problems.append(Problem(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise broken(
                path, "record", str(error), "one problem as a JSON object", "run data verify again", f"line {number}"
            ) from None
    return problems
