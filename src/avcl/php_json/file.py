"""The authors' JSON file: read strictly, its values checked one by one, and a line about what becomes of each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avcl_core.config.load import merge
from avcl_core.errors import ConfigError, nearest

SHOWN = 60
"""Characters of a value that a line shows."""


@dataclass(frozen=True)
class Line:
    """What became of one key: it acts as ``text`` says, or is ignored for the reason ``text``."""

    key: str
    value: str
    text: str
    acts: bool

    def __str__(self) -> str:
        return (
            f"{self.key} {self.value} → {self.text}" if self.acts else f"ignored {self.key} {self.value}: {self.text}"
        )


class File:
    """The keys of a file: read with a check, put in place of ours, and told about."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, values
        self.tree: dict[str, Any] = {}
        self.places: dict[tuple[str, ...], str] = {}
        self.lines: dict[str, Line] = {}
        self.hints: list[str] = []
        self.floor = 0.0

    # ------------------------------------------------------------------ reading
    def shown(self, key: str) -> str:
        text = json.dumps(self.values[key])  # ASCII: nothing in it ends a line
        return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"

    def error(self, key: str, expected: str) -> ConfigError:
        return ConfigError(f"{self.path}: {key}: found {self.shown(key)}, expected {expected}")

    def whole(self, key: str, least: int) -> int:
        value = self.values[key]
        if type(value) is not int or value < least:
            raise self.error(key, f"a whole number from {least}")
        return value

    def number(self, key: str, least: float, what: str) -> float:
        value = self.values[key]
        if type(value) not in (int, float) or not math.isfinite(value) or value < least:
            raise self.error(key, what)
        return float(value)

    def switch(self, key: str, default: bool = True) -> bool:
        value = self.values.get(key, default)
        if value not in (0, 1) or isinstance(value, float):
            raise self.error(key, "0 or 1")
        return bool(value)

    def choice(self, key: str, names: Sequence[str], advice: str = "") -> str:
        value = self.values[key]
        if not isinstance(value, str) or value not in names:
            close = nearest(value, [*names]) if isinstance(value, str) and len(names) > 1 else ""
            raise self.error(key, " or ".join(names) + (advice or close))
        return value

    # ------------------------------------------------------------------ telling
    def put(self, key: str, ours: str, value: Any) -> None:
        """Set ``ours``, a dotted path, and tell so."""
        path = tuple(ours.split("."))
        branch = value
        for part in reversed(path):
            branch = {part: branch}
        self.tree = merge(self.tree, branch)
        self.places[path] = key
        said = f"{ours} {json.dumps(value, ensure_ascii=False)}"
        before = f"{self.lines[key].text}, " if key in self.lines else ""
        self.lines[key] = Line(key, self.shown(key), before + said, acts=True)

    def fits(self, key: str, text: str) -> None:
        """Tell that ours does what the key says, without an option."""
        self.lines[key] = Line(key, self.shown(key), text, acts=True)

    def ignore(self, key: str, reason: str) -> None:
        """Tell why the key has no effect."""
        self.lines[key] = Line(key, self.shown(key), reason, acts=False)


def read_json(path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ConfigError(f"{path}: {key}: key given twice; remove one")
            found[key] = value
        return found

    def refuse(constant: str) -> None:
        raise ConfigError(f"{path}: {constant} is no number of JSON; give a finite one")

    try:
        values = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=once, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a JSON configuration: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; name the authors' JSON file") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found a {type(values).__name__}, expected an object of keys and values")
    return values
