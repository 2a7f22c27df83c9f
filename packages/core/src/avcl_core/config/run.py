"""The configuration of a run: stream, data, towers, model, method, training and where it runs."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from avcl_core.config.load import Source, validate
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError
from avcl_core.plugins import load as load_plugin
from avcl_core.training.options import TrainingOptions


class StreamOptions(Options):
    """What is learnt in which order.

    Attributes:
        name: name of the stream; by default the tasks joined by ``-``.
        tasks: task names in order.
        task_id: whether prediction knows the experience.
        protocol: ``clean`` or the published evaluation.
        shuffle_labels: train on targets dealt out to other samples: a control that must stay at chance.
    """

    name: str = ""
    tasks: tuple[str, ...] = Field(min_length=1)
    task_id: Literal["given", "hidden"] = "given"
    protocol: Literal["clean", "paper"] = "clean"
    shuffle_labels: bool = False

    @property
    def title(self) -> str:
        """The name, or the tasks joined."""
        return self.name or "-".join(self.tasks)


class WorldOptions(Options):
    """A generated world, composed when the data root does not have it yet.

    Attributes:
        bank: ``procedural`` needs no files; ``digits`` takes MNIST ``images`` and spoken-digit ``sounds``; ``folder`` takes
            a ``folder`` with ``images/<class>/`` and ``sounds/<class>/``.
        scale: factor on the number of clips of every task.
    """

    bank: Literal["procedural", "digits", "folder"] = "procedural"
    images: Path | None = None
    sounds: Path | None = None
    folder: Path | None = None
    seed: NonNegativeInt = 0
    scale: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _sources(self) -> WorldOptions:
        needs = {"procedural": (), "digits": ("images", "sounds"), "folder": ("folder",)}[self.bank]
        for name in ("images", "sounds", "folder"):
            given = getattr(self, name) is not None
            if given != (name in needs):
                raise ValueError(f"bank {self.bank} {'takes no' if given else 'needs'} {name}")
        return self


class DataOptions(Options):
    """Where prepared data are: ``<root>/prepared/<task>-<size>``.

    Attributes:
        root: folder of the data.
        world: the generated world to compose there when it is missing; ``null`` for data that you prepared yourself.
        on_bad_sample: ``fail`` at the first quarantined sample of a split, or ``skip`` them within ``skip_budget``.
        skip_budget: largest fraction of a split that may be skipped.
    """

    root: Path = Path("data/procedural")
    world: WorldOptions | None = WorldOptions()
    on_bad_sample: Literal["fail", "skip"] = "fail"
    skip_budget: NonNegativeFloat = 0.001


class TowerOptions(Options):
    """A frozen tower.

    Attributes:
        name: tower name (``avcl list towers``).
        size: ``full`` or ``tiny``.
        variant: a published size; ``null`` for the first.
        checkpoint: converted weights, or a file in the authors' layout. The tiny size has its own.
        tokenizer: vocabulary of the text side, full size only: ``bpe_simple_vocab_16e6.txt.gz`` for CLIP, a folder with
            vocab.json and merges.txt for CLAP. With random weights a stand-in takes its place.
        random: full size with random weights, to measure speed and memory.
        tile: audio only: how often each second is repeated before the front end; ``clip``: as often as a clip has seconds; ``whole``:
            not second by second, but a clip's sound in one piece, or in the fewest equal ones that the tower takes.
        answer: language only: words of an answer that is learnt, its end among them; a longer one is an error.
    """

    name: str
    size: Literal["full", "tiny"] = "tiny"
    variant: str | None = None
    checkpoint: Path | None = None
    tokenizer: Path | None = None
    random: bool = False
    tile: PositiveInt | Literal["clip", "whole"] = 1
    answer: PositiveInt = 32

    @model_validator(mode="after")
    def _weights(self) -> TowerOptions:
        if self.size == "full" and (self.checkpoint is None) != self.random:
            raise ValueError(
                "size full needs either checkpoint: FILE (avcl weights list), or random: true to measure speed"
            )
        if self.size == "tiny" and self.random:
            raise ValueError("random: true is for size full; the tiny size has pretrained weights")
        if self.tokenizer is not None and (self.size == "tiny" or self.random):
            raise ValueError("tokenizer belongs to pretrained weights of size full; leave it out")
        return self


_TOWERS: dict[Literal["visual", "audio", "language"], TowerOptions] = {
    "visual": TowerOptions(name="swin_v2"),
    "audio": TowerOptions(name="htsat"),
}


Modality = Literal["visual", "audio"]

Reference = Literal["single", "joint"]


class FabricOptions(Options):
    """Where the run computes, as Lightning Fabric takes it."""

    accelerator: Literal["auto", "cpu", "cuda", "gpu"] = "auto"
    devices: PositiveInt = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"


class RunOptions(Options):
    """Everything that a run depends on.

    Attributes:
        tasks: task name → options of its package.
        towers: modality → tower.
        model, method: ``name`` of the plug-in, and its own options.
        modalities: what the run sees; in place of another one the model puts its stand-in (silence, the mean image). A control.
        init: task → another run (or one of its checkpoints) whose head its head starts from.
        references: methods by which ``avcl run`` also trains the same configuration, to judge the run by them: ``single``, a model per
            experience, and ``joint``, one session over all; the run itself does not depend on them.
        label: what a table calls runs of this configuration (a variant of a sweep plan); results do not depend on it.
        seed: coordinate of every draw.
        workers: loader processes; results do not depend on it.
        threads: CPU threads per process; ``null`` for torch's choice. Bits depend on it.
        runs: folder for run folders.
    """

    stream: StreamOptions
    data: DataOptions = DataOptions()
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    towers: dict[Literal["visual", "audio", "language"], TowerOptions] = Field(default_factory=lambda: _TOWERS)
    model: dict[str, Any] = Field(default_factory=lambda: {"name": "residual_adapters"})
    method: dict[str, Any] = Field(default_factory=lambda: {"name": "er"})
    training: TrainingOptions = TrainingOptions()
    fabric: FabricOptions = FabricOptions()
    modalities: tuple[Modality, ...] = ("visual", "audio")
    init: dict[str, Path] = Field(default_factory=dict)
    references: tuple[Reference, ...] = ()
    label: str | None = Field(default=None, min_length=1)
    seed: NonNegativeInt = 0
    workers: NonNegativeInt = 0
    threads: PositiveInt | None = None
    runs: Path = Path("runs")

    @field_validator("modalities", mode="before")
    @classmethod
    def _modalities(cls, value: Any) -> Any:
        return modality_names(value)

    @field_validator("references")
    @classmethod
    def _references(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        own = info.data.get("method", {}).get("name")
        for name in value:
            if value.count(name) > 1:
                raise ValueError(f"{name} is there twice; remove one")
            if name == own:
                raise ValueError(f"{name} is the method of the run itself; leave it out (references=[])")
        return value

    @property
    def digest(self) -> str:
        """SHA-256 of everything that results depend on: not workers, places, label, references or commit intervals.

        Data have digests of their own.
        """
        places: Any = {
            "workers": True,
            "runs": True,
            "label": True,
            "references": True,
            "init": True,
            "data": {"root": True, "world": {"images", "sounds", "folder"}},
            "towers": {name: {"checkpoint", "tokenizer"} for name in self.towers},
        }
        record = self.model_dump(mode="json", exclude=places)
        del record["training"]["checkpoint_every"]
        record["init"] = sorted(self.init)
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def modality_names(value: Any) -> Any:
    """Return a list of modalities from one name or several joined by commas; ``vision`` is another word for ``visual``."""
    names = [name for name in value.split(",") if name] if isinstance(value, str) else value
    return [("visual" if name == "vision" else name) for name in names] if isinstance(names, (list, tuple)) else names


class Parts(Options):
    """The plug-in options of a run, validated by the plug-ins themselves."""

    tasks: dict[str, Any]
    model: Any
    method: Any


def load_run(source: Source) -> tuple[RunOptions, Parts]:
    """Validate a configuration, down to the options of its tasks, model and method.

    Raises:
        ConfigError: with file and line, field and nearest known name.
    """
    options = validate(RunOptions, source)
    tasks = {name: load_plugin("task", name) for name in options.stream.tasks}
    for name in sorted(options.tasks.keys() - tasks.keys()):
        # A configuration may have options for more tasks than a stream takes of it; what it says must still be true.
        try:
            package = load_plugin("task", name)
        except ConfigError as error:
            raise ConfigError(f"{source.place(('tasks', name))}: tasks.{name}: {error}") from error
        validate(package.options, source, options.tasks[name], ("tasks", name))
    options = options.model_copy(update={"tasks": {n: o for n, o in options.tasks.items() if n in tasks}})
    for name in options.training.tasks.keys() - tasks.keys():
        place = source.place(("training", "tasks", name))
        try:
            load_plugin("task", name)
        except ConfigError as error:
            raise ConfigError(f"{place}: training.tasks.{name}: {error}") from error
    for pattern in options.training.rates:
        kind, _, name = pattern.partition(":")
        if kind == "head" and not any(fnmatch.fnmatchcase(task, name) for task in tasks):
            place = source.place(("training", "rates", pattern))
            raise ConfigError(f"{place}: training.rates: {pattern!r} is no head of stream.tasks {list(tasks)}")
    unused = sorted(options.init.keys() - tasks.keys())
    if unused:
        raise ConfigError(f"{source.place(('init', unused[0]))}: init.{unused[0]}: not in stream.tasks {list(tasks)}")
    parts = Parts(
        tasks={
            name: validate(package.options, source, options.tasks.get(name, {}), ("tasks", name))
            for name, package in tasks.items()
        },
        model=_plugin_options("model", options.model, source),
        method=_plugin_options("method", options.method, source),
    )
    _fits_stream(options, parts, source)
    return options, parts


def _fits_stream(options: RunOptions, parts: Parts, source: Source) -> None:
    """Raise ConfigError where the method cannot work with the task ids of the stream."""
    name, asked = options.method["name"], options.stream.task_id
    known = load_plugin("method", name).needs(parts.method)
    if asked not in known:
        given = ", ".join(f"method.{key}={value}" for key, value in options.method.items())
        raise ConfigError(
            f"{source.place(('stream', 'task_id'))}: stream.task_id={asked}: {given} must know the task of what it predicts; "
            f"use stream.task_id={' or '.join(known)}, or other options of the method"
        )


def _plugin_options(kind: str, given: dict[str, Any], source: Source) -> Any:
    if not isinstance(given.get("name"), str):
        raise ConfigError(f"{source.place((kind,))}: {kind}.name: is required and was not given")
    try:
        plugin = load_plugin(kind, given["name"])
    except ConfigError as error:
        raise ConfigError(f"{source.place((kind, 'name'))}: {kind}.name: {error}") from error
    return validate(plugin.Config, source, {k: v for k, v in given.items() if k != "name"}, (kind,))


def paths_below(options: RunOptions, folder: Path) -> RunOptions:
    """Return the options with relative data paths taken from ``folder``, the place where the run was started."""

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else folder / path

    world = options.data.world
    if world is not None:
        world = world.model_copy(
            update={name: absolute(getattr(world, name)) for name in ("images", "sounds", "folder")}
        )
    data = options.data.model_copy(update={"root": folder / options.data.root, "world": world})
    files = ("checkpoint", "tokenizer")
    towers = {
        n: t.model_copy(update={name: absolute(getattr(t, name)) for name in files}) for n, t in options.towers.items()
    }
    init = {name: folder / path for name, path in options.init.items()}
    return options.model_copy(update={"data": data, "towers": towers, "init": init})
