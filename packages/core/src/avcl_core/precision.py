"""Parts of a forward pass that mixed precision must not touch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def unmixed(value: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off for the device of ``value``; the meta device, on which sizes are counted, has none."""
    return nullcontext() if value.is_meta else torch.autocast(value.device.type, enabled=False)
