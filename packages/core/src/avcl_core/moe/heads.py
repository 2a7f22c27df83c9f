"""Heads of experts: what each expert has of a task's head for its own, a copy of some parts of it or a whole one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from avcl_core.batch import Batch, Outputs, concatenate
from avcl_core.features import Features
from avcl_core.ownership import own


class Parts(nn.Module):
    """Named parts of a head, without the rest of it.

    Args:
        names: dotted names of submodules.
        head: where they are taken from.
    """

    def __init__(self, names: Sequence[str], head: nn.Module) -> None:
        super().__init__()
        self.names = tuple(names)
        self.parts = nn.ModuleList(head.get_submodule(name) for name in names)

    def tensors(self) -> dict[str, Tensor]:
        """Return name in the head → parameter or buffer."""
        return {
            f"{name}.{inner}": tensor
            for name, part in zip(self.names, self.parts, strict=True)
            for inner, tensor in (*part.named_parameters(), *part.named_buffers())
        }


class ExpertHeads(nn.Module):
    """One task's heads by slot, owned by ``expert:<slot>``; a slot that has none reads with the first one's.

    A sample that is sent to an expert of another task is still asked this task's question, and that expert never learnt an answer
    to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slots = nn.ModuleDict()

    def grow(self, slot: str, head: nn.Module) -> None:
        """Take a slot's head, or :class:`Parts` of one; what a slot has is kept."""
        if slot not in self.slots:
            self.slots[slot] = own(head, f"expert:{slot}")

    def of(self, slot: str) -> str:
        """Return the slot whose head a slot reads with."""
        return slot if slot in self.slots else next(iter(self.slots))

    def forward(self, features: Features, batch: Batch, slots: Sequence[str], common: nn.Module | None) -> Outputs:
        """Return the outputs of a batch.

        Args:
            slots: one per sample.
            common: the task's head, in which slots have parts of their own; ``None``: they have whole ones.
        """
        names = [self.of(slot) for slot in slots]
        found = list(dict.fromkeys(names))
        if len(found) == 1:
            return self._read(found[0], features, batch, common)
        outputs, order = [], []
        for name in found:
            index = [row for row, other in enumerate(names) if other == name]
            rows = torch.tensor(index, device=next(iter(features.final.values())).device)
            outputs.append(self._read(name, features.select(rows), batch.select(index), common))
            order.append(rows)
        back = torch.argsort(torch.cat(order))
        return {name: value[back] for name, value in concatenate(outputs).items()}

    def _read(self, slot: str, features: Features, batch: Batch, common: nn.Module | None) -> Outputs:
        head = self.slots[slot]
        if common is None or not isinstance(head, Parts):
            return head(features, batch)
        return functional_call(common, head.tensors(), (features, batch))
