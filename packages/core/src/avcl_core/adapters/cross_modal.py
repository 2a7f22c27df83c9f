"""A cross-modal adapter: own tokens read a summary of the other modality, are weighed by gates and pass a bottleneck."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avcl_core.clipnorm import ClipNorm
from avcl_core.moe.align import Align
from avcl_core.moe.experts import Grouped, summarise
from avcl_core.precision import unmixed
from avcl_core.sites import SiteModule
from avcl_core.walk import Ctx


@dataclass(frozen=True)
class CrossModalOptions:
    """Sizes and switches of a cross-modal adapter (php.md 3.4).

    Attributes:
        latents: number of latent tokens that summarise the other modality.
        reduction: C / r channels in the bottleneck.
        groups: contiguous channel blocks that the bottleneck's maps keep apart.
        pre_norm, post_norm: layer norms before and after the bottleneck.
        batch_norm: batch norms in the bottleneck, over the tokens of a clip.
        cross: whether the other modality is read; without it the bottleneck acts alone.
        alpha, beta, gamma: weights of the channel, spatial and temporal gate.
    """

    latents: int = 32
    reduction: int = 8
    groups: int = 2
    pre_norm: bool = True
    post_norm: bool = True
    batch_norm: bool = False
    cross: bool = True
    alpha: float = 0.2
    beta: float = 0.05
    gamma: float = 0.01


class CrossModalAdapter(SiteModule):
    """The adapter that PHP's tasks share (php.md 3.4, after LAVISH and DG-SCT), for one modality at one site.

    The output gate starts at zero, so a new adapter adds exactly nothing.

    Args:
        own: tokens and width of the own stream, (N, C).
        other: tokens and width of the other stream, (M, D).
        options: sizes and switches.
        label: name of the site in statistics and errors.

    Raises:
        ValueError: the sizes do not divide or are not positive.
    """

    reads: Literal["entry", "exit"] = "exit"

    def __init__(self, own: tuple[int, int], other: tuple[int, int], options: CrossModalOptions, label: str) -> None:
        super().__init__()
        self.label, self.own, self.other, self.options = label, tuple(own), tuple(other), options
        _check(self.own, self.other, options, label)
        self.fusion = Fusion(own, other, options) if options.cross else None
        self.bottleneck = Bottleneck(own[1], options)

    def forward(self, own: Tensor, other: Tensor | None, ctx: Ctx) -> Tensor:
        """Return the residual ``[B, N, C]`` of own tokens ``[B, N, C]`` and other tokens ``[B, M, D]``.

        Raises:
            ValueError: the tokens have another shape than the adapter was built for, or clips are cut.
        """
        self._fits("own", own, self.own)
        tokens, attention = own, None
        if self.fusion is not None:
            if other is None:
                raise ValueError(f"adapter {self.label} reads two streams; this walk has one")
            self._fits("other", other, self.other)
            tokens, attention = self.fusion(own, other)
        if self.options.batch_norm and len(own) % ctx.frames:
            raise ValueError(f"adapter {self.label}: {len(own)} rows are not whole clips of {ctx.frames} frames")
        residual = self.bottleneck(tokens, ctx.frames)
        if ctx.trace is not None:
            self._tell(ctx, own, residual, attention)
        return residual

    def _fits(self, name: str, tokens: Tensor, expected: tuple[int, ...]) -> None:
        if tokens.shape[1:] != expected:
            raise ValueError(
                f"adapter {self.label} was built for {expected[0]} {name} tokens of width {expected[1]}, "
                f"found {list(tokens.shape)}"
            )

    def _tell(self, ctx: Ctx, own: Tensor, residual: Tensor, attention: Tensor | None) -> None:
        trace = ctx.trace
        assert trace is not None
        trace.put(self.label, "residual", residual.flatten(1).norm(dim=1) / own.flatten(1).norm(dim=1).clamp(min=1e-12))
        trace.keep(self.label, "output_gates", self.bottleneck.gate.view(1))
        if self.fusion is not None and attention is not None:
            trace.keep(self.label, "inner_gates", self.fusion.gate.view(1))
            if attention.shape[-1] > 1:
                # Unscaled products saturate the softmax: 0 says that a latent reads one token, 1 that it reads all alike.
                entropy = torch.special.entr(attention).sum(-1).mean(-1) / math.log(attention.shape[-1])
                trace.put(self.label, "attention_entropy", entropy)


class Fusion(nn.Module):
    """Alignment, latent tokens and gates (php.md 3.4, steps 1 to 3); shapes as in :class:`CrossModalAdapter`."""

    def __init__(self, own: tuple[int, int], other: tuple[int, int], options: CrossModalOptions) -> None:
        super().__init__()
        width, half = own[1], own[1] // 2
        self.options = options
        self.align = Align(other, own)
        self.latents = nn.Parameter(torch.rand(options.latents, width))
        self.gate = nn.Parameter(torch.zeros(()))
        self.channel_context, self.channel_tokens = nn.Linear(width, width), nn.Linear(width, width)  # W1, W2
        self.channel_down, self.channel_up = nn.Linear(width, half), nn.Linear(half, width)  # W3, W4
        self.spatial_tokens, self.spatial_context = nn.Linear(width, half), nn.Linear(width, half)  # W6, W7
        self.spatial_out, self.temporal = nn.Linear(half, 1), nn.Linear(width, 1)  # w5, w8
        # Scaling the channels of N tokens or of the D/2 rows of the weight that reads them: whatever is less.
        self.scale_weight = own[0] > half

    def forward(self, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return gated tokens ``[B, N, C]`` and the latents' attention over the aligned other tokens ``[B, L, N]``."""
        aligned = self.align(other)
        latents, attention = summarise(self.latents.unsqueeze(0), aligned)
        context = aligned.mean(1)
        tokens = own + self._read(own, latents.squeeze(1))
        channel = self._channel(tokens, context)
        share = self.options.alpha * channel + self.options.gamma * self.temporal(context).sigmoid()
        share = share + (1 - self.options.alpha)
        return tokens * (share.unsqueeze(1) + self.options.beta * self._spatial(tokens, context, channel)), attention

    def _read(self, own: Tensor, latents: Tensor) -> Tensor:
        """``g · softmax(X Z'ᵀ) Z'`` ``[B, N, C]``; the gate weighs the few latents instead of the many tokens."""
        with unmixed(own):  # unscaled products of wide tokens leave the range of half precision
            dtype = torch.promote_types(torch.promote_types(own.dtype, latents.dtype), torch.float32)
            weights = (own.to(dtype) @ latents.to(dtype).mT).softmax(-1)
        return weights.to(latents.dtype) @ (self.gate.to(latents.dtype) * latents)

    def _channel(self, tokens: Tensor, context: Tensor) -> Tensor:
        """M_c ``[B, C]``. What does not depend on the token leaves the mean over tokens."""
        mean = F.relu(self.channel_context(context)) * F.relu(self.channel_tokens(tokens)).mean(1)
        return self.channel_up(F.relu(self.channel_down(mean))).sigmoid()

    def _spatial(self, tokens: Tensor, context: Tensor, channel: Tensor) -> Tensor:
        """M_s ``[B, N, 1]``."""
        scale, first = (1 + channel).unsqueeze(1), self.spatial_tokens
        if self.scale_weight:
            hidden = torch.baddbmm(first.bias, tokens, (scale * first.weight).mT)
        else:
            hidden = first(tokens * scale)
        column = self.spatial_out.weight * F.relu(self.spatial_context(context))
        return (F.relu(hidden) @ column.unsqueeze(-1) + self.spatial_out.bias).sigmoid()


