"""Resampling of one modality's tokens to the other's shape: a dense map over tokens and one over channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Align(nn.Module):
    """``ô = (W_t o + b_t 1ᵀ) W_cᵀ + b_c`` (AVMOE, avmoe.md 3.3): tokens ``[B, M, D]`` → ``[B, N, C]``.

    The two maps commute up to the bias of the first, so the cheaper order is taken (3.9, rewrite 1).

    Args:
        source: tokens and width of what is resampled, (M, D).
        target: tokens and width of the result, (N, C).
        rank: rank of the token map, ``None`` for a dense one. Not the paper's model.
    """

    def __init__(self, source: tuple[int, int], target: tuple[int, int], rank: int | None = None) -> None:
        super().__init__()
        (m, d), (n, c) = source, target
        if rank is None:
            self.token = nn.Linear(m, n)
        else:
            self.token_in, self.token_out = nn.Linear(m, rank, bias=False), nn.Linear(rank, n)
        self.channel = nn.Linear(d, c)
        self.rank = rank
        inner = m * n if rank is None else rank * (m + n)
        self.channels_first = m * d * c + inner * c < inner * d + n * d * c

    def forward(self, other: Tensor) -> Tensor:
        """Resample ``[B, M, D]`` to ``[B, N, C]``."""
        if not self.channels_first:
            return self.channel(self._mix(other.mT, bias=True).mT)
        narrow = F.linear(other, self.channel.weight)
        return self._mix(narrow.mT, bias=False).mT + self._bias()

    def mean(self, other: Tensor) -> Tensor:
        """Return the mean of ``ô`` over its tokens, ``[B, C]``, without computing ``ô`` (3.9, rewrite 6)."""
        column = (
            self.token.weight.mean(0) if self.rank is None else self.token_out.weight.mean(0) @ self.token_in.weight
        )
        return F.linear((column.unsqueeze(0) @ other).squeeze(1), self.channel.weight) + self._bias().mean(0)

    def _mix(self, channels: Tensor, bias: bool) -> Tensor:
        """The token map on ``[B, channels, M]``."""
        last = self.token if self.rank is None else self.token_out
        inner = channels if self.rank is None else self.token_in(channels)
        return F.linear(inner, last.weight, last.bias if bias else None)

    def _bias(self) -> Tensor:
        """What the two biases add to ``ô``, ``[N, C]``."""
        bias = self.token.bias if self.rank is None else self.token_out.bias
        return bias.unsqueeze(1) * self.channel.weight.sum(1) + self.channel.bias
