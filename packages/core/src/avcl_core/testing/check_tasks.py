"""The contract of a task: keyed samples, a loss that is a mean over units, predictions that never see targets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from avcl_core.batch import Batch, Outputs
from avcl_core.config.options import Options
from avcl_core.models.base import Model
from avcl_core.seeding import numpy_generator, seed_step
from avcl_core.stream import Experience
from avcl_core.task import Task
from avcl_core.testing.rules import largest_gap, require
from avcl_core.training.inputs import make_inputs
from avcl_core.training.loader import Loader
from avcl_core.walk import Ctx
from shared_backbones.tower import Tower

TOLERANCE = 1e-4
KINDS = ("classes", "labels", "mask", "value", "tokens")


def check_task(task: Task, towers: Mapping[str, Tower], samples: int = 4) -> None:
    """Check a task on the first samples of its first experience, with its head over plain towers.

    Args:
        task: the task, with its data.
        towers: modality → frozen tower that reads the task's inputs.
        samples: how many samples of each split are read.

    Raises:
        AssertionError: the first rule that is broken.
    """
    who = f"task {task.name}"
    require(
        set(task.fields.values()) <= set(KINDS) and task.fields, who, f"fields must map output names to kinds {KINDS}"
    )
    experiences = task.experiences()
    _check_experiences(task, experiences, who)
    experience = experiences[0]
    _check_dataset(task, experience, who)
    loader = Loader({task.name: task}, make_inputs(towers, {}, task.audio_rate, None), torch.device("cpu"), 0)
    (batch,) = loader.batches(experience, "train", samples, experience.train[:samples])
    seed_step("check", task.name)
    model = Model(towers, {task.name: task}, Options())
    head = task.head(model.spec(), experience)
    if head is None:
        return
    model.grow(experience)
    model.eval()
    with torch.no_grad():
        outputs = model(batch, Ctx())
        blind = model(batch.question(hidden=True), Ctx())
        require(largest_gap(outputs, blind) == 0, who, "the head must not read targets or the experience")
        _check_outputs(task, outputs, batch, who)
        _check_loss(task, outputs, batch, who)
        _check_needs(task, model, batch, who)
    grad = model(batch, Ctx())
    task.nll(grad, batch.targets).sum().backward()
    reached = any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.heads.parameters())
    require(reached, who, "nll must be differentiable down to the head's parameters")
    _check_scores(task, loader, model, experience, samples, who)


def _check_experiences(task: Task, experiences: tuple[Experience, ...], who: str) -> None:
    require(experiences, who, "experiences() is empty; return at least one")
    for experience in experiences:
        require(experience.task == task.name, who, f"experience {experience.name} says task {experience.task!r}")
        splits = {split: experience.keys(split) for split in ("train", "val", "test")}
        for split, keys in splits.items():
            require(len(set(keys)) == len(keys), who, f"experience {experience.name} repeats keys in {split}")
        shared = set(splits["train"]) & (set(splits["val"]) | set(splits["test"]))
        require(
            not shared, who, f"experience {experience.name} trains on validation or test samples {sorted(shared)[:3]}"
        )
    names = [experience.name for experience in experiences]
    require(len(set(names)) == len(names), who, f"experience names repeat: {names}")


def _check_dataset(task: Task, experience: Experience, who: str) -> None:
    dataset, key = task.dataset("train"), experience.train[0]
    twice = [dataset.inputs(key, numpy_generator("check") if dataset.drawn else None) for _ in range(2)]
    same = twice[0].keys() == twice[1].keys() and all(np.array_equal(twice[0][n], twice[1][n]) for n in twice[0])
    require(same, who, "inputs must be a function of key and rng alone: the same call gave other values")
    # A language tower reads and writes answers, which are targets.
    absent = [name for name in task.modalities if name not in {**twice[0], **dataset.targets(key)}]
    require(not absent, who, f"modalities declares {absent}, but neither inputs nor targets have them")
    require(dataset.digest(key) == dataset.digest(key), who, "digest must be a function of the key")


def _check_needs(task: Task, model: Model, batch: Batch, who: str) -> None:
    known = {name: value for name, value in batch.inputs.items() if name in (*task.modalities, *task.needs)}
    try:
        model(replace(batch, inputs=known), Ctx())
    except KeyError as error:
        raise AssertionError(f"{who}: the head reads the input {error}; name it in needs") from error


def _check_outputs(task: Task, outputs: Outputs, batch: Batch, who: str) -> None:
    lacking = [name for name in task.fields if name not in outputs]
    require(not lacking, who, f"fields declares {lacking}, but the head returns {sorted(outputs)}")
    for name, value in outputs.items():
        require(len(value) == len(batch), who, f"output {name} must have one row per sample: {tuple(value.shape)}")
        require(bool(torch.isfinite(value).all()), who, f"output {name} is not finite on the first samples")
    decoded = task.decode(outputs)
    for name, value in decoded.items():
        require(len(value) == len(batch), who, f"prediction {name} must have one row per sample: {tuple(value.shape)}")
    alone = task.decode({name: value[:1] for name, value in outputs.items()})
    first = {name: value[:1] for name, value in decoded.items()}
    require(largest_gap(alone, first) == 0, who, "decode must treat samples independently of each other")


def _check_loss(task: Task, outputs: Outputs, batch: Batch, who: str) -> None:
    nll = task.nll(outputs, batch.targets)
    require(
        tuple(nll.shape) == (len(batch),),
        who,
        f"nll must be one number per sample [{len(batch)}], got {tuple(nll.shape)}",
    )
    rows = [batch.select([i]) for i in range(len(batch))]
    cut = [{name: value[i : i + 1] for name, value in outputs.items()} for i in range(len(batch))]
    alone = torch.cat([task.nll(out, row.targets) for out, row in zip(cut, rows, strict=True)])
    require(torch.allclose(alone, nll, atol=TOLERANCE), who, "a sample's nll must not depend on the other samples")
    parts = task.loss(outputs, batch.targets)
    for name, value in parts.items():
        require(value.ndim == 0 and bool(torch.isfinite(value)), who, f"loss part {name} must be a finite scalar")
    units = task.units(batch.targets)
    require(isinstance(units, int) and units > 0, who, f"units must be a positive int, got {units!r}")
    if task.coupled:
        return
    total = dict.fromkeys(parts, 0.0)
    for chosen in ([0], list(range(1, len(batch)))):
        piece = batch.select(chosen)
        out = {name: value[chosen] for name, value in outputs.items()}
        for name, value in task.loss(out, piece.targets).items():
            total[name] += float(value) * task.units(piece.targets) / units
    wrong = [
        name for name, value in parts.items() if abs(float(value) - total[name]) > TOLERANCE * (1 + abs(total[name]))
    ]
    require(
        not wrong,
        who,
        f"loss parts {wrong} are no means over units(): weighted by units, two pieces of a batch do not add up to the whole; "
        "count the right units or declare coupled = True",
    )


def _check_scores(task: Task, loader: Loader, model: Model, experience: Experience, samples: int, who: str) -> None:
    keys = experience.test[:samples]
    (batch,) = loader.batches(experience, "test", samples, keys)
    with torch.no_grad():
        decoded = {n: v.cpu().numpy() for n, v in task.decode(model(batch.question(hidden=True), Ctx())).items()}
    predictions = {key: {name: value[row] for name, value in decoded.items()} for row, key in enumerate(keys)}
    targets = loader.targets(experience, "test", keys)
    metrics = task.score(predictions, targets)
    require(
        task.primary in metrics,
        who,
        f"score must include the primary metric {task.primary!r}, it has {sorted(metrics)}",
    )
    backwards = task.score(dict(reversed(predictions.items())), dict(reversed(targets.items())))
    same = metrics.keys() == backwards.keys() and np.allclose(
        list(metrics.values()), [backwards[n] for n in metrics], equal_nan=True
    )
    require(same, who, "scores must not depend on the order of samples")
    for name, values in task.controls(loader.targets(experience, "train"), targets).items():
        require(task.primary in values, who, f"control {name!r} lacks the primary metric {task.primary!r}")
    try:
        json.dumps(task.pack(next(iter(predictions.values()))))
    except TypeError as error:
        raise AssertionError(f"{who}: pack must return what JSON can hold: {error}") from error
