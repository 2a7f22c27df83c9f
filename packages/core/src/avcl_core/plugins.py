"""Tasks, models and methods register through entry points; a broken plug-in is listed with its error and fails when selected."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avcl_core.config.options import Options
from avcl_core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

    from avcl_core.data.layout import Layout
    from avcl_core.data.pool import Progress
    from avcl_core.data.prepared import Prepared
    from avcl_core.evaluation.evaluator import Evaluation
    from avcl_core.importing.published import Published
    from avcl_core.task import Task
    from avcl_core.world.bank import SourceBank
    from avcl_core.world.writer import WorldSize

GROUPS = {"task": "avcl.tasks", "model": "avcl.models", "method": "avcl.methods"}


def late(target: str) -> Callable[..., Any]:
    """Return a function that imports ``module:name`` at its first call, so that listing plug-ins imports nothing heavy."""

    def call(*arguments: Any, **named: Any) -> Any:
        module, _, name = target.partition(":")
        return getattr(importlib.import_module(module), name)(*arguments, **named)

    return call


@dataclass(frozen=True)
class TaskPackage:
    """What a task package registers: everything the rest of AVCL needs to use the task, data formats included.

    Attributes:
        name: task name in configurations (``ave``).
        title: one line for listings and reports.
        options: pydantic model of ``tasks.<name>`` in a configuration.
        build: ``(options, prepared, protocol) -> Task``.
        layout: ``(folder, **source options)``: reads the published on-disk layout; its ``problems`` name every malformed record.
        compose: writes a generated world in the published layout: ``(bank, size, seed, out, workers, progress)``.
        world_size: number of clips per split of the embedded world.
        data: name of the data set, where two tasks share one; by default the task's name.
        world_options: options that a generated world needs, because it does not hold what another value asks for.
        exports: what ``<task> test NAME=true`` writes beside the predictions: ``(folder, task, evaluation)``.
        source: options of reading the published layout (``avcl data prepare TASK SOURCE key=value``).
        published: kinds of checkpoints of the papers' code that can be imported, by the name that ``--task`` takes.
    """

    name: str
    title: str
    options: type[BaseModel]
    build: Callable[[Any, Prepared, str], Task]
    layout: Callable[[Path], Layout]
    compose: Callable[[SourceBank, WorldSize, int, Path, int, Progress | None], None]
    world_size: WorldSize
    data: str = ""
    source: type[BaseModel] = Options
    world_options: Mapping[str, Any] = field(default_factory=dict)
    exports: Mapping[str, Callable[[Path, Task, Evaluation], None]] = field(default_factory=dict)
    published: Mapping[str, Callable[[], Published]] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """Name of the data set that the task reads: the folder of its prepared form."""
        return self.data or self.name


@dataclass(frozen=True)
class Listed:
    """One registered plug-in: its name, where it comes from, and its error if it cannot be loaded."""

    kind: str
    name: str
    distribution: str
    summary: str
    error: str | None


def _points(kind: str) -> dict[str, list[Any]]:
    """Name → entry points that claim it; more than one is an error as soon as the name is used."""
    found: dict[str, list[Any]] = {}
    for point in entry_points(group=GROUPS[kind]):
        same = found.setdefault(point.name, [])
        if all(point.value != other.value for other in same):
            same.append(point)
    return found


def names(kind: str) -> list[str]:
    """Return the registered names of a kind (``task``, ``model``, ``method``), sorted, without importing any."""
    return sorted(_points(kind))


@functools.cache
def load(kind: str, name: str) -> Any:
    """Import and return the plug-in ``name``.

    Raises:
        ConfigError: the name is unknown (with the nearest one), or the plug-in fails to import (with its error).
    """
    points = _points(kind)
    if name not in points:
        raise ConfigError(f"{kind} {name!r} is not installed{nearest(name, list(points))}")
    point, *others = points[name]
    if others:
        claims = ", ".join(f"{p.value} ({p.dist.name if p.dist else '?'})" for p in points[name])
        raise ConfigError(f"{kind} {name!r} is claimed more than once: {claims}; uninstall all but one")
    try:
        return point.load()
    except Exception as error:
        raise ConfigError(
            f"{kind} {name!r} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def listing(kind: str) -> list[Listed]:
    """Load every plug-in of a kind and report each with its summary, or with its error."""
    rows = []
    for name, points in sorted(_points(kind).items()):
        distribution = ", ".join(point.dist.name if point.dist else "?" for point in points)
        try:
            plugin = load(kind, name)
        except ConfigError as error:
            rows.append(Listed(kind, name, distribution, "", str(error)))
            continue
        summary = getattr(plugin, "title", None) or (plugin.__doc__ or "").strip().split("\n")[0]
        rows.append(Listed(kind, name, distribution, summary, None))
    return rows
