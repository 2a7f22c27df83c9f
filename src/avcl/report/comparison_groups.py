"""Which runs of a comparison are one problem, and which of them are one row: all that differ in their seed alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from avcl_core.errors import ConfigError
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.summary import Summary, summarise
from avcl_core.plugins import load

NO_MATTER = ("label", "references", "runs", "workers", "training.checkpoint_every")
"""Keys that results do not depend on; seeds do not count either: they are what a row averages over."""


@dataclass(frozen=True)
class Member:
    """One run of a comparison; ``tasks``: task → its options, defaults included; ``config``: dotted key → value."""

    folder: Path
    summary: Summary
    label: str
    tasks: dict[str, dict[str, Any]]
    config: dict[str, Any]


@dataclass(frozen=True, order=True)
class Key:
    """What the runs of one row share. ``differing``: the options in which rows of one method, model and label differ."""

    method: str
    model: str
    label: str
    differing: str = ""

    @property
    def variant(self) -> str:
        """Label and differing options."""
        return ", ".join(part for part in (self.label, self.differing) if part)

    @property
    def name(self) -> str:
        """What messages call the row."""
        return " · ".join(part for part in (self.method, self.model, self.variant) if part)


def member(folder: Path) -> Member:
    """Read a run for a comparison."""
    record = RunRecord.load(folder)
    config = yaml.safe_load(record.config) or {}
    given = config.get("tasks") or {}
    tasks = {task: _options(task, given.get(task) or {}) for task in record.stream.tasks}
    return Member(folder, summarise(record), record.label or "", tasks, _flatten(config))


def problem_names(runs: Iterable[Member]) -> dict[str, list[Member]]:
    """Return the runs by problem: the stream, with the setting of its tasks where one stream name stands for several."""
    streams: dict[str, dict[tuple[tuple[str, str], ...], list[Member]]] = {}
    for run in runs:
        settings = tuple((task, str(given["setting"])) for task, given in run.tasks.items() if "setting" in given)
        streams.setdefault(run.summary.stream, {}).setdefault(settings, []).append(run)
    found = {}
    for stream, problems in streams.items():
        for settings, members in problems.items():
            others = [set(other) for other in problems if other != settings]
            own = [f"{task} {name}" for task, name in settings if any((task, name) not in other for other in others)]
            found[f"{stream} ({', '.join(own)})" if own else stream] = members
    return found


def members_of(runs: Sequence[Member]) -> dict[Key, list[Member]]:
    """Return the rows of one problem: runs of one method, model, label and task configuration.

    Where a seed is there twice in a row, its runs are told apart by their whole configuration.
    """
    rows: dict[Key, list[Member]] = {}
    for run in sorted(runs, key=lambda run: (_key(run), run.summary.seed, run.folder.name)):
        rows.setdefault(_key(run), []).append(run)
    found: dict[Key, list[Member]] = {}
    for key, members in rows.items():
        parts: list[list[Member]] = []
        for part in _partition(members, lambda run: run.tasks):
            seeds = [run.summary.seed for run in part]
            parts += [part] if len(set(seeds)) == len(seeds) else _partition(part, lambda run: _matters(run.config))
        names = differing([part[0].config for part in parts])
        for part in parts:
            values = ", ".join(f"{name}={part[0].config.get(name, 'default')}" for name in names)
            found.setdefault(Key(key.method, key.model, key.label, values), []).extend(part)
    return found


def titles_of(keys: Sequence[Key]) -> dict[Key, str]:
    """Return a short title for every row, all different."""
    if all(key.label for key in keys) and len({key.variant for key in keys}) == len(keys):
        return {key: key.variant for key in keys}
    several = len({key.model for key in keys}) > 1
    return {
        key: " · ".join(part for part in (key.method, key.model if several else "", key.variant) if part)
        for key in keys
    }


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the dotted keys in which configurations differ, of those that results depend on."""
    kept = [_matters(config) for config in configs]
    names = dict.fromkeys(name for config in kept for name in config)
    return [name for name in names if len({repr(config.get(name)) for config in kept}) > 1]


def _key(run: Member) -> Key:
    return Key(run.summary.method, run.summary.model, run.label)


def _partition(runs: Sequence[Member], by: Any) -> list[list[Member]]:
    parts: dict[str, list[Member]] = {}
    for run in runs:
        parts.setdefault(json.dumps(by(run), sort_keys=True, default=str), []).append(run)
    return [parts[name] for name in sorted(parts)]


def _matters(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in NO_MATTER and name.split(".")[-1] != "seed"}


def _options(task: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of a task with their defaults; as they were given where this installation knows another form of them."""
    try:
        return load("task", task).options.model_validate(given).model_dump(mode="json")
    except (ConfigError, ValidationError):
        return given


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    entries: dict[str, Any] = {}
    for key, inner in value.items():
        entries.update(_flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return entries
