"""The contract of a model: owned growth that follows from the seed, predictions that depend on the sample alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from avcl_core.batch import Batch, Outputs
from avcl_core.config.options import Options
from avcl_core.methods.base import Method
from avcl_core.models.base import Model
from avcl_core.ownership import Owners, matches, train_mode
from avcl_core.seeding import seed_step
from avcl_core.stream import Stream, TaskId, concatenation
from avcl_core.task import Task
from avcl_core.testing.rules import fingerprint, largest_gap, require
from avcl_core.training.inputs import make_inputs
from avcl_core.training.loader import Loader
from shared_backbones.tower import Tower

TOLERANCE = 1e-4
Towers = Callable[[], Mapping[str, Tower]]


def check_model(
    model_class: type[Model],
    towers: Towers,
    tasks: Mapping[str, Task],
    options: Options | None = None,
    task_id: TaskId = "given",
    prepare: Callable[[Method, Stream, Loader], None] | None = None,
) -> None:
    """Check a model on a stream of all experiences of ``tasks``.

    Args:
        towers: makes the towers anew.
        tasks: task name → task; the toy tasks of :mod:`avcl_core.testing.toy_tasks` will do.
        options: the model's options, by default its own defaults.
        task_id: what prediction knows.
        prepare: fills what prediction needs and a method's hooks give (anchors), once the model is grown.

    Raises:
        AssertionError: the first rule that is broken.
    """
    who = f"model {model_class.__name__}"
    stream = concatenation("check", [e for task in tasks.values() for e in task.experiences()], task_id)
    given = options or model_class.Config()

    def build() -> Model:
        seed_step("check", "model")
        return model_class(towers(), tasks, given)

    model = _check_growth(build, stream, who)
    method = Method(model, tasks, Options(), 0)
    audio_rate = next(iter(tasks.values())).audio_rate
    readable = {n: t for n, t in towers().items() if any(n in task.modalities for task in tasks.values())}
    loader = Loader(tasks, make_inputs(readable, {}, audio_rate, None), torch.device("cpu"), 0)
    if prepare is not None:
        prepare(method, stream, loader)
    shake(model)
    for experience in stream.experiences:
        (batch,) = loader.batches(experience, "test", 3, experience.test[:3])
        _check_prediction(method, batch, stream, who)
        _check_training(method, batch, experience.name, stream, who)


def shake(model: Model, scale: float = 0.05) -> None:
    """Add noise to all owned parameters, so that closed gates and copies open and differ."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in Owners(model).match().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def _grow(model: Model, name: str, stream: Stream) -> None:
    seed_step("check", "grow", name)
    model.grow(stream.experience(name))


def _check_growth(build: Callable[[], Model], stream: Stream, who: str) -> Model:
    model, again = build(), build()
    for experience in stream.experiences:
        before = _owners(model, who).state()
        _grow(model, experience.name, stream)
        after = _owners(model, who).state()
        changed = [
            n
            for n in before
            if n in after and (after[n].shape == before[n].shape) and not torch.equal(after[n], before[n])
        ]
        require(not changed, who, f"growing {experience.name} changed values that were there before: {changed[:3]}")
        _grow(model, experience.name, stream)
        require(
            largest_gap(after, Owners(model).state()) == 0,
            who,
            f"growing {experience.name} twice must be like growing it once",
        )
    for experience in stream.experiences:
        _grow(again, experience.name, stream)
    one, two = Owners(model).state(), Owners(again).state()
    lacking = sorted(one.keys() ^ two.keys())
    require(not lacking, who, f"a rebuilt model has other owned tensors, so nothing can be resumed: {lacking[:3]}")
    drawn = [name for name in one if not torch.equal(one[name], two[name])]
    require(not drawn, who, f"grown values must follow from the seed alone; {drawn[:3]} differ in a rebuilt model")
    for experience in stream.experiences:
        live = Owners(model).match(model.active(experience))
        require(live, who, f"no tensor learns during {experience.name}: active() gives {model.active(experience)}")
    return model


def _owners(model: Model, who: str) -> Owners:
    try:
        return Owners(model)
    except ValueError as error:
        raise AssertionError(f"{who}: every trainable tensor needs an owner: {error}") from error


def _answer(method: Method, batch: Batch) -> Outputs:
    with torch.no_grad():
        return method.model.answer(batch, method.context(batch, training=False))


def _rows(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """Join outputs along the batch; texts are as wide as the longest of their batch, and filled up with zeros to that of all."""
    if like.dtype == torch.uint8:
        parts = [functional.pad(part, (0, like.shape[-1] - part.shape[-1])) for part in parts]
    return torch.cat(list(parts))


def _check_prediction(method: Method, batch: Batch, stream: Stream, who: str) -> None:
    model, hidden = method.model, stream.task_id == "hidden"
    model.eval()
    question = batch.question(hidden)
    before = fingerprint(model)
    found = _answer(method, question)
    require(largest_gap(found, _answer(method, question)) == 0, who, "the same question twice must get the same answer")
    moved = [name for name, value in fingerprint(model).items() if not torch.equal(value, before[name])]
    require(not moved, who, f"prediction must change no state, but {moved[:3]} changed")
    order = list(range(len(batch)))[::-1]
    turned = {name: value[order] for name, value in _answer(method, question.select(order)).items()}
    require(largest_gap(found, turned) <= TOLERANCE, who, "the order of a batch must not change predictions")
    alone = [_answer(method, question.select([row])) for row in range(len(batch))]
    joined = {name: _rows([part[name] for part in alone], value) for name, value in found.items()}
    require(largest_gap(found, joined) <= TOLERANCE, who, "the size of a batch must not change predictions")
    if hidden:
        other = [e.name for e in stream.experiences if e.name != batch.experience]
        for name in other[:1]:
            shuffled = replace(batch, experience=name).question(hidden=True)
            require(
                largest_gap(found, _answer(method, shuffled)) == 0, who, "a hidden experience must not reach prediction"
            )


def _check_training(method: Method, batch: Batch, name: str, stream: Stream, who: str) -> None:
    model = method.model
    experience = stream.experience(name)
    patterns = method.active(experience)
    owners = Owners(model)
    owners.set_trainable(patterns)
    live = owners.match(patterns)
    idle = {row.name: row.tensor.detach().clone() for row in owners.rows.values() if not matches(row.owner, patterns)}
    frozen = owners.frozen_digests()
    train_mode(model, patterns)
    parts = method.losses(batch)
    for part, value in parts.items():
        require(value.ndim == 0 and bool(torch.isfinite(value)), who, f"loss part {part} must be a finite scalar")
    torch.stack(list(parts.values())).sum().backward()
    reached = [n for n, p in live.items() if p.grad is not None and bool(p.grad.abs().sum() > 0)]
    require(reached, who, f"no gradient reaches what learns during {name} ({patterns})")
    model.zero_grad(set_to_none=True)
    moved = [n for n, value in idle.items() if not torch.equal(value, owners.rows[n].tensor)]
    drifted = [n for n, digest in Owners(model).frozen_digests().items() if digest != frozen.get(n)]
    require(not moved and not drifted, who, f"a training pass changed frozen tensors {(moved + drifted)[:3]}")
    model.eval()
