"""BEATs as its specification says (avqacl_moe.md 3.7), token by token in plain tensors under their published names."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bucket(r: int) -> int:
    past = 160 if r > 0 else 0
    if abs(r) < 80:
        return past + abs(r)
    return past + min(159, 80 + math.trunc(math.log(abs(r) / 80) / math.log(800 / 80) * 80))


def padded_tokens(padding: list[bool], frames: int, tokens: int) -> list[bool]:
    each = len(padding) // frames
    by_frame = [all(padding[each * i : each * (i + 1)]) for i in range(frames)]
    each = frames // tokens
    return [all(by_frame[each * i : each * (i + 1)]) for i in range(tokens)]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def direct_beats(t: dict[str, Tensor], features: Tensor, padding: Tensor | None = None) -> Tensor:
    """Tokens [B, L, C] of log-mels [B, 1, F, 128] in float64; ``padding`` [B, samples], true = padding."""
    t = {name: tensor.double() for name, tensor in t.items()}
    rows = [_one(t, x[0].double(), None if padding is None else padding[i].tolist()) for i, x in enumerate(features)]
    return torch.stack(rows)


def _one(t: dict[str, Tensor], mel: Tensor, padding: list[bool] | None) -> Tensor:
    def ln(x: Tensor, p: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * t[f"{p}.weight"] + t[f"{p}.bias"]

    def lin(x: Tensor, p: str) -> Tensor:
        return x @ t[f"{p}.weight"].T + t[f"{p}.bias"]

    patches = t["patch_embedding.weight"].flatten(1)
    x = torch.stack(
        [
            patches @ mel[16 * time : 16 * time + 16, 16 * band : 16 * band + 16].flatten()
            for time in range(len(mel) // 16)
            for band in range(8)
        ]
    )
    x = lin(ln(x, "layer_norm"), "post_extract_proj")
    length, width = x.shape
    hidden = [False] * length if padding is None else padded_tokens(padding, len(mel), length)
    for i in range(length):
        if hidden[i]:
            x[i] = 0

    v, g = t["encoder.pos_conv.0.weight_v"], t["encoder.pos_conv.0.weight_g"]
    group = v.shape[1]
    around = t["encoder.pos_conv.0.bias"].repeat(length, 1)
    for k in range(128):
        weight = float(g[0, 0, k]) * v[:, :, k] / v[:, :, k].norm()
        for i in range(max(0, 64 - k), min(length, length + 64 - k)):
            for first in range(0, width, group):
                part = slice(first, first + group)
                around[i, part] += weight[part] @ x[i + k - 64, part]
    x = ln(x + gelu(around), "encoder.layer_norm")

    depth = 1 + max(int(name.split(".")[2]) for name in t if name.startswith("encoder.layers."))
    alpha = (2 * depth) ** 0.25
    for n in range(depth):
        p = f"encoder.layers.{n}"
        x = ln(alpha * x + _attention(t, f"{p}.self_attn", x, hidden, lin), f"{p}.self_attn_layer_norm")
        x = ln(alpha * x + lin(gelu(lin(x, f"{p}.fc1")), f"{p}.fc2"), f"{p}.final_layer_norm")
    return x


def _attention(t: dict[str, Tensor], p: str, x: Tensor, hidden: list[bool], lin) -> Tensor:
    table = t[f"{p}.relative_attention_bias.weight"]
    heads, length = table.shape[1], len(x)
    across = x.shape[1] // heads
    mixed = torch.empty_like(x)
    for h in range(heads):
        part = slice(across * h, across * (h + 1))
        q, k, v = (lin(x, f"{p}.{name}_proj")[:, part] for name in "qkv")
        scores = q @ k.T / math.sqrt(across)
        z = lin(q, f"{p}.grep_linear")
        a, b = torch.sigmoid(z[:, :4].sum(1)), torch.sigmoid(z[:, 4:].sum(1))
        gate = a * (b * t[f"{p}.grep_a"][0, h, 0, 0] - 1) + 2
        for i in range(length):
            for j in range(length):
                scores[i, j] = -math.inf if hidden[j] else scores[i, j] + gate[i] * table[bucket(j - i), h]
        weights = (scores - scores.amax(1, keepdim=True)).exp()
        mixed[:, part] = weights / weights.sum(1, keepdim=True) @ v
    return lin(mixed, f"{p}.out_proj")


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A tower's tensors as they would be published: a table per block, the convolution's weight as direction and length."""
    t = dict(state)
    weight, table = t.pop("encoder.pos_conv.weight"), t.pop("encoder.relative_attention_bias.weight")
    t["encoder.pos_conv.0.bias"] = t.pop("encoder.pos_conv.bias")
    t["encoder.pos_conv.0.weight_g"] = weight.square().sum((0, 1), keepdim=True).sqrt()
    t["encoder.pos_conv.0.weight_v"] = weight * torch.linspace(0.5, 2, weight.shape[2], dtype=weight.dtype)
    for name in list(t):
        if name.endswith("self_attn.grep_a"):
            t[name.replace("grep_a", "relative_attention_bias.weight")] = table
    return t
