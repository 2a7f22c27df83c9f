"""Batch norm of maps whose batch is one clip."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from avcl_core.clipnorm import ClipNorm


class MapNorm(ClipNorm):
    """:class:`~avcl_core.clipnorm.ClipNorm` for maps: statistics per channel over all pixels of all frames of a clip."""

    def forward(self, maps: Tensor, frames: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Normalise ``[b·T, C, H, W]``, ``frames`` consecutive maps of it at a time."""
        if not self.training:
            mean, var = self.running_mean, self.running_var
            return functional.batch_norm(maps, mean, var, self.weight, self.bias, eps=self.eps)
        clips = []
        for clip in maps.split(frames):
            normed, mean, var = over_clip(clip, self.weight, self.bias, self.eps)
            clips.append(normed)
            self.saw(mean, var)
        return torch.cat(clips)

    def saw(self, mean: Tensor, var: Tensor) -> None:
        """Remember the statistics ``[C]`` of one clip until :meth:`settle`."""
        self.seen.append((1, mean, var))


def over_clip(maps: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps ``[T, C, H, W]`` of one clip normalised over frames and pixels, their mean and unbiased variance ``[C]``."""
    mean, var = (weight.new_zeros(len(weight)) for _ in range(2))
    normed = functional.batch_norm(maps, mean, var, weight, bias, training=True, momentum=1.0, eps=eps)
    return normed, mean, var
