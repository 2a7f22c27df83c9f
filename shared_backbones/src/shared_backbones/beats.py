"""BEATs' network (Chen et al., ICML 2023): patches, a convolution of positions, and blocks whose queries gate a relative bias."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_backbones.tower import Prefix

GATES = 8
"""Outputs of the gate's linear layer: two gates, each the sum of four."""


@dataclass(frozen=True)
class BeatsConfig:
    """Geometry (avqacl_moe.md 3.7): ``hidden`` of the MLPs, ``patch_width`` before the projection to ``width``.

    ``patch``: frames and mels of a square patch; ``kernel``, ``groups``: of the convolution of positions, in tokens; ``buckets``:
    of distances, half of them for keys behind the query; from distance ``reach`` on all share the last one.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch_width: int
    mels: int = 128
    patch: int = 16
    kernel: int = 128
    groups: int = 16
    buckets: int = 320
    reach: int = 800

    @property
    def alpha(self) -> float:
        """DeepNorm's weight of the tokens beside a residual branch (Wang et al. 2022)."""
        return (2 * self.depth) ** 0.25

    @property
    def beta(self) -> float:
        """DeepNorm's gain of the initial values inside a residual branch."""
        return (8 * self.depth) ** -0.25


def bucket(offsets: Tensor, buckets: int, reach: int) -> Tensor:
    """Bucket, int64, of each offset from query to key: single steps up to a quarter of the buckets, then logarithmic."""
    half = buckets // 2
    exact = half // 2
    size = offsets.abs()
    # The clamp keeps the logarithm finite where the other branch is taken.
    ratio = (size.clamp(min=exact).double() / exact).log() / math.log(reach / exact)
    far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return half * (offsets > 0).long() + torch.where(size < exact, size, far)


def token_padding(padding: Tensor, frames: int, tokens: int) -> Tensor:
    """Padded samples, bool [B, T] (true = padding), to padded tokens [B, tokens] by way of ``frames`` frames.

    At each of the two steps equal groups are formed, what is left over at the end is cut off, and a group is padding where all of it
    is. So the ends of a patch's mel bands differ by up to the patch's length.
    """

    def grouped(mask: Tensor, count: int) -> Tensor:
        size = mask.shape[1] // count
        return mask[:, : count * size].unflatten(1, (count, size)).all(2)

    return grouped(grouped(padding, frames), tokens)


class BeatsAttention(nn.Module):
    """Multi-head attention with a relative bias, weighed anew by every query of every head ("gated relative position")."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.grep_linear = nn.Linear(width // self.heads, GATES)
        self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))

    def gate(self, q: Tensor) -> Tensor:
        """Weight of the bias per head and query, [B, heads, L, 1], from queries [B, heads, L, head width] before scaling."""
        a, b = self.grep_linear(q).unflatten(-1, (2, GATES // 2)).sum(-1).sigmoid().split(1, -1)
        return a * (b * self.grep_a - 1) + 2

    def forward(self, x: Tensor, bias: Tensor, padding: Tensor | None, prefix: Prefix | None) -> Tensor:
        """[B, L, C] to [B, L, C]. ``bias`` [heads, L, L]; ``padding`` [B, L], true for keys that nobody sees; ``prefix`` rows
        [B, n, C] for keys and values, without place, so without bias, and always seen."""
        keys, values = (torch.cat((rows, x), 1) for rows in prefix) if prefix is not None else (x, x)

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q = split(self.q_proj(x))
        mask = self.gate(q) * bias
        if padding is not None:
            mask = mask.masked_fill(padding[:, None, None, :], -math.inf)
        mask = F.pad(mask, (keys.shape[1] - x.shape[1], 0))
        out = F.scaled_dot_product_attention(
            q, split(self.k_proj(keys)), split(self.v_proj(values)), attn_mask=mask.to(q.dtype)
        )
        return self.out_proj(out.transpose(1, 2).flatten(2))


class BeatsLayer(nn.Module):
    """Parts of one block under their published names; the tower puts them together."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.self_attn = BeatsAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)
        self.final_layer_norm = nn.LayerNorm(config.width)

    def mlp(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class BeatsEncoder(nn.Module):
    """Positions and blocks. All blocks share one table of biases."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_conv = nn.Conv1d(
            config.width, config.width, config.kernel, padding=config.kernel // 2, groups=config.groups
        )
        self.layer_norm = nn.LayerNorm(config.width)
        self.relative_attention_bias = nn.Embedding(config.buckets, config.heads)
        self.layers = nn.ModuleList(BeatsLayer(config) for _ in range(config.depth))

    def positioned(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L, C] with what the convolution says about their neighbourhood, normalised."""
        # An even kernel padded by half of it on both sides gives one step too many.
        around = self.pos_conv(tokens.transpose(1, 2))[..., : tokens.shape[1]]
        return self.layer_norm(tokens + F.gelu(around).transpose(1, 2))

    def bias(self, length: int) -> Tensor:
        """Bias of query i towards key j, [heads, length, length]."""
        table = self.relative_attention_bias.weight
        offsets = torch.arange(1 - length, length, device=table.device)
        by_offset = table[bucket(offsets, self.config.buckets, self.config.reach)].T
        # Row i is the window of offsets -i … length - 1 - i, so the last window comes first.
        return by_offset.unfold(1, length, 1).flip(1)


class BeatsBody(nn.Module):
    """The network with its published parameter names, but the weight norm of the convolution folded into its weight.

    Drawn as its authors do where it is trained from scratch (DeepNorm): Xavier values with gain 1 for queries and keys, β for
    values, outputs and MLPs.
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(1, config.patch_width, config.patch, config.patch, bias=False)
        self.layer_norm = nn.LayerNorm(config.patch_width)
        self.post_extract_proj = nn.Linear(config.patch_width, config.width)
        self.encoder = BeatsEncoder(config)
        for layer in self.encoder.layers:
            for name, module in layer.named_modules():
                if isinstance(module, nn.Linear) and not name.endswith("grep_linear"):
                    gain = 1.0 if name.endswith(("q_proj", "k_proj")) else config.beta
                    nn.init.xavier_normal_(module.weight, gain)
                    nn.init.zeros_(module.bias)
        nn.init.xavier_normal_(self.encoder.relative_attention_bias.weight)
        nn.init.normal_(self.encoder.pos_conv.weight, std=2 / math.sqrt(config.kernel * config.width))
        nn.init.zeros_(cast(Tensor, self.encoder.pos_conv.bias))

    def tokens(self, features: Tensor) -> Tensor:
        """Log-mel [B, 1, F, mels] to tokens [B, L, C] without positions: time by time, its mel bands innermost."""
        patches = self.patch_embedding(features).flatten(2).transpose(1, 2)
        return self.post_extract_proj(self.layer_norm(patches))
