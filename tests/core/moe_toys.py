"""AVMOE on toy towers and toy tasks, in double precision: whole models, their samples, and single optimiser steps of them."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from avcl_core.batch import Batch
from avcl_core.collective import Collective, current
from avcl_core.methods.base import Method
from avcl_core.models.avmoe import AvMoe, AvMoeOptions
from avcl_core.moe.adapter import MoeAdapter
from avcl_core.ownership import Owners
from avcl_core.seeding import seed_step
from avcl_core.stream import Experience
from avcl_core.testing import ToyRun, toy_task, toy_towers
from avcl_core.testing.toy_towers import htsat, stir
from avcl_core.training.loader import Request
from avcl_core.training.order import Portion
from avcl_core.training.stepper import Stepper


def deep_towers():
    """Towers of 2 and 4, and of 2 and 2 blocks: in the second stage every other visual block runs alone."""
    from shared_backbones.towers.swin_v2 import SwinV2

    geometry = {"img_size": 32, "embed_dim": 8, "depths": (2, 4), "num_heads": (1, 2), "window_size": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"visual": stir(SwinV2("tiny", "toy", geometry)), "audio": htsat()}


def toy(tasks=("labels",), towers=toy_towers, count=1, **options) -> ToyRun:
    """A run of AVMOE with small experts on toy tasks."""
    given = AvMoeOptions(**({"reduction": 2, "groups": 2, "latents": 3, "skip": 1} | options))
    return ToyRun(towers, AvMoe, Method, {kind: toy_task(kind, count) for kind in tasks}, model_options=given)


def grown(run: ToyRun, open_gates: bool = True, double: bool = True) -> Method:
    """The method over a model that knows all experiences, with every parameter moved a little."""
    method = run.build()
    for experience in run.stream.experiences:
        seed_step(run.seed, "grow", experience.name)
        method.model.grow(experience)
    if open_gates:
        stirred(method)
    return as_double(method) if double else method


def stirred(method: Method, scale: float = 0.3) -> None:
    """Open all gates and give copies values of their own."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in Owners(method.model).match().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def as_double(method: Method) -> Method:
    method.model.double()
    return method


def cast(batch: Batch, double: bool = True) -> Batch:
    """Floats of a batch in double precision."""
    return batch._map(lambda value: value.double() if double and value.is_floating_point() else value)


def samples(run: ToyRun, count: int, split: str = "train", experience: Experience | None = None, double=True) -> Batch:
    """The first samples of a split."""
    experience = experience or run.stream.experiences[0]
    batch = run.loader().load(Request(experience, split, experience.keys(split)[:count], None))
    return cast(batch, double)


def with_seeds(batch: Batch) -> Batch:
    """A batch as it is in training, every sample with a seed of its own."""
    return replace(batch, seeds=tuple(range(100, 100 + len(batch))))


def adapters(method: Method) -> list[MoeAdapter]:
    return [module for module in method.model.modules() if isinstance(module, MoeAdapter)]


class Recorder:
    """Stands where an optimiser would: keeps the gradients of a step and changes nothing."""

    def __init__(self, method: Method) -> None:
        self.owners, self.gradients = Owners(method.model), {}

    def step(self, index: int) -> None:
        live = {n: p.grad for n, p in self.owners.match().items() if p.requires_grad}
        self.gradients = {n: None if g is None else g.clone() for n, g in live.items()}


@dataclass
class Stepped:
    """What a step left: gradients, buffers of the adapters, and the loss parts that were logged."""

    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    logged: dict[str, Tensor]


def step(run: ToyRun, micro: int | None, count: int = 5, collective: Collective | None = None, double=True) -> Stepped:
    """One optimiser step through the real stepper."""
    method, collective = grown(run, double=double), collective or Collective()
    method.collective = collective
    experience, loader = run.stream.experiences[0], run.loader()
    live = method.active(experience)
    Owners(method.model).set_trainable(live)
    recorder = Recorder(method)
    options = run.training.model_copy(update={"micro_batch": micro, "clip": None})
    stepper = Stepper(
        method, run.tasks, run.stream, loader, options, live, {"main": recorder}, collective, 0, nullcontext
    )  # fmt: skip
    requests = stepper.my_requests(Portion(experience, experience.train[:count]), ("augment", 0))
    logged = stepper.step([cast(loader.load(r), double) for r in requests], count, ("step", 0), 0)
    buffers = dict(method.model.parts.named_buffers())
    logged = {name: collective.sum_tensor(value) for name, value in logged.items()}
    return Stepped(recorder.gradients, buffers, logged)


def apart(one: Stepped, other: Stepped) -> float:
    """Largest difference, relative to the largest gradient."""
    assert one.gradients.keys() == other.gradients.keys()
    assert one.logged.keys() == other.logged.keys()
    found = [float((one.logged[n] - other.logged[n]).abs()) for n in one.logged]
    for name, gradient in one.gradients.items():
        twin = other.gradients[name]
        assert (gradient is None) == (twin is None), name
        if gradient is not None and twin is not None:
            found.append(float((gradient - twin).abs().max()))
    found += [float((value - other.buffers[n]).abs().max()) for n, value in one.buffers.items()]
    largest = max(float(g.abs().max()) for g in one.gradients.values() if g is not None)
    assert 1e-4 < largest < 1e4
    return max(found) / largest


EVERYTHING = {
    "bottleneck_norm": "batch",
    "router_noise": 0.5,
    "balance_weight": 0.3,
    "modality_dropout": 0.5,
    "specaug": True,
}
"""Every draw and every statistic of a training step at once."""
CASES = {
    "everything": toy(**EVERYTHING, cross_experts=2, uni_experts=2),
    "tokens": toy(("tokens",), **EVERYTHING),
    "recomputed": toy(**EVERYTHING, recompute=True),
    "tasks": toy(**EVERYTHING, adapters="task"),
}
RANKED = ("everything", "tokens")
"""Those that two ranks run as well."""


def work(rank: int, world: int, folder: Path) -> None:
    """Take the steps on one rank and save them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    for name in RANKED:
        torch.save(
            step(CASES[name], 2 if name == "tokens" else None, collective=current()), folder / f"{name}-{rank}.pt"
        )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    world, folder = int(sys.argv[1]), Path(sys.argv[2])
    start_processes(work, (world, folder), world, start_method="fork")  # imports are paid once
