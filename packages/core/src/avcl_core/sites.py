"""Modules that act at sites of the walk, and banks that hold one copy of a module per task or expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from avcl_core.collective import Collective
from avcl_core.ownership import own
from avcl_core.walk import Ctx

Rows = tuple[Tensor, Tensor]
"""Key rows and value rows ``[B, n, C]`` of a prefix, in token space."""


class SiteModule(nn.Module):
    """A trainable module at a site.

    ``forward(own, other, ctx)`` takes the tower's own tokens ``[B, N, C]`` and the other tower's at the same depth (or
    ``None``) and returns, by place: ``input`` and ``add`` a tensor like ``own``; ``prefix`` key and value rows
    ``[B, n, C]``; ``swap`` the MLP's output for hidden tokens ``own``.
    """

    reads: Literal["entry", "exit"] = "entry"
    """For place ``add``: whether the module reads the tokens that enter the step or those that leave it."""

    def forward(self, own: Tensor, other: Tensor | None, ctx: Ctx) -> Tensor | Rows:
        """Compute the module's contribution; see the class."""
        raise NotImplementedError(f"{type(self).__name__}.forward")


class Settling(nn.Module):
    """A module that gathers something over the micro-batches of a step, such as batch statistics."""

    def settle(self, collective: Collective) -> None:
        """Fold what was gathered since the last step, over all ranks, into the module's state."""
        raise NotImplementedError(f"{type(self).__name__}.settle")


class Bank(SiteModule):
    """One copy of a module per slot; ``ctx.slots`` chooses the copy for each row.

    Args:
        make: builds one copy.
        kind: owner kind of the copies, ``task`` or ``expert``: slot ``ave`` is owned by ``task:ave``.
        reads: as in :class:`SiteModule`.
    """

    def __init__(
        self, make: Callable[[], nn.Module], kind: Literal["task", "expert"], reads: Literal["entry", "exit"] = "entry"
    ) -> None:
        super().__init__()
        self.make, self.kind, self.reads = make, kind, reads
        self.slots = nn.ModuleDict()

    def grow(self, slot: str, like: str | None = None) -> None:
        """Add a copy for ``slot``; ``like`` names a slot whose values it starts from. A slot that exists is kept."""
        if slot in self.slots:
            return
        module = self.make()
        if like is not None:
            module.load_state_dict(self.slots[like].state_dict())
        self.slots[slot] = own(module, f"{self.kind}:{slot}")

    def forward(self, own: Tensor, other: Tensor | None, ctx: Ctx) -> Tensor | Rows:
        """Run the chosen copies; rows of a mixed batch are grouped by slot and put back in order.

        Raises:
            ValueError: the context has no slots, not one per row, or a slot that was never grown.
        """
        if ctx.slots is None or len(ctx.slots) != len(own):
            have = None if ctx.slots is None else len(ctx.slots)
            raise ValueError(f"a bank needs one slot per row: {len(own)} rows, {have} slots")
        names = list(dict.fromkeys(ctx.slots))
        unknown = [name for name in names if name not in self.slots]
        if unknown:
            raise ValueError(f"slots {unknown} were never grown; have {list(self.slots)}")
        if len(names) == 1:
            return self.slots[names[0]](own, other, ctx)
        parts, order = [], []
        for name in names:
            rows = torch.tensor([i for i, slot in enumerate(ctx.slots) if slot == name], device=own.device)
            trace = None if ctx.trace is None else ctx.trace.of(rows, len(own))
            narrowed = replace(ctx, slots=(name,) * len(rows), trace=trace, counts=None)
            parts.append(self.slots[name](own[rows], None if other is None else other[rows], narrowed))
            order.append(rows)
        back = torch.argsort(torch.cat(order))
        if isinstance(parts[0], tuple):
            keys, values = (torch.cat([part[i] for part in parts])[back] for i in (0, 1))
            return keys, values
        return torch.cat(parts)[back]
