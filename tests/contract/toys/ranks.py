"""Runs of several processes over gloo: ``python -m toys.ranks WORLD FOLDER`` runs all cases and saves what each rank learnt."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.multiprocessing.spawn import start_processes
from toys.cross_experts import CrossExperts
from toys.prompts import Prompts
from toys.regression import FrozenRegressor, KeyFrameReplay
from toys.users import clips, pair, tasks

from avcl_core.collective import current
from avcl_core.methods.derpp import DarkReplay, DarkReplayOptions
from avcl_core.methods.er import ExperienceReplay, ReplayOptions
from avcl_core.methods.ewc import EWC
from avcl_core.methods.finetune import Finetune
from avcl_core.methods.lwf import LwF
from avcl_core.methods.sharing import SharingOptions
from avcl_core.models.residual_adapters import ResidualAdapters
from avcl_core.ownership import Owners
from avcl_core.running.folder import Silent
from avcl_core.testing.toy_run import ToyRun
from avcl_core.testing.toy_towers import clip
from avcl_core.training.packing import pack

REPLAY = ReplayOptions(memory=6, replay_batch=3)
DARK = DarkReplayOptions(memory=6, replay_batch=3)
CASES = {
    "mean": ToyRun(pair, ResidualAdapters, ExperienceReplay, tasks(labels=2), method_options=REPLAY),
    "token": ToyRun(pair, ResidualAdapters, ExperienceReplay, tasks(tokens=2), method_options=REPLAY),
    "dark": ToyRun(pair, ResidualAdapters, DarkReplay, tasks(tokens=1, classes=1), method_options=DARK),
    "fisher": ToyRun(pair, ResidualAdapters, EWC, tasks(tokens=1, classes=1)),
    "teacher": ToyRun(pair, Prompts, LwF, tasks(labels=1, classes=1)),
    "penalty": ToyRun(
        pair, ResidualAdapters, Finetune, tasks(labels=1, classes=1), method_options=SharingOptions(shared="l2sp")
    ),
    "coupled": ToyRun(pair, ResidualAdapters, ExperienceReplay, tasks(value=2, labels=1), method_options=REPLAY),
    "coupled jointly": ToyRun(lambda: {"visual": clip()}, FrozenRegressor, KeyFrameReplay, clips),
    "balance": ToyRun(pair, CrossExperts, ExperienceReplay, tasks(classes=2), method_options=REPLAY),
    "coupled, contrast": ToyRun(pair, Prompts, ExperienceReplay, tasks(value=1, labels=1), method_options=REPLAY),
    "contrast": ToyRun(pair, Prompts, ExperienceReplay, tasks(labels=1, classes=1), method_options=REPLAY),
}


def run(case, folder):
    """Run one case and return owned tensors, the result matrix and the training records."""
    toy = CASES[case]
    # Plain steps of a small size: AdamW would blow rounding in tiny gradients up to whole steps.
    training = toy.training.model_copy(update={"epochs": 1, "lr": 1e-4, "selection": "best"})
    trainer = replace(toy, training=training).trainer(folder, collective=current())
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        trainer.recorder = Silent(folder)
    trainer.run()
    gradients = {n: s["exp_avg"] for o in trainer.finished_optimizers.values() for n, s in o.items()}
    return {
        "owned": Owners(trainer.method.model).state(),
        "gradients": gradients,
        "matrix": trainer.matrix.to_json(),
        "method": pack(trainer.method.state())[0],
    }


def work(rank, world, folder):
    """Run all cases on one rank."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    for name in CASES:
        torch.save(run(name, folder / name.replace(" ", "-")), folder / f"{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    world, folder = int(sys.argv[1]), Path(sys.argv[2])
    start_processes(work, (world, folder), world, start_method="fork")  # imports are paid once
