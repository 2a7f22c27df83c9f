"""Experts: bottlenecks that read the other modality through latent tokens (cross-modal) or their own stream alone (unimodal)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avcl_core.clipnorm import ClipNorm
from avcl_core.precision import unmixed

UniAttention = Literal["none", "latent", "temporal", "dense"]
HEADS, DROPOUT = 4, 0.2
CHUNK = 256


@dataclass(frozen=True)
class ExpertShape:
    """Sizes of the experts of one adapter.

    Attributes:
        width: channels C of the stream.
        reduction: C / r channels in the bottleneck.
        groups: contiguous channel blocks that the bottleneck's maps keep apart.
        latents: number of latent tokens.
        norm: batch norms in the bottleneck, over the tokens of a clip.
        uni_attention: what a unimodal expert does before its bottleneck (avmoe.md 3.5).
        uni_activation: whether a unimodal bottleneck has a ReLU.
    """

    width: int
    reduction: int
    groups: int
    latents: int
    norm: bool = False
    uni_attention: UniAttention = "latent"
    uni_activation: bool = False

    def __post_init__(self) -> None:
        narrow = self.width // self.reduction
        if self.width % self.reduction or self.width % self.groups or narrow % self.groups:
            raise ValueError(
                f"width {self.width} cannot be reduced by {self.reduction} in {self.groups} groups; both must divide it"
            )


class Grouped(nn.Module):
    """Weight ``[C_out, C_in / g]`` of a linear map that acts on ``g`` contiguous channel blocks, without bias."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)


class Expert(nn.Module):
    """The parameters of one expert; :class:`Cross` and :class:`Uni` compute all experts of a kind at once."""

    def __init__(self, shape: ExpertShape, latents: bool, temporal: bool = False, dense: bool = False) -> None:
        super().__init__()
        width, narrow = shape.width, shape.width // shape.reduction
        if latents:
            self.latents = nn.Parameter(torch.rand(shape.latents, width))
        self.reads = latents or dense
        """Whether the expert attends before its bottleneck, through an inner gate."""
        if self.reads:
            self.inner_gate = nn.Parameter(torch.zeros(()))
        if temporal:
            self.attention = nn.MultiheadAttention(width, HEADS, DROPOUT, batch_first=True)
        self.norm_before, self.norm_after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.down, self.up = Grouped(width, narrow, shape.groups), Grouped(narrow, width, shape.groups)
        if shape.norm:
            self.bottleneck_in, self.bottleneck_out = ClipNorm(narrow), ClipNorm(width)
        self.output_gate = nn.Parameter(torch.zeros(()))


def summarise(latents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Latents ``[E, L, C]`` take in what they attend to among ``tokens`` ``[B, N, C]``, unscaled and without projections.

    Returns:
        latents ``[B, E, L, C]``, and the attention ``[B, E·L, N]``.
    """
    flat = latents.flatten(0, 1)
    attention = _scores(flat, tokens).softmax(-1)
    found = flat + attention.to(tokens.dtype) @ tokens
    return found.unflatten(1, latents.shape[:2]), attention


def consult(tokens: Tensor, latents: Tensor, gates: Tensor) -> Tensor:
    """Every token ``[B, N, C]`` reads the latents ``[B, E, L, C]`` of each expert, through its gate ``[E]``: ``[B, E, N, C]``."""
    scores = _scores(tokens, latents.flatten(1, 2)).unflatten(-1, latents.shape[1:3])
    attention = scores.transpose(1, 2).softmax(-1).to(latents.dtype)
    return tokens.unsqueeze(1) + gates.view(-1, 1, 1) * (attention @ latents)


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Unscaled products ``[…, N, M]``; of wide tokens they leave the range of half precision."""
    with unmixed(queries):
        dtype = torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)
        return queries.to(dtype) @ keys.to(dtype).mT