class Bottleneck(nn.Module):
    """Norm, two grouped maps around a ReLU, norm and output gate (php.md 3.4, step 4): ``[B, N, C]`` → ``[B, N, C]``."""

    def __init__(self, width: int, options: CrossModalOptions) -> None:
        super().__init__()
        narrow, self.groups = width // options.reduction, options.groups
        # A batch norm takes away whatever constant comes before it, so the first norm's shift would never learn.
        shifts = not options.batch_norm
        self.norm_before = nn.LayerNorm(width, bias=shifts) if options.pre_norm else nn.Identity()
        self.down, self.up = Grouped(width, narrow, self.groups), Grouped(narrow, width, self.groups)
        self.norm_down = ClipNorm(narrow) if options.batch_norm else None
        self.norm_up = ClipNorm(width) if options.batch_norm else None
        self.norm_after = nn.LayerNorm(width) if options.post_norm else None
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tensor, frames: int) -> Tensor:
        """Return the gated residual; ``frames`` consecutive rows are one clip to the batch norms."""
        hidden = self._map(self.norm_before(tokens), self.down)
        if self.norm_down is not None:
            hidden = self.norm_down(hidden, frames)
        out = self._map(F.relu(hidden), self.up)
        if self.norm_up is not None:
            out = self.norm_up(out, frames)
        if self.norm_after is None:
            return self.gate * out
        # The gate goes into the norm's affine part, so that the ungated residual need not be kept.
        norm = self.norm_after
        return F.layer_norm(out, norm.normalized_shape, self.gate * norm.weight, self.gate * norm.bias, norm.eps)

    def _map(self, tokens: Tensor, grouped: Grouped) -> Tensor:
        """One product with zeros between the groups: for two groups cheaper than copies of the tokens by group."""
        return F.linear(tokens, torch.block_diag(*grouped.weight.chunk(self.groups)))


def _check(own: tuple[int, ...], other: tuple[int, ...], options: CrossModalOptions, label: str) -> None:
    width, (reduction, groups) = own[1], (options.reduction, options.groups)
    sizes = {"own tokens": own[0], "own width": width, "other tokens": other[0], "other width": other[1]}
    sizes |= {"latents": options.latents, "reduction": reduction, "groups": groups}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"adapter {label}: {name} is {size}, expected a positive number")
    if width % reduction or width % groups or (width // reduction) % groups:
        raise ValueError(
            f"adapter {label}: width {width} cannot be reduced by {reduction} in {groups} groups; "
            "both must divide it, and the groups what remains"
        )
    if options.cross and width % 2:
        raise ValueError(f"adapter {label}: width {width} is odd; the gates need half of it")
