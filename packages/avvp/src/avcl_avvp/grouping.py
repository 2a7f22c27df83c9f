"""Grouping of segments by learnable class tokens (MGN, Mo and Tian, NeurIPS 2022; tasks.md 2.4): the blocks of the AVVP head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from avcl_core.precision import precise

HEADS = 8
"""Heads of every attention but the assignment, which has one."""
DROP_PATH = 0.1
"""Rate of stochastic depth, the same in every transformer block."""


def mlp(inputs: int, hidden: int) -> nn.Sequential:
    """Return Linear, GELU, Linear back to ``inputs``."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, inputs))


class TransformerBlock(nn.Module):
    """A pre-norm block over ``[b, n, d]``: x + MHA(LN(x)), then + MLP(LN(·)), both residuals with stochastic depth."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = mlp(width, 4 * width)
        self.drop = StochasticDepth(DROP_PATH, "row")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[b, n, d]``."""
        y = self.attention_norm(x)
        x = x + self.drop(self.attention(y, y, y, need_weights=False)[0])
        return x + self.drop(self.mlp(self.mlp_norm(x)))


class CrossAttentionBlock(nn.Module):
    """Queries read segments: p + MHA(p, x) without norms before, then + MLP(LN(·)), then LN."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = mlp(width, 4 * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, p: Tensor, x: Tensor) -> Tensor:
        """Return ``[b, g, d]`` for queries ``[b, g, d]`` and segments ``[b, n, d]``."""
        p = p + self.attention(p, x, x, need_weights=False)[0]
        return self.norm(p + self.mlp(self.mlp_norm(p)))


class Assignment(nn.Module):
    """One-head attention in which segments choose among groups: the softmax is over the groups.

    A = softmax over groups of q kᵀ d^−½ with q from the groups and k from the segments; Â = A / (Σ_segments A + 1), the
    result is proj(Â v). ``hard`` makes A one-hot per segment with the gradient of the soft one (straight-through), and adds
    Gumbel noise (τ = 1) in training.
    """

    def __init__(self, width: int, hard: bool) -> None:
        super().__init__()
        self.hard = hard
        self.query, self.key, self.value, self.project = (nn.Linear(width, width) for _ in range(4))

    def forward(self, groups: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result ``[b, g, d]`` and A ``[b, g, n]`` for groups ``[b, g, d]`` and segments ``[b, n, d]``."""
        query, key, value = self.query(groups), self.key(segments), self.value(segments)
        scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        chosen = self._assign(precise(scores))
        weights = chosen / (chosen.sum(2, keepdim=True) + 1)
        return self.project(weights.to(value.dtype) @ value), chosen

    def _assign(self, scores: Tensor) -> Tensor:
        if not self.hard:
            return scores.softmax(1)
        if self.training:
            return functional.gumbel_softmax(scores, tau=1.0, hard=True, dim=1)
        soft = scores.softmax(1)
        chosen = torch.zeros_like(soft).scatter(1, soft.argmax(1, keepdim=True), 1.0)
        return chosen - soft.detach() + soft


class GroupingBlock(nn.Module):
    """Segments gathered into as many groups as there are group tokens.

    t ← LN(t), x ← LN(x), p = LN(MLP(t)) with the MLP over the token axis, p ← CrossAttentionBlock(p, x),
    new = Assignment(p, x) + p, and the groups are new + MLP(LN(new)).

    Args:
        width: d.
        tokens: number of group tokens, 25 classes or 10 segments.
        hard: see :class:`Assignment`.

    The MLP over tokens has d/2 hidden units (64 in the publications, whatever the number of tokens), so it scales with d.
    """

    def __init__(self, width: int, tokens: int, hard: bool = False) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(width)
        self.segment_norm = nn.LayerNorm(width)
        self.token_mlp = mlp(tokens, width // 2)
        self.query_norm = nn.LayerNorm(width)
        self.read = CrossAttentionBlock(width)
        self.assign = Assignment(width, hard)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = mlp(width, 4 * width)

    def forward(self, segments: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the groups ``[b, g, d]`` and the assignment ``[b, g, n]`` of segments ``[b, n, d]`` to tokens ``[b, g, d]``."""
        tokens, segments = self.token_norm(tokens), self.segment_norm(segments)
        groups = self.query_norm(self.token_mlp(tokens.transpose(1, 2)).transpose(1, 2))
        groups = self.read(groups, segments)
        gathered, assignment = self.assign(groups, segments)
        new = gathered + groups
        return new + self.mlp(self.mlp_norm(new)), assignment


class ModalityTrans(nn.Module):
    """Segments and group tokens seen together by transformer blocks, then the segments grouped by the tokens.

    Args:
        width: d.
        depth: number of transformer blocks.
        tokens: number of group tokens.
        others: number of segments of another modality that the segments are first assigned to, hard; 0 for none.
    """

    def __init__(self, width: int, depth: int, tokens: int, others: int = 0) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(TransformerBlock(width) for _ in range(depth)))
        self.cross = GroupingBlock(width, others, hard=True) if others else None
        self.group = GroupingBlock(width, tokens)

    def forward(self, segments: Tensor, tokens: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Group ``segments`` ``[b, n, d]`` by ``tokens`` ``[b, g, d]``, with the other modality's segments ``[b, n, d]``.

        Returns:
            the groups ``[b, g, d]``, and M = 1 + softmax over segments of the assignment ``[b, g, n]``, in (1, 2).
        """
        both = self.blocks(torch.cat([segments, tokens], 1))
        segments, tokens = both.split([segments.shape[1], tokens.shape[1]], 1)
        if self.cross is not None and other is not None:
            segments, _ = self.cross(segments, other)
        groups, assignment = self.group(segments, tokens)
        return groups, 1 + assignment.softmax(2)
