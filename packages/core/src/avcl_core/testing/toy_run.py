"""A small run of any model and method on toy tasks, through the real trainer, that can be stopped anywhere and resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avcl_core.collective import Collective
from avcl_core.config.options import Options
from avcl_core.errors import Stopped
from avcl_core.methods.base import Method
from avcl_core.models.base import Model
from avcl_core.running.folder import RunFolder
from avcl_core.seeding import seed_step
from avcl_core.stream import Experience, Stream, TaskId, concatenation
from avcl_core.task import Task
from avcl_core.training.inputs import make_inputs
from avcl_core.training.loader import Loader
from avcl_core.training.options import TrainingOptions
from avcl_core.training.position import Position
from avcl_core.training.preemption import Preemption
from avcl_core.training.trainer import Trainer
from shared_backbones.tower import Tower

SHORT = TrainingOptions(epochs=2, batch_size=4, lr=1e-2, evaluation_batch=3)
"""Two epochs with a ragged last batch."""


@dataclass(frozen=True)
class ToyRun:
    """Everything that a run needs except a folder.

    Attributes:
        towers: makes the towers anew; called for every model, since a model may train them.
        model, method: classes, with their options.
        tasks: task name → task.
        task_id: what prediction knows.
        order: experience names in stream order; by default task by task.
    """

    towers: Callable[[], Mapping[str, Tower]]
    model: type[Model]
    method: type[Method]
    tasks: Mapping[str, Task]
    task_id: TaskId = "given"
    order: tuple[str, ...] = ()
    model_options: Options | None = None
    method_options: Options | None = None
    training: TrainingOptions = SHORT
    seed: int = 0

    @property
    def stream(self) -> Stream:
        """The experiences of all tasks, in order."""
        found: dict[str, Experience] = {e.name: e for task in self.tasks.values() for e in task.experiences()}
        return concatenation("toy", [found[name] for name in self.order or found], self.task_id)

    def build(self) -> Method:
        """Return the method over a new model, the same for every call."""
        seed_step(self.seed, "model")
        model = self.model(self.towers(), self.tasks, self.model_options or self.model.Config())
        return self.method(model, self.tasks, self.method_options or self.method.Config(), self.seed)

    def loader(self, workers: int = 0) -> Loader:
        """Return a loader of the tasks' samples."""
        rates = {task.audio_rate for task in self.tasks.values()}
        modalities = {name for task in self.tasks.values() for name in task.modalities}
        towers = {name: tower for name, tower in self.towers().items() if name in modalities}
        return Loader(self.tasks, make_inputs(towers, {}, rates.pop(), None), torch.device("cpu"), workers)

    def trainer(
        self,
        folder: Path,
        preemption: Preemption | None = None,
        workers: int = 0,
        collective: Collective | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> Trainer:
        """Return a trainer whose run folder is ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        run = RunFolder(folder)
        return Trainer(
            self.build,
            self.stream,
            self.method.sessions(self.stream),
            self.tasks,
            self.loader(workers),
            self.training,
            self.seed,
            run.store,
            run,
            digests or {},
            preemption or Preemption(),
            collective or Collective(),
            nullcontext,
        )


class Countdown(Preemption):
    """Asks to stop after a number of questions whether to stop, so that every safe point can be hit."""

    def __init__(self, left: float) -> None:
        self.left, self.asked = left, 0
        super().__init__()

    @property
    def requested(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The reason to stop once the countdown is over."""
        self.asked += 1
        return "a countdown" if self.asked > self.left else None

    @requested.setter
    def requested(self, value: str | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        pass


@dataclass(frozen=True)
class Stop:
    """A question whether to stop: where the run stood, and how many were asked there before."""

    at: Position
    number: int

    @property
    def phase(self) -> str:
        """The phase."""
        return self.at.phase

    @property
    def session(self) -> int:
        """The number of the session."""
        return self.at.session


class Asked(Preemption):
    """Notes where it was asked whether to stop, and says yes at one place, if any. ``trainer`` is set before the run."""

    trainer: Trainer

    def __init__(self, stop: Stop | None = None) -> None:
        self.stop, self.places = stop, list[Stop]()
        super().__init__()

    @property
    def requested(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The reason to stop once the place is reached; then for good."""
        if not (self.places and self.places[-1] == self.stop):
            last, at = self.places[-1] if self.places else None, self.trainer.at
            self.places.append(Stop(at, last.number + 1 if last and last.at == at else 0))
        return "a test" if self.places[-1] == self.stop else None

    @requested.setter
    def requested(self, value: str | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        pass


def run_straight(toy: ToyRun, folder: Path, workers: int = 0) -> tuple[Trainer, list[Stop]]:
    """Run to the end; also return, for every question whether to stop, where it was asked."""
    asked = Asked()
    trainer = asked.trainer = toy.trainer(folder, asked, workers)
    trainer.run()
    return trainer, asked.places


def run_interrupted(toy: ToyRun, folder: Path, *stops: Stop, workers: int = 0) -> Trainer:
    """Stop one run at each of ``stops``, in order, go on each time in a trainer that knows only the folder, and finish.

    Args:
        stops: places that ``run_straight`` returned, at different positions: a hook or a test that was stopped begins
            again, so a second stop within it would not be the same.
        workers: of the loaders after the first stop.

    Raises:
        AssertionError: the run ended without being asked at one of the places.
    """
    for number, stop in enumerate(stops):
        try:
            _trainer(toy, folder, stop, workers, number > 0).run()
        except Stopped:
            continue
        raise AssertionError(f"the run was never asked whether to stop at {stop}")
    trainer = _trainer(toy, folder, None, workers, bool(stops))
    trainer.run()
    return trainer


def _trainer(toy: ToyRun, folder: Path, stop: Stop | None, workers: int, resumes: bool) -> Trainer:
    """Return a trainer that stops at ``stop``; if it resumes, as a new process would, with another generator state."""
    asked = Asked(stop)
    trainer = asked.trainer = toy.trainer(folder, asked, workers if resumes else 0)
    if resumes:
        torch.manual_seed(12345)
        trainer.resume()
    return trainer


def differences(one: Trainer, other: Trainer, folder_one: Path, folder_other: Path) -> list[str]:
    """Return what differs bit for bit between two finished runs: tensors, states, results and records."""
    found = []
    first, second = one.store.load(), other.store.load()
    for name in ("trained", "method", "optimizer"):
        found += [f"{name}: {path}" for path in _unequal(getattr(first, name), getattr(second, name), "")]
    if first.state["position"] != second.state["position"] or first.state["matrix"] != second.state["matrix"]:
        found.append("state: position or result matrix")
    found += [
        log
        for log in ("metrics.jsonl", "results.jsonl", "ownership.json", "results/expert_usage.json")
        if _content(folder_one / log) != _content(folder_other / log)
    ]
    one_files, other_files = (sorted((f / "predictions").rglob("*.gz")) for f in (folder_one, folder_other))
    if [p.read_bytes() for p in one_files] != [p.read_bytes() for p in other_files]:
        found.append("predictions")
    return found


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _unequal(one: Any, other: Any, path: str) -> list[str]:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        lacking = [f"{path}.{key}" for key in one.keys() ^ other.keys()]
        return lacking + [
            x for key in one.keys() & other.keys() for x in _unequal(one[key], other[key], f"{path}.{key}")
        ]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [x for i, pair in enumerate(zip(one, other, strict=True)) for x in _unequal(*pair, f"{path}[{i}]")]
    return [] if one == other else [path]
