"""Batch norm whose batch is one clip, so that results depend neither on micro-batches nor on ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avcl_core.collective import Collective
from avcl_core.sites import Settling


class ClipNorm(Settling):
    """Batch norm (Ioffe & Szegedy 2015) over the tokens of all frames of one clip, per channel.

    In training each clip is normalised by its own mean and variance; the running statistics take the mean of the clips'
    once per optimiser step (:meth:`settle`). In evaluation it is an ordinary batch norm.
    """

    running_mean: Tensor
    running_var: Tensor
    momentum, eps = 0.1, 1e-5

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.seen: list[tuple[int, Tensor, Tensor]] = []

    def forward(self, tokens: Tensor, frames: int) -> Tensor:
        """Normalise ``[b·T, N, C]``, ``frames`` consecutive rows of it at a time."""
        if not self.training:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(tokens.flatten(0, 1), mean, var, self.weight, self.bias, eps=self.eps).view_as(tokens)
        b, width = len(tokens) // frames, tokens.shape[-1]
        # Clips beside each other in the channels: one call for all of them.
        flat = tokens.reshape(b, -1, width).transpose(0, 1).reshape(-1, b * width)
        mean, var = (self.weight.new_zeros(b * width) for _ in range(2))
        weight, bias = self.weight.repeat(b), self.bias.repeat(b)
        out = F.batch_norm(flat, mean, var, weight, bias, training=True, momentum=1.0, eps=self.eps)
        self.seen.append((b, mean.view(b, width).sum(0), var.view(b, width).sum(0)))
        return out.view(-1, b, width).transpose(0, 1).reshape(tokens.shape)

    @torch.no_grad()
    def settle(self, collective: Collective) -> None:
        """Move the running statistics towards the mean over all clips that were seen since the last step."""
        seen, self.seen = self.seen, []
        own = self.running_mean.new_zeros(3, len(self.running_mean))
        for clips, mean, var in seen:
            own += torch.stack((torch.full_like(mean, clips), mean, var))
        clips, mean, var = collective.sum_tensor(own)
        # Where no rank saw a clip nothing moves; asking for that on the host would make every step wait for the device.
        weight, count = self.momentum * (clips > 0).to(clips.dtype), clips.clamp(min=1)
        self.running_mean.lerp_(mean / count, weight)
        self.running_var.lerp_(var / count, weight)
