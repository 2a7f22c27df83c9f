"""Looks at a configuration without its files: random weights and a small generated world stand in for what is not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from avcl_core import plugins
from avcl_core.config.load import Source, read, validate
from avcl_core.config.run import RunOptions, load_run
from avcl_core.running.assemble import FRAME_SIZE, inputs_of, tower_overrides
from avcl_core.running.provide import Bar, prepared_folder, provide, silent
from avcl_core.running.size import Size, measure
from avcl_core.stream import concatenation
from avcl_core.task import Task
from avcl_core.training.loader import Loader
from shared_backbones.registry import build

STAND_IN = Path("data/stand-in")
"""Data root of the small world."""
SCALE = 0.05
"""Its size, a fraction of the embedded world's."""


def substitutes(path: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that replace what a configuration names and this machine does not have.

    Weights that are no file become random. Where nothing was prepared below ``data.root``, a small generated world takes its
    place. What ``overrides`` name themselves is left as it is, so a mistyped file stays an error.
    """
    options = validate(RunOptions, read(path, overrides))
    named = {text.partition("=")[0] for text in overrides}
    found = []
    for modality, tower in options.towers.items():
        key = f"towers.{modality}.checkpoint"
        if tower.checkpoint is not None and not tower.checkpoint.is_file() and key not in named:
            found += [f"{key}=null"] + [f"towers.{modality}.random=true"] * (tower.size == "full")
            if tower.tokenizer is not None and f"towers.{modality}.tokenizer" not in named:
                found.append(f"towers.{modality}.tokenizer=null")
    data = options.data
    if data.world is None and not any(key.startswith("data.") for key in named):
        kinds = [plugins.load("task", name).dataset for name in options.stream.tasks]
        folders = [prepared_folder(data.root, kind, FRAME_SIZE).parent.glob(f"{kind}-*") for kind in kinds]
        if not all(any(folder) for folder in folders):
            world = yaml.safe_dump({"bank": "procedural", "scale": SCALE}, default_flow_style=True).strip()
            found += [f"data.root={STAND_IN}", f"data.world={world}"]
            for name in options.stream.tasks:
                given, needed = options.tasks.get(name, {}), plugins.load("task", name).world_options
                found += [
                    f"tasks.{name}.{key}={json.dumps(value)}"
                    for key, value in needed.items()
                    if given.get(key, value) != value
                ]
    return found


def size_of_configuration(source: Source, bar: Bar = silent) -> Size:
    """Return parameters, FLOPs and memory of a configuration; towers have shapes only, so no weights are read.

    Raises:
        ConfigError, DataError: as a run would.
    """
    options, parts = load_run(source)
    towers = {
        modality: build(tower.name, tower.size, tower_overrides(tower, stand_in=True), device="meta")
        for modality, tower in options.towers.items()
    }
    edge = next((tower.info.image_size for tower in towers.values() if tower.info.image_size), FRAME_SIZE)
    tasks: dict[str, Task] = {}
    for name in options.stream.tasks:
        package = plugins.load("task", name)
        data = provide(package, options.data, edge, bar=bar)
        tasks[name] = package.build(parts.tasks[name], data, options.stream.protocol)
    experiences = [experience for task in tasks.values() for experience in task.experiences()]
    stream = concatenation(options.stream.title, experiences, options.stream.task_id, options.stream.protocol)
    model_class = plugins.load("model", options.model["name"])
    method_class = plugins.load("method", options.method["name"])
    model_class.needs(parts.model).check(options.model["name"], towers, tasks, stream)

    def outline():
        return method_class(model_class(towers, tasks, parts.model), tasks, parts.method, options.seed)

    with torch.random.fork_rng(devices=[]):
        loader = Loader(tasks, inputs_of(options, towers, tasks, options.data.root / "cache"))
        return measure(outline, stream.experiences, loader, options.seed)
