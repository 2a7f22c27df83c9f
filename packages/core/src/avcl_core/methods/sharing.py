"""Policies for what all tasks share (php.md 4.4): which of it learns, and with which values old tasks are predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from avcl_core.batch import Batch
from avcl_core.collective import Collective
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError
from avcl_core.methods.ahead import placed
from avcl_core.models.base import Model
from avcl_core.ownership import Owners, matches, own
from avcl_core.sites import Settling
from avcl_core.stream import Experience

R = TypeVar("R")
SHARED = ("shared", "shared:*")
"""Patterns of the owners that the policies are about."""
AVERAGE = "shared:average"
"""Owner of the averages of ``ema``."""
EMA_DECAY, L2SP_WEIGHT = 0.999, 1e-2


class SharingOptions(Options):
    """Configuration of :class:`~avcl_core.methods.finetune.Finetune`.

    Attributes:
        shared: ``latest``, the shared tensors learn in every experience and all tasks are predicted with them as they are;
            ``frozen_after_first``, they learn in the first experience only; ``snapshot``, an old task is predicted with them as its
            experience left them; ``ema``, an old task is predicted with their exponential moving average; ``l2sp``, a penalty holds
            them near what the experience before left.
        ema_decay: of ``ema``, per optimiser step; ``null`` is 0.999.
        l2sp_weight: λ of ``l2sp``; ``null`` is 0.01.
    """

    shared: Literal["latest", "frozen_after_first", "snapshot", "ema", "l2sp"] = "latest"
    ema_decay: float | None = Field(default=None, ge=0, lt=1)
    l2sp_weight: PositiveFloat | None = None

    @model_validator(mode="after")
    def _used(self) -> SharingOptions:
        for name, policy in (("ema_decay", "ema"), ("l2sp_weight", "l2sp")):
            if getattr(self, name) is not None and self.shared != policy:
                raise ValueError(
                    f"{name} has no effect with shared: {self.shared}; leave it out, or set shared: {policy}"
                )
        return self


class Sharing:
    """``latest``, and the base of the other policies.

    Args:
        model: the model, not yet grown.
        options: the method's options.
    """

    def __init__(self, model: Model, options: SharingOptions) -> None:
        self.model = model

    def active(self, patterns: tuple[str, ...], experience: Experience) -> tuple[str, ...]:
        """Return the patterns of the owners that learn, of those that the model lets learn."""
        return patterns

    def begin(self, experience: Experience) -> None:
        """An experience begins."""

    def finish(self, experience: Experience) -> None:
        """An experience is learnt; the tensors are those of the selected epoch."""

    def parts(self, batch: Batch) -> dict[str, Tensor]:
        """Return what is added to the loss."""
        return {}

    def tensors(self, experience: str | None) -> Mapping[str, Tensor]:
        """Return the values with which samples of an experience are predicted, by name, in place of the model's."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what must survive a stop."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the shared parameters by name."""
        return Owners(self.model).match(SHARED)


class FrozenAfterFirst(Sharing):
    """Shared tensors learn in the stream's first experience only; parts that this does not train stay as they were made."""

    def active(self, patterns: tuple[str, ...], experience: Experience) -> tuple[str, ...]:
        """From the second experience on, return the owners that match and are not shared."""
        if experience.index == 0:
            return patterns
        owners = dict.fromkeys(row.owner for row in Owners(self.model).rows.values())
        return tuple(owner for owner in owners if matches(owner, patterns) and not matches(owner, SHARED))


class OldTensors(Sharing):
    """Base of the policies that predict old experiences with other values; they need to know the experience of a sample."""

    def __init__(self, model: Model, options: SharingOptions) -> None:
        super().__init__(model, options)
        self.name = options.shared

    def tensors(self, experience: str | None) -> Mapping[str, Tensor]:
        """Return :meth:`old`.

        Raises:
            ConfigError: the experience is hidden.
        """
        if experience is None:
            raise ConfigError(
                f"method.shared={self.name} predicts old tasks with other tensors, so it must know the task; use"
                " stream.task_id=given, or another policy"
            )
        return self.old(experience)

    def old(self, experience: str) -> Mapping[str, Tensor]:
        """Return the values for a known experience."""
        raise NotImplementedError(f"{type(self).__name__}.old")


