"""A whole training step against the direct one: front end, towers, adapters, head, backward pass and optimiser."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from clock import Row, equal, peak, random, seconds
from direct_adapter import direct_adapters
from direct_parts import direct_tpavi, log_mel
from models import SECONDS, batch_of, model_of, objective
from rows import Setup

TARGETS = {"ave": 0.9, "avvp": 0.9, "avqa": 0.9, "s4": 0.85}
"""Largest ratio of times in fp32 on a CPU (the FLOP ratios of forward and backward are 0.87, 0.87, 0.88 and 0.77)."""


def step_row(setup: Setup, task: str) -> list[Row]:
    """Return the time of a step of one task, ours against direct; the losses and all gradients must agree.

    Ours reads log-mels from the cache; the direct step transforms every repeated second. AVQA has negative frames in both, and
    once more ours with their maps kept in memory.
    """
    model = model_of(task, setup.size, setup.device)
    model.train()
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(live, lr=0.0, weight_decay=0.0)
    # Draws of heads (dropout) come from the global generator; both ways start from one seed.
    batch = batch_of(task, setup.size, setup.clips, setup.device, negatives=task == "avqa", training=True)
    count = SECONDS.get(task, 10)
    rate = model.towers["audio"].info.sample_rate
    tile = count if setup.size == "full" else 2
    sounds = [0.1 * random(count, rate, device=torch.device("cpu"), seed=i) for i in range(setup.clips)]

    def ours() -> list[torch.Tensor]:
        return _step(model, batch, optimizer)

    def direct() -> list[torch.Tensor]:
        for wave in sounds:
            log_mel(model.towers["audio"], wave.to(setup.device), tile)
        rows, model.kept.rows = model.kept.rows, count * setup.clips  # plain frames in one pass, none twice
        with ExitStack() as stack:
            stack.callback(setattr, model.kept, "rows", rows)
            stack.enter_context(direct_adapters(model))
            stack.enter_context(direct_tpavi(model))
            return _step(model, batch, optimizer)

    kept, model.kept.left = model.kept.left, 0
    difference = equal(f"step of {task}", ours(), direct(), 2e-3)
    times = {"ours": [], "direct": []}
    for _ in range(max(1, setup.repeats // 3)):
        times["ours"].append(seconds(ours, setup.device))
        times["direct"].append(seconds(direct, setup.device))
    mine, theirs = min(times["ours"]), min(times["direct"])
    more = {"ours_peak_bytes": peak(ours, setup.device), "direct_peak_bytes": peak(direct, setup.device)}
    target = TARGETS.get(task) if setup.device.type == "cpu" else 0.9
    rows = [
        Row(
            f"training step, {task}, {setup.clips} clip(s)", mine, theirs, difference, 2e-3, target, mine / theirs, more
        )
    ]
    if task == "avqa":
        model.kept.left = kept
        ours()
        again = min(seconds(ours, setup.device) for _ in range(max(1, setup.repeats // 3)))
        rows.append(Row(f"training step, {task}, negative maps kept", again, theirs, None, None, 0.7, again / theirs))
    return rows


def _step(model, batch, optimizer) -> list[torch.Tensor]:
    """Forward, backward and optimiser step at rate zero; returns the loss and the gradients."""
    torch.manual_seed(0)
    optimizer.zero_grad(set_to_none=True)
    loss = objective(model, batch, training=True)
    loss.backward()
    optimizer.step()
    found = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return [loss.detach(), torch.cat([grad.flatten() for grad in found])]
