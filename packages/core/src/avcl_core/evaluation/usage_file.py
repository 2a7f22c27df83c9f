"""``expert_usage.json``: row → test set → how experts were used; one object that is replaced at each evaluation."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from avcl_core.errors import IntegrityError

Entries = dict[str, dict[str, dict[str, Any]]]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=True)


class Told(_Record):
    """Statistics of one site, or of all sites of a tower; other numbers that sites tell are in ``model_extra``.

    Attributes:
        rows: rows of the walk that they are over.
        gates: mean weight per expert.
        first: how often each expert had the largest weight; equal ones share a row.
        entropy: of the weights, mean over rows, in nats; ``evenness`` is its share of log E.
        experts: their names, where a tower's total has them.
        constants: what does not depend on samples, of a site.
    """

    rows: int
    gates: list[float] = []
    first: list[float] = []
    entropy: float | None = None
    evenness: float | None = None
    experts: list[str] = []
    constants: dict[str, list[Any]] = {}

    def number(self, name: str) -> float | None:
        """Return the mean of ``name``; ``None`` where it was not told."""
        value = getattr(self, name, None)
        return None if value is None else float(value)


class Agreement(_Record):
    """How often two towers choose the same expert at a place, and how often they would by chance."""

    place: str
    towers: list[str]
    agreement: float
    chance: float


class GroupUsage(_Record):
    """Tower → statistics over the samples of a group."""

    samples: int
    total: dict[str, Told]


class Part(_Record):
    """Some samples of a test set and the primary metric over them; ``None`` where it is undefined or was not told."""

    samples: int
    score: float | None = None


class Gaps(_Record):
    """Histogram of the best score minus the second best, of right and of wrong choices."""

    edges: list[float]
    right: list[int]
    wrong: list[int]

    @model_validator(mode="after")
    def _fits(self) -> Gaps:
        if not len(self.edges) - 1 == len(self.right) == len(self.wrong):
            raise ValueError(
                f"{len(self.edges)} edges, {len(self.right)} and {len(self.wrong)} counts; expected one edge more than counts"
            )
        return self


class RoutingTable(_Record):
    """Where the samples of a test set were sent.

    Attributes:
        own: the expert of their experience.
        experts: expert → what was sent to it.
        right, wrong: what was sent to ``own``, and everything else.
        gap: how close the choices were, where there was a choice.
    """

    own: str
    experts: dict[str, Part]
    right: Part
    wrong: Part
    gap: Gaps | None = None


class TestUsage(_Record):
    """One entry of the file; ``routing`` is there where samples were sent to experts by scores."""

    __test__ = False

    samples: int
    sites: dict[str, Told]
    agreement: list[Agreement]
    total: dict[str, Told]
    groups: dict[str, GroupUsage]
    routing: RoutingTable | None = None


def usage_file(folder: Path) -> Path:
    """Return where the statistics stand in a run folder, or in a folder of its evaluations."""
    return folder / "results" / "expert_usage.json"


def add_usage(path: Path, row: str, test: str, usage: Mapping[str, Any]) -> None:
    """Put one entry into the file, in place of one for the same row and test set.

    Raises:
        IntegrityError: the file is damaged.
    """
    entries = _read(path)
    entries.setdefault(row, {})[test] = dict(usage)
    _write(path, entries)


def prune_usage(path: Path, known: Collection[tuple[str, str]]) -> None:
    """Drop the entries whose (row, test set) is not ``known``; without any, there is no file."""
    if not path.is_file():
        return
    entries = {row: {t: u for t, u in tests.items() if (row, t) in known} for row, tests in _read(path).items()}
    entries = {row: tests for row, tests in entries.items() if tests}
    if entries:
        _write(path, entries)
    else:
        path.unlink()


def read_usage(path: Path) -> dict[str, dict[str, TestUsage]]:
    """Return row → test set → statistics; nothing where there is no file.

    Raises:
        IntegrityError: the file is damaged.
    """
    try:
        return TypeAdapter(dict[str, dict[str, TestUsage]]).validate_python(_read(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(path, f"field {where}: found {first['input']!r}; {first['msg']}") from error


def _read(path: Path) -> Entries:
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, f"is not JSON ({error})") from error
    if not isinstance(entries, dict) or not all(isinstance(tests, dict) for tests in entries.values()):
        raise _damaged(path, "expected an object of objects: row, test set")
    return entries


def _write(path: Path, entries: Entries) -> None:
    """One line per site and per group: an indented list of numbers would fill a page each."""
    from avcl_core.training.checkpoint import replace_text  # loads torch, which readers do without

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, _lines(entries, 4) + "\n")


def _lines(value: Any, depth: int, indent: str = "") -> str:
    """Indent the first ``depth`` levels of objects; write what is deeper on one line."""
    if depth == 0 or not isinstance(value, dict) or not value:
        return json.dumps(value)
    inner = indent + " "
    body = ",\n".join(f"{inner}{json.dumps(key)}: {_lines(child, depth - 1, inner)}" for key, child in value.items())
    return f"{{\n{body}\n{indent}}}"


def _damaged(path: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{path}: {what}; delete it and evaluate the run again")
