"""The plain formulation of one MoE adapter: tokens before channels, experts one after the other, every layout change written out.

A benchmark's reference only, from avmoe.md 3.3 to 3.6. It computes with the parameters of an :class:`MoeAdapter`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avcl_core.moe.adapter import MoeAdapter
from avcl_core.moe.align import Align
from avcl_core.moe.experts import Expert
from avcl_core.walk import Ctx


def align(mixer: Align, other: Tensor) -> Tensor:
    """Return ô = (W_t o + b_t 1ᵀ) W_cᵀ + b_c ``[B, N, C]``: a 1 × 1 convolution with tokens as channels, then the projection."""
    weight = mixer.token.weight[:, :, None, None]
    mixed = F.conv2d(other.unsqueeze(-1), weight, mixer.token.bias).squeeze(-1)
    return F.linear(mixed, mixer.channel.weight, mixer.channel.bias)


def adapt(
    adapter: MoeAdapter, own: Tensor, other: Tensor, ctx: Ctx, resample: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return the residual ``[B, N, C]``; :meth:`MoeAdapter.forward` must equal it. ``resample`` takes the place of :func:`align`."""
    assert adapter.align is not None
    assert adapter.router is not None
    aligned = align(adapter.align, other) if resample is None else resample(other)
    logits = adapter.router(own.mean(1), aligned.mean(1), ctx)
    assert isinstance(logits, Tensor)
    noise = ctx.memo.get(f"noise {adapter.label}")
    gates = (logits if noise is None else logits + noise).softmax(-1)
    if ctx.training:
        ctx.memo[f"gates {adapter.label}"] = gates
    outputs = []
    for name, expert in zip(adapter.names, adapter.experts, strict=True):
        assert isinstance(expert, Expert)
        kind = adapter.cross if name.startswith("cross") else adapter.uni
        assert kind is not None
        # [B, C, N, 1], as convolutions take it.
        image = own.permute(0, 2, 1).unsqueeze(-1)
        if name.startswith("cross"):
            image = _latents(expert, image, aligned)
        else:
            image = _unimodal(expert, kind.shape.uni_attention, image, ctx.frames)
        outputs.append(
            _bottleneck(expert, kind.shape.groups, kind.relu, image, ctx.frames).squeeze(-1).permute(0, 2, 1)
        )
    return (torch.stack(outputs, -1) * gates[:, None, None, :]).sum(-1)


def _latents(expert: Expert, image: Tensor, tokens: Tensor) -> Tensor:
    """Latents summarise ``tokens``, every own token reads them."""
    own = image.squeeze(-1).permute(0, 2, 1)
    latents = expert.latents.unsqueeze(0).repeat(len(own), 1, 1)
    latents = latents + torch.bmm(torch.bmm(latents, tokens.permute(0, 2, 1)).softmax(-1), tokens)
    read = torch.bmm(torch.bmm(own, latents.permute(0, 2, 1)).softmax(-1), latents)
    return image + expert.inner_gate * read.permute(0, 2, 1).unsqueeze(-1)


def _unimodal(expert: Expert, kind: str, image: Tensor, frames: int) -> Tensor:
    own = image.squeeze(-1).permute(0, 2, 1)
    if kind == "latent":
        return _latents(expert, image, own)
    if kind == "temporal":
        clips = []
        for clip in own.split(frames):  # [T, N, C]: one clip after the other
            places = clip.permute(1, 0, 2)
            clips.append(expert.attention(places, places, places)[0].permute(1, 0, 2))
        return torch.cat(clips).permute(0, 2, 1).unsqueeze(-1)
    if kind == "dense":
        scores = torch.bmm(own, own.permute(0, 2, 1)).softmax(-1)
        read = torch.bmm(scores.permute(0, 2, 1), own)
        return image + expert.inner_gate * read.permute(0, 2, 1).unsqueeze(-1)
    return image


def _bottleneck(expert: Expert, groups: int, relu: bool, image: Tensor, frames: int) -> Tensor:
    """``[B, C, N, 1]`` → the same shape: norm, two grouped convolutions, norm, gate."""
    image = _layer_norm(expert.norm_before, image)
    image = F.conv2d(image, expert.down.weight[:, :, None, None], groups=groups)
    if hasattr(expert, "bottleneck_in"):
        image = _batch_norm(expert.bottleneck_in, image, frames)
    if relu:
        image = F.relu(image)
    image = F.conv2d(image, expert.up.weight[:, :, None, None], groups=groups)
    if hasattr(expert, "bottleneck_out"):
        image = _batch_norm(expert.bottleneck_out, image, frames)
    return expert.output_gate * _layer_norm(expert.norm_after, image)


def _layer_norm(norm: nn.LayerNorm, image: Tensor) -> Tensor:
    tokens = image.squeeze(-1).permute(0, 2, 1)
    return norm(tokens).permute(0, 2, 1).unsqueeze(-1)


def _batch_norm(norm, image: Tensor, frames: int) -> Tensor:
    """Batch norm of every clip by itself; with one clip, that of the batch.

    On ``[B, C, N]``: for ``[B, C, N, 1]`` torch's backward pass on the CPU mistakes the layout of the incoming gradient.
    """
    values = image.squeeze(-1)
    if not norm.training:
        whole = F.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return whole.unsqueeze(-1)
    clips = [
        F.batch_norm(clip, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        for clip in values.split(frames)
    ]
    return torch.cat(clips).unsqueeze(-1)


@contextmanager
def direct_adapters(model: nn.Module) -> Iterator[None]:
    """Let every MoE adapter of ``model`` compute the plain formulation within the block."""
    adapters = [module for module in model.modules() if isinstance(module, MoeAdapter)]
    for adapter in adapters:
        adapter.__dict__["forward"] = lambda own, other, ctx, adapter=adapter: adapt(adapter, own, other, ctx)
    try:
        yield
    finally:
        for adapter in adapters:
            del adapter.__dict__["forward"]
