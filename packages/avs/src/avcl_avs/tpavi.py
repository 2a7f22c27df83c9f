"""TPAVI: every place of every second of a clip is compared with the sound of every second, in a form linear in the places."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from avcl_core.clipnorm import ClipNorm

Norm = Literal["batch", "clip"]


class Tpavi(nn.Module):
    """Temporal pixel-wise audio-visual interaction of one scale (Zhou et al., ECCV 2022; tasks.md 3.3).

    With the sound repeated over the N = T·H·W places of a clip, y = (θ φᵀ / N) g without a softmax and
    z = LN(BN(W y) + x). Associativity saves the N × N matrix: y = θ K with K = (1/N) Σ_t φ_t (Σ_hw g)ᵀ (avmoe.md 3.9.3).
    Batch normalisation begins at zero, so z = LN(x) at first.

    Args:
        width: channels of the map.
        audio: width of the sound.
        norm: whether BN takes its training statistics over the whole batch, as published, or over each clip.
    """

    def __init__(self, width: int, audio: int, norm: Norm = "batch") -> None:
        super().__init__()
        inner = width // 2
        self.align = nn.Linear(audio, width)
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)
        self.batch_norm = nn.BatchNorm1d(width) if norm == "batch" else ClipNorm(width)
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.batch_norm.weight)
        nn.init.zeros_(self.batch_norm.bias)

    def forward(self, grid: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Return z ``[b, T, C, H, W]`` and the aligned sound ``[b, T, C]`` for a map ``[b, T, C, H, W]`` and ``[b, T, A]``."""
        b, frames, channels, height, width = grid.shape
        aligned = self.align(audio)
        places = grid.movedim(2, -1).reshape(b, frames, height * width, channels)
        # Linear layers commute with sums over places: the values are summed first, then projected.
        values = self.value(places.mean(2)) / frames
        kernel = self.key(aligned).transpose(1, 2) @ values
        mixed = self.out(self.query(places) @ kernel[:, None])
        if isinstance(self.batch_norm, ClipNorm):
            normed = self.batch_norm(mixed.flatten(0, 1), frames).view_as(places)
        else:
            normed = self.batch_norm(mixed.flatten(0, 2)).view_as(places)
        z = self.norm(normed + places)
        return z.view(b, frames, height, width, channels).movedim(-1, 2), aligned