class Bottlenecks:
    """The common tail of the experts of one kind, computed together (avmoe.md 3.4, 3.9 rewrite 5).

    Args:
        experts: the experts; the adapter registers them, this only computes with them.
        relu: whether there is a ReLU between the two maps.
    """

    def __init__(self, experts: Sequence[Expert], shape: ExpertShape, relu: bool) -> None:
        self.experts, self.shape, self.relu = tuple(experts), shape, relu

    def stack(self, name: str) -> Tensor:
        """Return a parameter of all experts, ``[E, …]``."""
        found: list[Tensor] = [expert.get_parameter(name) for expert in self.experts]
        return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found)

    def tail(self, tokens: Tensor, frames: int) -> Tensor:
        """Norm, bottleneck and second norm without its affine part: ``[B, E or 1, N, C]`` → ``[B, E, N, C]``."""
        groups, width = self.shape.groups, self.shape.width
        normed = F.layer_norm(tokens, (width,))
        # The first norm's affine part moves into the map that follows: W (n·w + b) = (W·w) n + W b.
        weight = self.stack("down.weight").unflatten(1, (groups, -1))  # [E, g, K/g, C/g]
        gain, shift = (self.stack(f"norm_before.{part}").unflatten(1, (groups, 1, -1)) for part in ("weight", "bias"))
        hidden = _grouped(normed, weight * gain) + (weight * shift).sum(-1).flatten(1).unsqueeze(1)
        if self.shape.norm:
            hidden = self._norm("bottleneck_in", hidden, frames)
        if self.relu:
            hidden = F.relu(hidden)
        out = _grouped(hidden, self.stack("up.weight").unflatten(1, (groups, -1)))
        if self.shape.norm:
            out = self._norm("bottleneck_out", out, frames)
        return F.layer_norm(out, (width,))

    def _norm(self, name: str, tokens: Tensor, frames: int) -> Tensor:
        parts = [expert.get_submodule(name)(tokens[:, e], frames) for e, expert in enumerate(self.experts)]
        return torch.stack(parts, 1) if len(parts) > 1 else parts[0].unsqueeze(1)

    def mix(self, normed: Tensor, weights: Tensor) -> Tensor:
        """Return Σ_e w_e γ_e (n_e·gain_e + bias_e) ``[B, N, C]`` of tails ``[B, E, N, C]`` and router weights ``[B, E]``."""
        scale = (weights * self.stack("output_gate")).to(normed.dtype)
        gain, bias = self.stack("norm_after.weight"), self.stack("norm_after.bias")
        total = (scale @ bias.to(scale.dtype)).unsqueeze(1)
        for e in range(normed.shape[1]):
            total = torch.addcmul(total, normed[:, e], (scale[:, e, None] * gain[e]).unsqueeze(1))
        return total

    def outputs(self, normed: Tensor) -> Tensor:
        """Return every expert's own output ``[B, E, N, C]``, gate applied, from its tail."""
        gain, bias, gate = (self.stack(n) for n in ("norm_after.weight", "norm_after.bias", "output_gate"))
        return gate.view(-1, 1, 1) * (normed * gain.unsqueeze(1) + bias.unsqueeze(1))


def _grouped(tokens: Tensor, weight: Tensor) -> Tensor:
    """``[B, E or 1, N, g·i]`` times ``[E, g, o, i]`` → ``[B, E, N, g·o]``."""
    blocks = tokens.unflatten(-1, (weight.shape[1], -1))
    if tokens.shape[1] == 1 and len(weight) > 1:
        return torch.einsum("bnji,ejoi->benjo", blocks[:, 0], weight).flatten(3)
    return torch.einsum("benji,ejoi->benjo", blocks, weight).flatten(3)


class Cross(Bottlenecks):
    """Cross-modal experts: latents summarise the other modality, own tokens read them (avmoe.md 3.4)."""

    def __init__(self, experts: Sequence[Expert], shape: ExpertShape) -> None:
        super().__init__(experts, shape, relu=True)

    def tails(self, own: Tensor, aligned: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Return the tails ``[B, E, N, C]``, and the latents' attention over the other modality ``[B, E·L, N]``."""
        latents, attention = summarise(self.stack("latents"), aligned)
        return self.tail(consult(own, latents, self.stack("inner_gate")), frames), attention


class Uni(Bottlenecks):
    """Unimodal experts (avmoe.md 3.5)."""

    def __init__(self, experts: Sequence[Expert], shape: ExpertShape) -> None:
        super().__init__(experts, shape, relu=shape.uni_activation)

    def tails(self, own: Tensor, frames: int) -> Tensor:
        """Return the tails ``[B, E, N, C]``."""
        kind = self.shape.uni_attention
        if kind == "latent":
            latents, _ = summarise(self.stack("latents"), own)
            return self.tail(consult(own, latents, self.stack("inner_gate")), frames)
        if kind == "temporal":
            return self.tail(torch.stack([_over_frames(e.attention, own, frames) for e in self.experts], 1), frames)
        if kind == "dense":
            gates = self.stack("inner_gate").view(-1, 1, 1)
            return self.tail(own.unsqueeze(1) + gates * transposed_attention(own).unsqueeze(1), frames)
        return self.tail(own.unsqueeze(1), frames)


def _over_frames(attention: nn.Module, tokens: Tensor, frames: int) -> Tensor:
    """Self-attention over the frames of a clip, separately for each spatial token, without residual."""
    clips = tokens.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # [b·N, T, C]
    found = attention(clips, clips, clips, need_weights=False)[0]
    return found.unflatten(0, (-1, tokens.shape[1])).transpose(1, 2).flatten(0, 1)


def transposed_attention(tokens: Tensor) -> Tensor:
    """``Sᵀ x`` with S = row-softmax(x xᵀ), streamed in blocks of rows, so that no N × N matrix is kept (avmoe.md 3.5)."""
    total = torch.zeros_like(tokens)
    for rows in tokens.split(CHUNK, 1):
        total = total + _scores(rows, tokens).softmax(-1).to(tokens.dtype).mT @ rows
    return total
