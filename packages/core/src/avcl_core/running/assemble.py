"""Builds everything that a configuration names: towers, data, tasks, stream, loader, and the trainer that joins them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

import shared_backbones
from avcl_core import plugins
from avcl_core.collective import Collective
from avcl_core.config.run import Parts, RunOptions, TowerOptions
from avcl_core.data.pool import one_pool
from avcl_core.data.prepared import Prepared
from avcl_core.errors import ConfigError, DataError, IntegrityError
from avcl_core.methods.base import Method
from avcl_core.running.folder import RunFolder
from avcl_core.running.initial import HeadStart
from avcl_core.running.lock import in_turn
from avcl_core.running.provide import WORKERS, Bar, provide, silent
from avcl_core.running.size import Size, measure, shapes_only
from avcl_core.seeding import seed_step
from avcl_core.stream import Experience, Session, Stream, concatenation
from avcl_core.task import Task
from avcl_core.training.inputs import Input, Tile, make_inputs
from avcl_core.training.loader import Loader
from avcl_core.training.preemption import Preemption
from avcl_core.training.splits import selection_notes
from avcl_core.training.trainer import Trainer
from shared_backbones.errors import WeightsError
from shared_backbones.registry import overrides_of
from shared_backbones.tower import Tower
from shared_backbones.vocabulary import STAND_IN

FRAME_SIZE = 224
"""Edge of prepared frames where no visual tower asks for another."""


@dataclass(frozen=True)
class Assembly:
    """Everything of a run but its folder.

    Attributes:
        outline: makes the same method with shapes and no values; call it where the default device is meta.
        skipped: samples left out by ``on_bad_sample: skip``: task, split, key, reason.
        remarks: what the model has to say of how it will be trained.
        digests: what the run depends on, name → SHA-256.
    """

    options: RunOptions
    towers: Mapping[str, Tower]
    tasks: Mapping[str, Task]
    stream: Stream
    sessions: tuple[Session, ...]
    loader: Loader
    build: Callable[[], Method]
    outline: Callable[[], Method]
    digests: Mapping[str, str]
    skipped: tuple[Mapping[str, str], ...]
    remarks: tuple[str, ...]
    fabric: Fabric

    def trainer(
        self,
        folder: RunFolder,
        preemption: Preemption,
        collective: Collective,
        progress: Callable[[str, float], None] = lambda line, fraction: None,
    ) -> Trainer:
        """Return the trainer of this assembly, recording in ``folder``."""
        return Trainer(
            self.build,
            self.stream,
            self.sessions,
            self.tasks,
            self.loader,
            self.options.training,
            self.options.seed,
            folder.store,
            folder,
            self.digests,
            preemption,
            collective,
            self.fabric.autocast,
            progress,
            HeadStart(self.options.init, self.stream),
        )


def make_towers(options: RunOptions) -> dict[str, Tower]:
    """Create the configured towers; weights that do not fit are an integrity error that names them."""
    towers = {}
    for modality, tower in options.towers.items():
        try:
            given = tower_overrides(tower, stand_in=tower.random)
            made = shared_backbones.create(tower.name, size=tower.size, checkpoint=tower.checkpoint, **given)
        except WeightsError as error:
            raise IntegrityError(f"towers.{modality}: {error}") from error
        except ValueError as error:
            raise ConfigError(f"towers.{modality}: {error}") from error
        if made.info.modality != modality:
            raise ConfigError(f"towers.{modality}.name: {tower.name} reads {made.info.modality} input")
        towers[modality] = made
    return towers


def tower_overrides(tower: TowerOptions, stand_in: bool) -> dict[str, Any]:
    """Return the overrides that a tower is created with; ``stand_in``: a text side without its vocabulary gets one without words."""
    given: dict[str, Any] = {"variant": tower.variant, "tokenizer": tower.tokenizer}
    if stand_in and tower.size == "full" and "tokenizer" in overrides_of(tower.name):
        given["tokenizer"] = STAND_IN
    return {name: value for name, value in given.items() if value is not None}


def assemble(
    options: RunOptions,
    parts: Parts,
    fabric: Fabric,
    collective: Collective,
    bar: Bar = silent,
    check: Callable[[], None] = lambda: None,
) -> Assembly:
    """Build a run's parts; rank 0 makes data that are missing while the others wait.

    Args:
        check: called while data are made; may raise to stop.
    """
    towers = make_towers(options)
    prepared = _data(options, towers, collective, _checked(bar, check), check)
    tasks: dict[str, Task] = {
        name: plugins.load("task", name).build(parts.tasks[name], prepared[name], options.stream.protocol)
        for name in options.stream.tasks
    }
    experiences, skipped = _readable(
        [experience for name in options.stream.tasks for experience in tasks[name].experiences()], tasks, options
    )
    stream = concatenation(options.stream.title, experiences, options.stream.task_id, options.stream.protocol)
    inputs = inputs_of(options, towers, tasks, options.data.root / "cache")
    shuffled = options.seed if options.stream.shuffle_labels else None
    loader = Loader(tasks, inputs, fabric.device, options.workers, shuffled, options.modalities)
    model_class = plugins.load("model", options.model["name"])
    method_class = plugins.load("method", options.method["name"])
    model_class.needs(parts.model).check(options.model["name"], towers, tasks, stream)

    def build() -> Method:
        seed_step(options.seed, "model")
        # A model may train its towers; a fresh one has to start from the weights as they were loaded.
        model = model_class(copy.deepcopy(towers), tasks, parts.model).to(fabric.device)
        return method_class(model, tasks, parts.method, options.seed)

    def outline() -> Method:
        model = model_class(shapes_only(towers), tasks, parts.model)
        return method_class(model, tasks, parts.method, options.seed)

    digests = {
        "configuration": options.digest,
        "stream": stream.digest,
        **{f"data of {name}": data.digest for name, data in prepared.items()},
        **{f"weights of the {name} tower": tower.weights_digest() for name, tower in towers.items()},
    }
    sessions = method_class.sessions(stream)
    sizes = {name: options.training.of({name}).batch_size for name in tasks}
    remarks = model_class.remarks(parts.model, tasks, sizes)
    return Assembly(
        options, towers, tasks, stream, sessions, loader, build, outline, digests, tuple(skipped), remarks, fabric
    )


def inputs_of(
    options: RunOptions, towers: Mapping[str, Tower], tasks: Mapping[str, Task], cache: Path | None
) -> dict[str, Input]:
    """Return tower name → input transformation of a run; ConfigError where tasks deliver audio at different rates."""
    rates = {task.audio_rate for task in tasks.values() if "audio" in task.modalities}
    if len(rates) > 1:
        raise ConfigError(f"stream.tasks: {list(tasks)} deliver audio at different rates {sorted(rates)}")
    tiles: dict[str, Tile] = {name: tower.tile for name, tower in options.towers.items()}
    answers = {name: tower.answer for name, tower in options.towers.items()}
    return make_inputs(towers, tiles, rates.pop() if rates else 0, cache, answers)


def _checked(bar: Bar, check: Callable[[], None]) -> Bar:
    """Call ``check`` at every progress of data work, so that a stop request ends it; what is done is kept."""

    @contextmanager
    def checked(title: str) -> Iterator[Callable[[int, int], None]]:
        with bar(title) as shown:

            def progress(done: int, total: int) -> None:
                check()
                if shown is not None:
                    shown(done, total)

            yield progress

    return checked


def _data(
    options: RunOptions, towers: Mapping[str, Tower], collective: Collective, bar: Bar, check: Callable[[], None]
) -> dict[str, Prepared]:
    size = towers["visual"].info.image_size if "visual" in towers else None
    found = {}
    for rank_first in (True, False):
        if (collective.rank == 0) == rank_first:
            with in_turn(options.data.root, check), one_pool(WORKERS):
                for name in options.stream.tasks:
                    found[name] = provide(plugins.load("task", name), options.data, size or FRAME_SIZE, bar=bar)
        collective.barrier()
    return found


def _readable(
    experiences: list[Experience], tasks: Mapping[str, Task], options: RunOptions
) -> tuple[list[Experience], list[dict[str, str]]]:
    """Apply ``on_bad_sample``: the first unreadable sample is an error, or all are left out within the budget."""
    kept, skipped = [], []
    for experience in experiences:
        splits = {}
        for split in ("train", "val", "test"):
            keys, bad = experience.keys(split), {}
            dataset = tasks[experience.task].dataset(split)
            for key in keys:
                try:
                    dataset.digest(key)
                except DataError as error:
                    if options.data.on_bad_sample == "fail":
                        raise
                    bad[key] = str(error)
            if len(bad) > options.data.skip_budget * len(keys):
                raise DataError(
                    f"{experience.task}, split {split}: {len(bad)} of {len(keys)} samples are unreadable, more than "
                    f"data.skip_budget {options.data.skip_budget:g}; first: {next(iter(bad.values()))}"
                )
            splits[split] = tuple(key for key in keys if key not in bad)
            skipped += [{"task": experience.task, "split": split, "key": k, "reason": r} for k, r in bad.items()]
        kept.append(replace(experience, **splits))
    return kept, skipped


def describe(assembly: Assembly) -> list[tuple[str, str]]:
    """Return what a run prints before it starts: (name, value) rows."""
    stream = assembly.stream
    rows = [
        ("stream", f"{stream.name} ({stream.protocol} protocol, task id {stream.task_id})"),
        ("model", assembly.options.model["name"]),
        ("method", assembly.options.method["name"]),
        ("seed", str(assembly.options.seed)),
        ("configuration", assembly.options.digest[:12]),
    ]
    for experience in stream.experiences:
        sizes = " / ".join(str(len(experience.keys(split))) for split in ("train", "val", "test"))
        rows.append((experience.name, f"{sizes} samples (train / val / test)"))
    if set(assembly.towers) - set(assembly.options.modalities):
        rows.append(("modalities", ", ".join(assembly.options.modalities) or "none"))
    rows += [("head starts from", f"{task}: {path}") for task, path in assembly.options.init.items()]
    rows += size_of(assembly).rows()
    rows += [("skipped", f"{entry['task']} {entry['split']} {entry['key']}") for entry in assembly.skipped]
    rows += [("warning", remark) for remark in assembly.remarks]
    return rows


def size_of(assembly: Assembly) -> Size:
    """Return parameters, FLOPs and memory of what an assembly will train."""
    return measure(assembly.outline, assembly.stream.experiences, assembly.loader, assembly.options.seed)


def notes(assembly: Assembly) -> list[str]:
    """Return the lines that reports print beside the scores."""
    kept = selection_notes(assembly.sessions, assembly.tasks, assembly.options.training)
    told = {name: "; ".join(filter(None, (task.splits_note, kept.get(name)))) for name, task in assembly.tasks.items()}
    return [*(f"{name}: {text}" for name, text in told.items() if text), *assembly.remarks]
