"""Window attention on [B, N, C] tokens: cyclic shift, windows, prefix rows, and one additive mask for SDPA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def to_windows(tokens: Tensor, grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """Tokens [B, rows·columns, C] to windows [B, W, window², C], rolled back by ``shift`` in both directions first."""
    rows, columns = grid
    x = tokens.unflatten(1, (rows, columns))
    if shift:
        x = torch.roll(x, (-shift, -shift), (1, 2))
    x = x.unflatten(2, (columns // window, window)).unflatten(1, (rows // window, window))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_windows(windows: Tensor, grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """The inverse of `to_windows`: [B, W, window², C] to [B, rows·columns, C]."""
    rows, columns = grid
    x = windows.unflatten(2, (window, window)).unflatten(1, (rows // window, columns // window))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if shift:
        x = torch.roll(x, (shift, shift), (1, 2))
    return x.flatten(1, 2)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    bias: Tensor,
    mask: Tensor | None,
    prefix: tuple[Tensor, Tensor] | None = None,
    cosine_scale: Tensor | None = None,
    prefix_bias: float = 0.0,
) -> Tensor:
    """Multi-head attention inside windows, [B, W, L, C] in and out, before the output projection.

    ``bias`` [heads, L, L] is the relative position bias, ``mask`` [W, L, L] the shift mask (None without a shift).
    ``prefix``: projected key and value rows [B, n, C], seen by every window, with the constant ``prefix_bias``, unmasked. With ``cosine_scale``
    [heads, 1, 1] the scores are scaled cosines (Swin-V2), else dot products over the square root of the head width.
    """
    batch, count, length, width = q.shape
    if prefix is not None:
        k, v = (
            torch.cat((rows.unsqueeze(1).expand(-1, count, -1, -1), x), 2)
            for rows, x in zip(prefix, (k, v), strict=True)
        )
        bias = F.pad(bias, (k.shape[2] - length, 0), value=prefix_bias)
        mask = None if mask is None else F.pad(mask, (k.shape[2] - length, 0))

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, width // heads)).transpose(2, 3)

    q, k, v = split(q), split(k), split(v)
    if cosine_scale is not None:
        q, k = F.normalize(q, dim=-1) * cosine_scale, F.normalize(k, dim=-1)
    if mask is None:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        total = bias.unsqueeze(0)
    else:
        # Windows join the heads, so that one mask serves the whole batch as a broadcast view instead of B copies.
        q, k, v = (x.flatten(1, 2) for x in (q, k, v))
        total = (bias + mask.unsqueeze(1)).flatten(0, 1).unsqueeze(0)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=total.to(q.dtype), scale=None if cosine_scale is None else 1.0
    )
    return out.reshape(batch, count, heads, length, -1).transpose(2, 3).flatten(3)
