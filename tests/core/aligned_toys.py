"""Models on tiny CLIP and CLAP with toy tasks, two of which have class texts, and batches of their samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.methods.base import Method
from avcl_core.models.aligned import Aligned
from avcl_core.ownership import Owners
from avcl_core.seeding import seed_step
from avcl_core.task import Task
from avcl_core.testing import toy_task
from avcl_core.testing.toy_texts import ToyTexts
from avcl_core.testing.toy_towers import aligned_towers
from avcl_core.training.inputs import make_inputs
from avcl_core.training.loader import Loader
from avcl_core.training.session_data import SessionData
from avcl_core.walk import Ctx


def toy_tasks() -> dict[str, Task]:
    """One task with class texts and one without, of an experience each."""
    return {"texts": ToyTexts("texts"), "labels": toy_task("labels")}


def grown(
    model_class: type[Aligned], options: Options | None = None, tasks: Mapping[str, Task] | None = None
) -> Method:
    """The plain method over a model that knows all experiences."""
    tasks = tasks or toy_tasks()
    seed_step(0, "model")
    method = Method(model_class(aligned_towers(), tasks, options or model_class.Config()), tasks, Options(), 0)
    for task in tasks.values():
        for experience in task.experiences():
            seed_step(0, "grow", experience.name)
            method.model.grow(experience)
    method.model.eval()
    return method


def stirred(method: Method, scale: float = 0.1) -> Method:
    """Open gates and tell copies apart."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in Owners(method.model).match().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return method


def loader(method: Method) -> Loader:
    towers = dict(method.model._towers())
    rate = next(iter(method.tasks.values())).audio_rate
    return Loader(method.tasks, make_inputs(towers, {}, rate, None), torch.device("cpu"), 0)


def data(method: Method, task: str, experience: int = 0) -> SessionData:
    return SessionData(loader(method), method.tasks[task].experiences()[experience], 3, lambda: None)


def batch(method: Method, task: str, count: int = 3, experience: int = 0, split: str = "train") -> Batch:
    found = data(method, task, experience)
    return next(found.batches(split, found.keys(split)[:count], count))


def calibrated(method: Method, hidden: bool = True) -> Method:
    """Let the model see the training data of every experience, as before its training."""
    for task in method.tasks.values():
        for index, experience in enumerate(task.experiences()):
            method.model.calibrate(experience, data(method, task.name, index), hidden)
    return method


def similarity(method: Method, given: Batch, training: bool = False) -> tuple[dict[str, torch.Tensor], Ctx]:
    """Similarities of a batch, and the context of the call."""
    ctx = method.context(given, training)
    return dict(method.model.features(given, ctx).similarity), ctx


def answers(method: Method, given: Batch) -> torch.Tensor:
    """Logits ``[b, …]`` without gradients."""
    with torch.no_grad():
        return method.model(given, method.context(given, training=False))["logits"]


def learn(method: Method, given: Batch, steps: int = 2) -> Sequence[str]:
    """Train what the batch's experience teaches with plain Adam; return the names of the trained tensors."""
    assert given.experience is not None
    experience = next(e for e in method.tasks[given.task].experiences() if e.name == given.experience)
    owners = Owners(method.model)
    owners.set_trainable(method.active(experience))
    live = owners.match(method.active(experience))
    optimizer = torch.optim.Adam(list(live.values()), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack(list(method.losses(given).values())).sum().backward()
        optimizer.step()
    return list(live)
