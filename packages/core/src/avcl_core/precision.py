"""Parts of a forward pass that mixed precision must not touch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def unmixed(value: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off for the device of ``value``; the meta device, on which sizes are counted, has none."""
    return nullcontext() if value.is_meta else torch.autocast(value.device.type, enabled=False)


def precise(scores: Tensor) -> Tensor:
    """Return scores in float32 at least: in bfloat16, classes tie, and thresholds and noise are coarse."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosines ``[n, m]`` of vectors ``[n, D]`` and ``[m, D]``, at least in float32: they are scaled by up to 100, or
    the largest is chosen."""
    with unmixed(one):
        dtype = torch.promote_types(torch.promote_types(one.dtype, other.dtype), torch.float32)
        return F.normalize(one.to(dtype), dim=-1) @ F.normalize(other.to(dtype), dim=-1).T
