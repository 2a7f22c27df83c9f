"""How the ranks of a distributed run add up gradients and join rows, so that N processes equal one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Collective:
    """The collective of a single process; the base of the distributed one."""

    rank, world = 0, 1

    def gather(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows of all ranks."""
        return dict(values)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all ranks in place."""

    def sum_number(self, value: float) -> float:
        """Add up a number over ranks."""
        return value

    def sum_tensor(self, value: Tensor) -> Tensor:
        """Add up a tensor over ranks, without gradient."""
        return value

    def join(self, value: Any) -> list[Any]:
        """Return one Python object per rank."""
        return [value]

    def barrier(self) -> None:
        """Wait for all ranks."""


class Distributed(Collective):
    """The ranks of the default process group."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.device = device  # a backend reduces tensors of its own device only

    def gather(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows of all ranks in rank order; gradients flow back to the rank that computed a row."""
        return {name: self._gather(value) for name, value in values.items()}

    def _gather(self, value: Tensor) -> Tensor:
        from torch.distributed.nn.functional import all_gather

        counts = [int(count) for count in self.join(len(value))]
        longest = max(counts)
        padded = torch.cat([value, value.new_zeros(longest - len(value), *value.shape[1:])])
        if value.dtype.is_floating_point:
            parts = list(all_gather(padded))
        else:
            parts = [torch.empty_like(padded) for _ in counts]
            torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up gradients in one flat bucket per type; a tensor without a gradient on every rank keeps none."""
        parameters = list(parameters)
        if not parameters:
            return
        present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
        torch.distributed.all_reduce(present, op=torch.distributed.ReduceOp.MAX)
        live = [p for p, has in zip(parameters, present.tolist(), strict=True) if has]
        for dtype in dict.fromkeys(p.dtype for p in live):  # in table order on every rank
            bucket = [p for p in live if p.dtype == dtype]
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
            flat = torch.cat([g.reshape(-1) for g in grads])
            torch.distributed.all_reduce(flat)
            for parameter, part in zip(bucket, flat.split([g.numel() for g in grads]), strict=True):
                parameter.grad = part.view_as(parameter).clone()

    def sum_number(self, value: float) -> float:
        """Add up a number over ranks in float64."""
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return float(total)

    def sum_tensor(self, value: Tensor) -> Tensor:
        """Add up a tensor over ranks, without gradient."""
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    def join(self, value: Any) -> list[Any]:
        """Return one Python object per rank."""
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait for all ranks."""
        torch.distributed.barrier()


def current(device: torch.device | str = "cpu") -> Collective:
    """Return the collective of this process."""
    active = torch.distributed.is_available() and torch.distributed.is_initialized()
    return Distributed(device) if active and torch.distributed.get_world_size() > 1 else Collective()
