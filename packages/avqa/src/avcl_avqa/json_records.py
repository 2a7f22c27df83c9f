"""A JSON list of objects, read entry by entry: what is wrong with one is recorded under its 0-based position and its id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from avcl_core.data.problems import Problem, broken
from avcl_core.data.records import AnnotationFile


def read_json(file: AnnotationFile, what: str) -> Any:
    """Return the JSON value of a file.

    Raises:
        DataError: the file is missing, empty, not UTF-8 or not JSON.
    """
    text = "\n".join(line for _, line in file.lines())
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        record, action = f"line {error.lineno}", "put the published file there"
        raise broken(file.path, "content", error.msg, what, action, record) from None


def read_entries(file: AnnotationFile, what: str, id_field: str) -> list[Entry]:
    """Return the objects of a JSON list; an entry that is no object is recorded in ``file.problems`` and left out.

    Raises:
        DataError: as :func:`read_json`, or the value is no list or an empty one.
    """
    expected = f"a JSON list of {what}"
    values = read_json(file, expected)
    if not isinstance(values, list) or not values:
        found = "an empty list" if isinstance(values, list) else kind(values)
        raise broken(file.path, "content", found, expected, "put the published file there")
    entries = []
    for position, value in enumerate(values):
        entry = Entry(file, position, value if isinstance(value, dict) else {}, id_field)
        if isinstance(value, dict):
            entries.append(entry)
        else:
            entry.wrong("record", kind(value), "a JSON object")
    return entries


def kind(value: Any) -> str:
    """Return the name of a JSON value's kind, as messages say it."""
    return f"a JSON {type(value).__name__}"


def shown(value: Any) -> str:
    """Return a value as messages show it."""
    return "nothing" if value is None else repr(value)


@dataclass(frozen=True)
class Entry:
    """One object of a list."""

    file: AnnotationFile
    position: int
    value: Mapping[str, Any]
    id_field: str

    @property
    def record(self) -> str:
        """Position and id, as messages name the entry."""
        id = self.value.get(self.id_field)
        return f"position {self.position}" if id is None else f"position {self.position}, {self.id_field} {id}"

    def wrong(self, field: str, found: str, expected: str, action: str = "correct the record") -> None:
        """Record a finding in ``field``."""
        self.file.problems.append(Problem(str(self.file.path), self.record, field, found, expected, action))

    def text(self, field: str) -> str | None:
        """Return a text that is not blank, as written, or record what is wrong."""
        value = self.value.get(field)
        if isinstance(value, str) and value.strip():
            return value
        self.wrong(field, shown(value), "a text")
        return None

    def integer(self, field: str) -> int | None:
        """Return an integer, or record what is wrong."""
        value = self.value.get(field)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        self.wrong(field, shown(value), "an integer")
        return None

    def texts(self, field: str) -> tuple[str, ...] | None:
        """Return a list of texts, or record what is wrong."""
        value = self.value.get(field)
        if isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value):
            return tuple(value)
        self.wrong(field, shown(value), "a JSON list of texts")
        return None

    def written_texts(self, field: str) -> tuple[str, ...] | None:
        """Return a list of texts that is itself written as a text (MUSIC-AVQA's habit), or record what is wrong."""
        raw = self.value.get(field)
        try:
            value = json.loads(raw) if isinstance(raw, str) else None
        except json.JSONDecodeError:
            value = None
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        self.wrong(field, shown(raw), "a JSON list of texts, written as a text")
        return None
