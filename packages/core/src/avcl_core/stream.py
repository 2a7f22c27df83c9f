"""A stream is an ordered, immutable, hashable sequence of experiences, with the test sets that judge it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from avcl_core.errors import ConfigError

TaskId = Literal["given", "hidden"]
Protocol = Literal["clean", "paper"]


@dataclass(frozen=True)
class Experience:
    """One step of a stream: which samples of which task are learnt.

    Attributes:
        index: position in the stream, 0-based.
        name: unique name in the stream; also the slot of task-owned modules.
        task: name of the task.
        train, val, test: sample keys per split.
        labels: names of the labels that are valid so far.
        selection: the split on which the best epoch is chosen (``val``; a published protocol may differ).
    """

    index: int
    name: str
    task: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    labels: tuple[str, ...] = ()
    selection: Literal["val", "test"] = "val"

    def keys(self, split: str) -> tuple[str, ...]:
        """Return the sample keys of ``split`` (``train``, ``val`` or ``test``)."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


@dataclass(frozen=True)
class TestSet:
    """One column of the result matrix: named samples of one experience's split. ``__test__`` keeps pytest away."""

    __test__ = False
    name: str
    experience: str
    split: str = "test"


@dataclass(frozen=True)
class Session:
    """One training session: experiences that are learnt together, then the test sets that are evaluated.

    Incremental methods have one session per experience; joint training has a single one; a model per task starts each
    session ``fresh``, with a new model.
    """

    index: int
    experiences: tuple[Experience, ...]
    tests: tuple[TestSet, ...]
    fresh: bool = False

    @property
    def row(self) -> str:
        """Name of the result-matrix row that follows this session: its last experience."""
        return self.experiences[-1].name


@dataclass(frozen=True)
class Stream:
    """The experiences in order, the test sets, and what is known about the task at test time."""

    name: str
    experiences: tuple[Experience, ...]
    tests: tuple[TestSet, ...]
    task_id: TaskId = "given"
    protocol: Protocol = "clean"

    def __post_init__(self) -> None:
        names = [experience.name for experience in self.experiences]
        if not names:
            raise ConfigError(f"stream {self.name}: no experiences; name at least one task")
        for index, experience in enumerate(self.experiences):
            if experience.index != index:
                raise ConfigError(
                    f"stream {self.name}: experience {experience.name} has index {experience.index}, expected {index}"
                )
        for what, name in [("experience", n) for n in names] + [("task", e.task) for e in self.experiences]:
            if "." in name or not name:
                raise ConfigError(
                    f"stream {self.name}: {what} name {name!r} names tensors, so it must be without dots and not empty"
                )
        for what, values in (("experience", names), ("test set", [test.name for test in self.tests])):
            repeated = {value for value in values if values.count(value) > 1}
            if repeated:
                raise ConfigError(
                    f"stream {self.name}: {what} names repeat: {sorted(repeated)}; give each a name of its own"
                )
        unknown = {test.experience for test in self.tests} - set(names)
        if unknown:
            raise ConfigError(f"stream {self.name}: test sets of unknown experiences {sorted(unknown)}")

    def experience(self, name: str) -> Experience:
        """Return the experience called ``name``."""
        return next(e for e in self.experiences if e.name == name)

    def tests_of(self, experiences: Iterable[Experience]) -> tuple[TestSet, ...]:
        """Return the test sets that belong to ``experiences``, in stream order."""
        names = {experience.name for experience in experiences}
        return tuple(test for test in self.tests if test.experience in names)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names in order of first appearance."""
        return tuple(dict.fromkeys(e.task for e in self.experiences))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable record, the content of ``stream.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Stream:
        """Rebuild a stream from ``to_json``'s record."""
        experiences = tuple(_experience(entry) for entry in record["experiences"])
        tests = tuple(TestSet(**entry) for entry in record["tests"])
        return cls(record["name"], experiences, tests, record["task_id"], record["protocol"])

    @property
    def digest(self) -> str:
        """SHA-256 of the whole definition, sample keys included."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _experience(record: Mapping[str, Any]) -> Experience:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    return Experience(**fields)


def concatenation(
    name: str, parts: Iterable[Experience], task_id: TaskId = "given", protocol: Protocol = "clean"
) -> Stream:
    """Concatenate experiences of any tasks into a stream with one test set per experience; indices are assigned here."""
    experiences = tuple(replace(part, index=index) for index, part in enumerate(parts))
    tests = tuple(TestSet(e.name, e.name) for e in experiences)
    return Stream(name, experiences, tests, task_id, protocol)
