"""What a second is by sight and sound together: the fused similarity to a task's texts that PHP classifies by."""

from __future__ import annotations

import torch
from torch import Tensor

from avcl_core.features import Features
from avcl_core.precision import precise

WEIGHTS = {"visual": 2.0, "audio": 2.0}
"""Weight of each modality's similarity in the logits (php.md 3.7)."""


def fused(features: Features) -> Tensor:
    """Return logits 2·visual + 2·audio similarity ``[b, T, K]``, float32 at least."""
    return torch.stack([weight * precise(features.similarity[name]) for name, weight in WEIGHTS.items()]).sum(0)
