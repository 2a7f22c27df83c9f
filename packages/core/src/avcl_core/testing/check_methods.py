"""The contract of a method: a run can be stopped anywhere and resumed, only active owners change, pieces add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from avcl_core.errors import RunError
from avcl_core.ownership import Owners
from avcl_core.testing.rules import require
from avcl_core.testing.toy_run import Stop, ToyRun, differences, run_interrupted, run_straight
from avcl_core.training.packing import pack, unpack
from avcl_core.training.trainer import Trainer


def check_method(toy: ToyRun, folder: Path, stops: int = 3) -> None:
    """Check a method on a toy run of it.

    Args:
        toy: the method over a model it suits, on toy tasks with at least two experiences.
        folder: an empty folder for the runs.
        stops: how many times a second run is interrupted, spread over it.

    Raises:
        AssertionError: the first rule that is broken.
    """
    who = f"method {toy.method.__name__}"
    straight, asked = check_ownership(toy, folder / "straight")
    check_state(toy, folder / "straight")
    # Once where most depends on the past, in the training of the last session, and then spread over the run.
    last = [i for i, stop in enumerate(asked) if stop.phase == "train" and stop.session == asked[-1].session]
    spread = [(2 * number + 1) * len(asked) // (2 * stops) for number in range(stops - 1)]
    places = {asked[i].at: asked[i] for i in sorted({last[len(last) // 4], *spread})}
    resumed = run_interrupted(toy, folder / "stopped", *places.values())
    found = differences(straight, resumed, folder / "straight", folder / "stopped")
    where = ", ".join(f"phase {at.phase} of session {at.session}" for at in places)
    require(
        not found,
        who,
        f"stopped in {where} and resumed, the run ends differently: {found[:3]}; "
        "everything that later steps depend on belongs into state(), and every draw needs a seed of its own",
    )


def check_ownership(toy: ToyRun, folder: Path) -> tuple[Trainer, list[Stop]]:
    """Check that each session changes only tensors of its active owners, which the trainer asks of every run.

    Return what :func:`run_straight` returns.
    """
    try:
        return run_straight(toy, folder)
    except RunError as error:
        raise AssertionError(f"method {toy.method.__name__}: {error}") from error


def check_state(toy: ToyRun, folder: Path) -> None:
    """Check that the state of the finished run in ``folder`` comes back from load() as it was."""
    who = f"method {toy.method.__name__}"
    tensors, structure = pack(toy.trainer(folder).store.load().method)
    fresh = toy.build()
    fresh.load(unpack(tensors, json.loads(json.dumps(structure))))
    again, same = pack(fresh.state())
    equal = same == structure and all(torch.equal(tensors[name], again[name]) for name in tensors)
    require(equal, who, "load(state()) in a new object must restore state(): something was forgotten")


def check_pieces(toy: ToyRun, folder: Path, tolerance: float = 1e-5) -> None:
    """Check that micro-batches add up to the full batch, for a method without a loss over the whole batch."""
    who = f"method {toy.method.__name__}"
    ends = []
    for name, micro in (("full", None), ("pieces", 1)):
        training = toy.training.model_copy(update={"micro_batch": micro, "epochs": 1, "lr": 1e-4})
        trainer = replace(toy, training=training).trainer(folder / name)
        trainer.run()
        ends.append((Owners(trainer.method.model).state(), _losses(folder / name)))
    (one, logged), (other, pieces) = ends
    gap = max(float((one[name] - other[name]).abs().max()) for name in one if one[name].is_floating_point())
    apart = max(
        (abs(value - pieces.get(name, 0.0)) / (1 + abs(value)) for name, value in logged.items()), default=float("inf")
    )
    require(
        apart <= 1e-4 and gap <= max(tolerance, 2e-4),
        who,
        f"micro-batches do not add up to the full batch (losses differ by {apart:.1e}, tensors by {gap:.1e}); "
        "multiply every loss part by the share of its batch",
    )


def _losses(folder: Path) -> dict[tuple[int, str], float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(i, name): v for i, record in enumerate(records) for name, v in record.get("loss", {}).items()}
