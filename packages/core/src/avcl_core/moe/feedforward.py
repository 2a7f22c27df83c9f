"""Feed-forward experts: copies of a frozen tower's own MLP that take its place, whole or as low-rank differences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avcl_core.errors import ConfigError
from avcl_core.moe.stowed import Stowed
from avcl_core.routing import BASE
from avcl_core.sites import Bank
from avcl_core.walk import Ctx


class Experts(Bank):
    """Experts in the place of one MLP, ``ctx.slots`` choosing for each row; rows of :data:`avcl_core.routing.BASE` go through the tower's own.

    Args:
        base: the MLP, which stays the tower's: no parameter of it is registered here.
        rank: of the low-rank experts; ``None``: whole copies.
        scale: factor on what low-rank experts add.
        disk: folder in which experts rest that neither learn nor are asked; ``None``: all stay on the device.
    """

    def __init__(self, base: nn.Module, rank: int | None = None, scale: float = 1.0, disk: Path | None = None) -> None:
        make: Callable[[], nn.Module] = (lambda: Whole(base)) if rank is None else (lambda: LowRank(base, rank, scale))
        super().__init__(make, "expert")
        self._base = (base,)
        self.stowed = None if disk is None else Stowed(disk)

    def grow(self, slot: str, like: str | None = None) -> None:
        """Add an expert; with a folder on disk, all others rest there from now on."""
        super().grow(slot, like)
        if self.stowed is not None:
            for name, module in self.slots.items():
                if name != slot:
                    self.stowed.put(module)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Experts:
        """As of every module, but what rests on disk does not follow to another device."""
        stowed = self.stowed
        if stowed is None:
            return super()._apply(fn, recurse)
        return super()._apply(lambda tensor: tensor if stowed.rests(tensor) else fn(tensor), recurse)

    def tensors(self, slot: str) -> dict[str, Tensor]:
        """Return the tensors of an expert by the linear map that they belong to: ``<map>``, or ``<map>.lora_A`` and ``.lora_B``."""
        found = self.slots[slot]
        if isinstance(found, LowRank):
            return {
                f"{name}.{kind}": value
                for name, part in found.maps.items()
                for kind, value in (("lora_A", part.get_parameter("down")), ("lora_B", part.get_parameter("up")))
            }
        return {name.removeprefix("mlp.").removesuffix(".weight"): value for name, value in found.named_parameters()}

    def forward(self, own: Tensor, other: Tensor | None, ctx: Ctx) -> Tensor:
        """Return the experts' outputs ``[B, N, C]`` for hidden tokens."""
        if self.stowed is not None and ctx.slots is not None:
            asked = [self.slots[name] for name in dict.fromkeys(ctx.slots) if name in self.slots]
            self.stowed.use(asked, own.device)
        if ctx.slots is None or BASE not in ctx.slots:
            return _tensor(super().forward(own, other, ctx))
        plain = torch.tensor([slot == BASE for slot in ctx.slots], device=own.device)
        if bool(plain.all()):
            return self._base[0](own)
        chosen = tuple(slot for slot in ctx.slots if slot != BASE)
        trace = None if ctx.trace is None else ctx.trace.of((~plain).nonzero().flatten(), len(own))
        found = _tensor(super().forward(own[~plain], None, replace(ctx, slots=chosen, trace=trace, counts=None)))
        out = own.new_empty(own.shape, dtype=found.dtype)
        out[plain], out[~plain] = self._base[0](own[plain]).to(found.dtype), found
        return out


def _tensor(found: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    assert isinstance(found, Tensor)
    return found


class Whole(nn.Module):
    """A trainable copy of an MLP: every expert starts from the same frozen one (avqacl_moe.md 3.3)."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.mlp = copy.deepcopy(base)
        for parameter in self.mlp.parameters():
            parameter.requires_grad_(True)

    def forward(self, own: Tensor, other: Tensor | None, ctx: Ctx) -> Tensor:
        """Return the copy's output."""
        return self.mlp(own)


class Low(nn.Module):
    """What is added to a frozen linear map: ``scale · B A x`` with A ``[r, inputs]`` and B ``[outputs, r]``, B zero at first.

    LoRA (Hu et al., ICLR 2022). ``peft`` has it too, but keeps the frozen map inside its module: it would count as owned by the expert,
    and be stored with it.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self._base, self.scale = (base,), scale
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the frozen map's output with the difference."""
        return self._base[0](x) + self.scale * F.linear(F.linear(x, self.down), self.up)


class LowRank(nn.Module):
    """An MLP whose linear maps are the frozen ones plus low-rank differences; everything else of it is shared.

    Raises:
        ConfigError: the MLP has no linear maps as parts.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float) -> None:
        super().__init__()
        parts = {name: part for name, part in base.named_children() if isinstance(part, nn.Linear)}
        if not parts:
            raise ConfigError(f"experts: {type(base).__name__} has no linear maps to add low-rank differences to")
        self.maps = nn.ModuleDict({name: Low(part, rank, scale) for name, part in parts.items()})
        shell = copy.copy(base)
        # The copy computes as the original does, but looks its parts up in a table of its own.
        shell._modules = {**base._modules, **self.maps._modules}
        self._shell = (shell,)

    def forward(self, own: Tensor, other: Tensor | None, ctx: Ctx) -> Tensor:
        """Return the output with the differences."""
        return self._shell[0](own)


Layers = Literal["even", "odd", "all"] | tuple[int, ...]
"""Blocks that have experts."""


def blocks_of(layers: Layers, depth: int) -> tuple[int, ...]:
    """Return the numbers of the blocks; ConfigError where one does not exist or is named twice."""
    if isinstance(layers, str):
        return tuple(range(depth))[{"even": slice(0, None, 2), "odd": slice(1, None, 2), "all": slice(None)}[layers]]
    if len(set(layers)) != len(layers) or not set(layers) <= set(range(depth)):
        raise ConfigError(f"model.layers: {list(layers)}; expected different blocks from 0 to {depth - 1}")
    return tuple(sorted(layers))
