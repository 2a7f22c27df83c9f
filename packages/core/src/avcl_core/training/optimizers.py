"""Optimisers are rebuilt per session from owner patterns; their state is stored by parameter name and checked on loading."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from avcl_core.methods.base import Group
from avcl_core.ownership import Owners
from avcl_core.training.options import TrainingOptions


class NamedOptimizer:
    """AdamW or Adam over the live parameters that groups of owner patterns select.

    Args:
        groups: later groups take what earlier ones left.
        owners: the ownership table; only parameters that require a gradient are taken.
        options: learning rate, decay and schedule.
        total_steps: steps of the session, for the schedule.
    """

    def __init__(self, groups: Sequence[Group], owners: Owners, options: TrainingOptions, total_steps: int) -> None:
        self.options, self.total_steps = options, total_steps
        self.names: dict[str, nn.Parameter] = {}
        described = []
        for group in groups:
            taken = {n: p for n, p in owners.match(group.owners).items() if p.requires_grad and n not in self.names}
            self.names.update(taken)
            decay = options.weight_decay if group.decay is None else group.decay
            by_factor: dict[float, list[nn.Parameter]] = {}
            for name, parameter in taken.items():
                by_factor.setdefault(options.factor(owners.rows[name].owner), []).append(parameter)
            for factor, parameters in by_factor.items():
                described.append({"params": parameters, "weight_decay": decay, "rate": group.rate * factor})
        if not described:
            raise ValueError(f"no live parameter matches the optimiser groups {[group.owners for group in groups]}")
        form = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
        self.inner = form(described, lr=options.lr)

    def step(self, index: int) -> None:
        """Apply step ``index`` (0-based within the session) at the scheduled learning rate."""
        factor = schedule(self.options, index, self.total_steps)
        for group in self.inner.param_groups:
            group["lr"] = self.options.lr * group["rate"] * factor
        self.inner.step()

    def state(self) -> dict[str, dict[str, Any]]:
        """Return parameter name → optimiser state tensors."""
        found = {name: self.inner.state[p] for name, p in self.names.items() if p in self.inner.state}
        return {name: {key: value.cpu() for key, value in values.items()} for name, values in found.items()}

    def load(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore the state.

        Raises:
            ValueError: a name that is not optimised here, or a tensor of another shape than its parameter.
        """
        for name, values in state.items():
            if name not in self.names:
                raise ValueError(f"optimiser state of {name}, which is not a live parameter")
            parameter = self.names[name]
            for key, value in values.items():
                if value.ndim and value.shape != parameter.shape:
                    raise ValueError(
                        f"optimiser state {name}.{key}: {tuple(value.shape)}, expected {tuple(parameter.shape)}"
                    )
            # The step counter is a scalar that torch keeps on the CPU.
            self.inner.state[parameter] = {
                key: value.to(parameter.device if value.ndim else "cpu", copy=True) for key, value in values.items()
            }


def schedule(options: TrainingOptions, index: int, total: int) -> float:
    """Return the factor on the learning rate at step ``index`` of ``total``: linear warm-up, then constant, cosine or steps.

    By epoch without warm-up, the cosine is that of ``CosineAnnealingLR`` with ``T_max`` = epochs, stepped after each epoch.
    """
    warm = math.ceil(options.warmup * total)
    if index < warm:
        return (index + 1) / warm
    if options.schedule == "constant":
        return 1.0
    if options.decay is not None and options.decay_every is not None:
        epoch = index * options.epochs // total
        return options.decay ** (epoch // options.decay_every)
    if options.schedule_by == "epoch":
        steps = total // options.epochs
        index = max(warm, index // steps * steps)
    floor = options.lr_min / options.lr
    return floor + (1 - floor) * (0.5 * (1 + math.cos(math.pi * (index - warm) / max(1, total - warm))))
