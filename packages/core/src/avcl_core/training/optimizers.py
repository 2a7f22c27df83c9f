"""Optimisers are rebuilt per session from owner patterns; their state is stored by parameter name and checked on loading."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from avcl_core.errors import RunError
from avcl_core.methods.base import Group, Method
from avcl_core.ownership import Owners
from avcl_core.stream import Session
from avcl_core.training.options import TrainingOptions


class NamedOptimizer:
    """AdamW or Adam over the live parameters that groups of owner patterns select.

    Args:
        groups: later groups take what earlier ones left.
        owners: the ownership table; only parameters that require a gradient are taken.
        options: learning rate, decay and schedule.
        lengths: steps of each epoch of the session, for the schedule.
        own: owner → the options whose ``lr`` and ``rates`` hold for what it owns, where these are not ``options``.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        owners: Owners,
        options: TrainingOptions,
        lengths: Sequence[int],
        own: Mapping[str, TrainingOptions] | None = None,
    ) -> None:
        self.options, self.lengths = options, tuple(lengths)
        self.names: dict[str, nn.Parameter] = {}
        described = []
        for group in groups:
            taken = {n: p for n, p in owners.match(group.owners).items() if p.requires_grad and n not in self.names}
            self.names.update(taken)
            decay = options.weight_decay if group.decay is None else group.decay
            by_factor: dict[float, list[nn.Parameter]] = {}
            for name, parameter in taken.items():
                owner = owners.rows[name].owner
                asked = (own or {}).get(owner, options)
                by_factor.setdefault(asked.factor(owner) * (asked.lr / options.lr), []).append(parameter)
            for factor, parameters in by_factor.items():
                described.append({"params": parameters, "weight_decay": decay, "rate": group.rate * factor})
        if not described:
            raise ValueError(f"no live parameter matches the optimiser groups {[group.owners for group in groups]}")
        form = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
        # One kernel for all parameters: with small modules, a kernel per parameter and operation is a tenth of the step.
        self.inner = form(described, lr=options.lr, fused=True)

    def step(self, index: int) -> None:
        """Apply step ``index`` (0-based within the session) at the scheduled learning rate."""
        factor = schedule(self.options, index, self.lengths)
        for group in self.inner.param_groups:
            group["lr"] = self.options.lr * group["rate"] * factor
        self.inner.step()

    def rates(self) -> list[float]:
        """Return the different learning rates of the latest step, in order of the groups."""
        return list(dict.fromkeys(float(group["lr"]) for group in self.inner.param_groups))

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
            self.inner.state[parameter] = {key: value.to(parameter.device, copy=True) for key, value in values.items()}


def named_optimizers(
    method: Method, session: Session, options: TrainingOptions, lengths: Sequence[int]
) -> dict[str, NamedOptimizer]:
    """Return the optimisers that ``method`` asks for in ``session``, by name.

    In a session of several tasks, what belongs to one of them learns at that task's rate.

    Raises:
        RunError: a parameter requires a gradient and is in no group.
    """
    owners = Owners(method.model)
    own = {
        f"{kind}:{name}": options.of({experience.task})
        for experience in session.experiences
        for kind in ("task", "head")
        for name in (experience.task, experience.name)
    }
    made = {
        name: NamedOptimizer(groups, owners, options, lengths, own)
        for name, groups in method.optimizers(session).items()
    }
    taken = {name for optimizer in made.values() for name in optimizer.names}
    left = [name for name, p in owners.match().items() if p.requires_grad and name not in taken]
    if left:
        raise RunError(
            f"{type(method).__name__}.optimizers leaves out {len(left)} learning tensors, first {left[0]}"
            f" ({owners.rows[left[0]].owner}); add a group for it, or take its owner out of active()"
        )
    return made


def schedule(options: TrainingOptions, index: int, lengths: Sequence[int]) -> float:
    """Return the factor on the learning rate at step ``index``: linear warm-up, then constant, cosine or steps.

    By epoch without warm-up, and where epochs are equally long, the cosine is that of ``CosineAnnealingLR`` with ``T_max`` = epochs,
    stepped after each epoch.

    Args:
        index: 0-based number of the step within the session.
        lengths: steps of each of its epochs, which may differ (:func:`avcl_core.training.order.epoch_plan`).
    """
    ends = list(itertools.accumulate(lengths))
    total = ends[-1]
    warm = math.ceil(options.warmup * total)
    if index < warm:
        return (index + 1) / warm
    if options.schedule == "constant":
        return 1.0
    epoch = bisect.bisect_right(ends, index)
    if options.decay is not None and options.decay_every is not None:
        return options.decay ** (epoch // options.decay_every)
    if options.schedule_by == "epoch":
        index = max(warm, ends[epoch - 1] if epoch else 0)
    floor = options.lr_min / options.lr
    return floor + (1 - floor) * (0.5 * (1 + math.cos(math.pi * (index - warm) / max(1, total - warm))))