class Snapshots(OldTensors):
    """Shared tensors, with their buffers, as each experience left them: exactly no forgetting where all that tasks have in common
    is shared in this sense (not a router, nor the head of two experiences). Costs one more set per experience.
    """

    def __init__(self, model: Model, options: SharingOptions) -> None:
        super().__init__(model, options)
        self.kept: dict[str, dict[str, Tensor]] = {}

    def finish(self, experience: Experience) -> None:
        """Keep the shared tensors."""
        self.kept = {**self.kept, experience.name: Owners(self.model).state(SHARED)}

    def old(self, experience: str) -> Mapping[str, Tensor]:
        """Return the tensors that were kept; nothing for an experience that is not learnt yet."""
        return self.kept.get(experience, {})

    def state(self) -> dict[str, Any]:
        """Return the kept tensors."""
        return {"kept": self.kept}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the kept tensors."""
        self.kept = placed(state["kept"], self.model)


class Averages(Settling):
    """Exponential moving averages of parameters, as buffers: owned, so that checkpoints and the best epoch include them.

    Args:
        live: name → parameter, in a module that holds it.
        decay: d in ā ← d·ā + (1 − d)·θ after each optimiser step.
    """

    def __init__(self, live: Mapping[str, nn.Parameter], decay: float) -> None:
        super().__init__()
        self.live, self.decay = dict(live), decay
        for name, parameter in self.live.items():
            self.register_buffer(_plain(name), parameter.detach().clone())

    @torch.no_grad()
    def settle(self, collective: Collective) -> None:
        """Take in the parameters once; they are the same on all ranks."""
        for name, parameter in self.live.items():
            self.get_buffer(_plain(name)).mul_(self.decay).add_(parameter, alpha=1 - self.decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Set the averages to the parameters."""
        for name, parameter in self.live.items():
            self.get_buffer(_plain(name)).copy_(parameter)

    def values(self) -> dict[str, Tensor]:
        """Return name → average."""
        return {name: self.get_buffer(_plain(name)) for name in self.live}


class MovingAverage(OldTensors):
    """Old experiences are predicted with a moving average of the shared parameters, the current one with the latest.

    The average that predicts begins as what the first experience leaves, since before there is no old task, and takes in every step
    after; what it took in during the first experience is dropped then.
    """

    def __init__(self, model: Model, options: SharingOptions) -> None:
        super().__init__(model, options)
        decay = EMA_DECAY if options.ema_decay is None else options.ema_decay
        self.averages = own(Averages(self.parameters(), decay), AVERAGE)
        model.add_module("shared_average", self.averages)
        self.learnt: list[str] = []
        self.current = ""

    def active(self, patterns: tuple[str, ...], experience: Experience) -> tuple[str, ...]:
        """Return the patterns and that of the averages."""
        return (*patterns, AVERAGE)

    def begin(self, experience: Experience) -> None:
        """Note which experience is current.

        Raises:
            ConfigError: the model creates shared parameters as it grows, which would have no average.
        """
        added = sorted(self.parameters().keys() - self.averages.live.keys())
        if added:
            raise ConfigError(
                f"method.shared=ema: {added[0]} was created after the model was built; use another policy"
            )
        self.current = experience.name

    def finish(self, experience: Experience) -> None:
        """Begin the average with what the first experience left."""
        if not self.learnt:
            self.averages.restart()
        self.learnt = [*self.learnt, experience.name]

    def old(self, experience: str) -> Mapping[str, Tensor]:
        """Return the averages for an experience before the current one."""
        return self.averages.values() if experience in self.learnt and experience != self.current else {}

    def state(self) -> dict[str, Any]:
        """Return which experiences are learnt, and which is current; the averages are owned tensors."""
        return {"learnt": self.learnt, "current": self.current}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.learnt, self.current = list(state["learnt"]), state["current"]


class NearPrevious(Sharing):
    """L2-SP (Li et al. 2018) with the experience before as the starting point: λ‖θ_s − θ_s^(t−1)‖², none in the first one."""

    def __init__(self, model: Model, options: SharingOptions) -> None:
        super().__init__(model, options)
        self.weight = L2SP_WEIGHT if options.l2sp_weight is None else options.l2sp_weight
        self.reference: dict[str, Tensor] = {}

    def finish(self, experience: Experience) -> None:
        """Take the shared parameters as the next experience's reference."""
        self.reference = {name: parameter.detach().clone() for name, parameter in self.parameters().items()}

    def parts(self, batch: Batch) -> dict[str, Tensor]:
        """Return this batch's share of the penalty, ``l2sp``, over the shared parameters that learn now."""
        live = {name: self.model.get_parameter(name) for name in self.reference}
        terms = [(p - self.reference[name]).square().sum() for name, p in live.items() if p.requires_grad]
        return {"l2sp": self.weight * torch.stack(terms).sum() * batch.row_share} if terms else {}

    def state(self) -> dict[str, Any]:
        """Return the reference."""
        return {"reference": self.reference}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the reference."""
        self.reference = placed(state["reference"], self.model)


SHARING: Mapping[str, type[Sharing]] = {
    "latest": Sharing,
    "frozen_after_first": FrozenAfterFirst,
    "snapshot": Snapshots,
    "ema": MovingAverage,
    "l2sp": NearPrevious,
}
"""Name of a policy → its class."""


class _Call(nn.Module):
    """Anything that is done with a model, as a module, so that it can be called with other tensors."""

    def __init__(self, model: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self) -> Any:
        return self.function()


def with_tensors(model: nn.Module, tensors: Mapping[str, Tensor], function: Callable[[], R]) -> R:
    """Return what ``function`` does while ``tensors`` stand in the places of the model's; nothing is copied or changed.

    Unlike :class:`~avcl_core.ownership.Snapshot` this is not one forward pass: routing and generation see the tensors as well.
    """
    if not tensors:
        return function()
    return functional_call(_Call(model, function), {f"model.{name}": value for name, value in tensors.items()}, ())


def _plain(name: str) -> str:
    """Return the name of a parameter as that of a buffer, which has no dots."""
    return name.replace(".", "/")
