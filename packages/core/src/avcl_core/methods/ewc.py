"""EWC (Kirkpatrick et al. 2017): a quadratic penalty holds what mattered to past experiences, by their Fisher information."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.errors import RunError
from avcl_core.methods.ahead import placed, still_learning
from avcl_core.methods.base import Data, Method, Update
from avcl_core.methods.quiet import quiet
from avcl_core.models.base import Model
from avcl_core.ownership import Owners
from avcl_core.seeding import ordered
from avcl_core.stream import Experience
from avcl_core.task import Task


class EWCOptions(Options):
    """Configuration of :class:`EWC`.

    Attributes:
        strength: λ, the weight of the penalty λ/2 · Σ F (θ − θ*)².
        decay: γ of online EWC (Schwarz et al. 2018): one penalty with the Fisher information γ·F_old + F_new around the latest
            values; ``null``: a penalty per past experience, each around the values that it left.
        samples: training samples of an experience that its Fisher information is estimated with, chosen by the seed; ``null``: all.
    """

    strength: PositiveFloat = 100.0
    decay: float | None = Field(default=None, gt=0, le=1)
    samples: PositiveInt | None = None


class EWC(Method):
    """Elastic weight consolidation, with the diagonal of the empirical Fisher information.

    F is the mean, over single samples, of the squared gradient of ``Task.nll`` at the true targets, in eval mode. It is kept for
    tensors that learnt in the experience and that an experience to come may train: what is shared, routers, heads of tasks with
    further increments; copies that belong to the past experience alone need none. A tensor that was widened since is held in the
    rows that it had. AdamW's decay is no part of the penalty's balance: set ``training.weight_decay`` to 0 to hold tensors by the
    penalty alone.

    On several ranks each estimates F with its share of the samples, and the sums are added.
    """

    Config = EWCOptions

    def __init__(self, model: Model, tasks: Mapping[str, Task], options: EWCOptions, seed: int) -> None:
        super().__init__(model, tasks, options, seed)
        self.strength, self.decay, self.samples = options.strength, options.decay, options.samples
        self.learnt: list[str] = []
        self.past: list[dict[str, Any]] = []

    def step(self, current: Batch, replayed: Sequence[Batch]) -> Iterator[Update]:
        """Yield one update on the current loss and the penalties, named ``ewc:<experience>``."""
        yield Update({**self.losses(current), **self.penalties(current)})

    def penalties(self, batch: Batch) -> dict[str, Tensor]:
        """Return this batch's share of the penalty for each past experience that still holds something which learns now."""
        parts = {}
        for entry in self.past:
            terms = []
            for name, fisher in entry["fisher"].items():
                value = self.model.get_parameter(name)
                if value.requires_grad:
                    terms.append((fisher * (value[_corner(fisher)] - entry["values"][name]).square()).sum())
            if terms:
                total = torch.stack(terms).sum()
                parts[f"ewc:{entry['experience']}"] = self.strength / 2 * total * batch.row_share
        return parts

    def after(self, experience: Experience, data: Data) -> None:
        """Estimate the Fisher information of the finished experience."""
        self.learnt = [*self.learnt, experience.name]
        live = Owners(self.model).match(still_learning(self, self.learnt))
        live = {name: parameter for name, parameter in live.items() if parameter.requires_grad}
        found = self.fisher(experience, data, live) if live else {}
        if self.decay is None:
            self.past = [*self.past, self._entry(experience, found)] if found else self.past
            return
        for entry in self.past:
            for name, old in entry["fisher"].items():
                total = found.get(name, torch.zeros_like(self.model.get_parameter(name)))
                total[_corner(old)] += self.decay * old
                found[name] = total
        self.past = [self._entry(experience, found)] if found else []

    def _entry(self, experience: Experience, fisher: dict[str, Tensor]) -> dict[str, Any]:
        values = {name: self.model.get_parameter(name).detach().clone() for name in fisher}
        return {"experience": experience.name, "fisher": fisher, "values": values}

    def fisher(self, experience: Experience, data: Data, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return name → diagonal of the empirical Fisher information of the tensors ``live``.

        Raises:
            RunError: it is not finite.
        """
        keys = data.keys("train")
        if self.samples is not None:
            keys = tuple(ordered(keys, self.seed, "fisher", experience.name)[: self.samples])
        total = {name: torch.zeros_like(parameter) for name, parameter in live.items()}
        with quiet(self.model), torch.enable_grad():
            for batch in data.batches(keys=keys[self.collective.rank :: self.collective.world]):
                for row in range(len(batch)):
                    for name, gradient in self._gradients(batch.select([row]), live):
                        total[name] += gradient.square()
        found = {name: self.collective.sum_tensor(value) / len(keys) for name, value in total.items()}
        for name, value in found.items():
            if not bool(value.isfinite().all()):
                raise RunError(
                    f"{experience.name}: the Fisher information of {name} is not finite; lower training.lr, or look for samples"
                    " of probability 0"
                )
        return found

    def _gradients(self, alone: Batch, live: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        # Ranks have different numbers of samples, so a model must not wait for the others' rows here.
        ctx = replace(self.context(alone, training=False), gather=dict)
        nll = self.tasks[alone.task].nll(self.model(alone, ctx), alone.targets).sum()
        if nll.requires_grad:
            gradients = torch.autograd.grad(nll, list(live.values()), allow_unused=True)
            yield from ((name, g) for name, g in zip(live, gradients, strict=True) if g is not None)

    def state(self) -> dict[str, Any]:
        """Return the Fisher information and the values that it holds."""
        return {"learnt": self.learnt, "past": self.past}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.learnt, self.past = list(state["learnt"]), placed(state["past"], self.model)


def _corner(old: Tensor) -> tuple[slice, ...]:
    """Return the index of what a tensor had before it was widened."""
    return tuple(slice(size) for size in old.shape)
