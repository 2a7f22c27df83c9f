"""The router: dense weights over all experts from the mean tokens of both modalities, and the loss that balances them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avcl_core.sites import SiteModule
from avcl_core.walk import Ctx


class Router(SiteModule):
    """An MLP from concatenated mean tokens to one logit per expert (AVMOE, avmoe.md 3.6).

    Args:
        width: channels of the own tokens; the resampled other tokens have as many.
        experts: number of experts.
    """

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(2 * width, 128), nn.Linear(128, 32), nn.Linear(32, experts)

    def forward(self, own: Tensor, other: Tensor | None, ctx: Ctx) -> Tensor:
        """Return logits ``[B, E]`` from mean tokens ``[B, C]`` of both streams, own stream first."""
        if other is None:
            raise ValueError("a router reads both streams; this walk has one")
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(torch.cat((own, other), -1))))))


def balance(weights: Tensor) -> Tensor:
    """Return KL(uniform ‖ p̄), zero where all experts carry the same weight (avmoe.md 3.6).

    Args:
        weights: router weights ``[..., R, E]``; p̄ is their mean over R.

    Returns:
        One value per leading index.
    """
    mean = weights.float().mean(-2) if weights.dtype != torch.float64 else weights.mean(-2)
    return -mean.log().mean(-1) - math.log(mean.shape[-1])
