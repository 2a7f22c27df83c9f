"""Necks: stage maps of a visual tower, whatever their widths and sizes, as four maps of one width."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

DILATIONS = (3, 6, 12, 18)
"""Dilations of the convolutions of the baseline's neck."""


class LinearNeck(nn.Module):
    """One linear map per stage (tasks.md 3.3), then bicubic resizing."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(stage, width) for stage in widths)

    def forward(self, grids: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Return ``[n, width, S, S]`` per stage for grids ``[n, H, W, C]`` and the sizes S wanted."""
        maps = (project(grid).movedim(-1, 1) for project, grid in zip(self.project, grids, strict=True))
        return [resized(value, size) for value, size in zip(maps, sizes, strict=True)]


class DilatedSum(nn.Module):
    """The sum of four 3×3 convolutions with dilations 3, 6, 12, 18."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, width, 3, padding=rate, dilation=rate) for rate in DILATIONS
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n, width, H, W]``."""
        return torch.stack([convolve(x) for convolve in self.convolutions]).sum(0)


class DilatedNeck(nn.Module):
    """One :class:`DilatedSum` per stage (the AVSBench baseline), then resizing."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(DilatedSum(stage, width) for stage in widths)

    def forward(self, grids: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Return ``[n, width, S, S]`` per stage for grids ``[n, H, W, C]`` and the sizes S wanted."""
        maps = (stage(grid.movedim(-1, 1)) for stage, grid in zip(self.stages, grids, strict=True))
        return [resized(value, size) for value, size in zip(maps, sizes, strict=True)]


def resized(value: Tensor, size: int) -> Tensor:
    """Return ``[n, C, size, size]`` for ``[n, C, H, W]`` by bicubic interpolation, corners not aligned.

    It is separable, so two small matrix products do it; their gradient is deterministic on every device, that of the
    library's function is not.
    """
    height, width = value.shape[-2:]
    if (height, width) == (size, size):
        return value
    rows, columns = (_bicubic(extent, size).to(value) for extent in (height, width))
    return rows @ value @ columns.T


@functools.cache
def _bicubic(source: int, target: int) -> Tensor:
    """Return the matrix ``[target, source]`` that resizes one axis: the library's function of the identity."""
    # On the CPU by name: the first caller may be counting parameters on the meta device, and the matrix is kept for all.
    identity = torch.eye(source, dtype=torch.float64, device="cpu")[None, None]
    return functional.interpolate(identity, size=(target, source), mode="bicubic", align_corners=False)[0, 0]
