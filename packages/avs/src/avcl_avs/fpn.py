"""The decoder: maps are fused from coarse to fine by residual convolutions, then read out as one logit per pixel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class ResidualUnit(nn.Module):
    """r = ReLU(x); conv3×3(ReLU(conv3×3(r))) + r.

    The shortcut is r, not x: so are the published models, whose first ReLU works in place (tasks.md 3.3).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of ``x`` ``[n, width, H, W]``."""
        shortcut = functional.relu(x)
        return self.second(functional.relu(self.first(shortcut))) + shortcut


class Fusion(nn.Module):
    """Adds a skip connection through a residual unit, applies another, doubles the size."""

    def __init__(self, width: int, skip: bool) -> None:
        super().__init__()
        self.skip = ResidualUnit(width) if skip else None
        self.unit = ResidualUnit(width)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Return ``[n, width, 2H, 2W]``."""
        if self.skip is not None and skip is not None:
            x = x + self.skip(skip)
        return functional.interpolate(self.unit(x), scale_factor=2, mode="bilinear", align_corners=True)


class Decoder(nn.Module):
    """Maps of 1/4, 1/8, 1/16 and 1/32 of the mask's size → logits.

    Args:
        width: channels of the maps; the read-out has a half and an eighth of them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList(Fusion(width, skip) for skip in (False, True, True, True))
        self.reduce = nn.Conv2d(width, width // 2, 3, padding=1)
        self.refine = nn.Conv2d(width // 2, width // 8, 3, padding=1)
        self.out = nn.Conv2d(width // 8, 1, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits ``[n, S, S]`` for four maps ``[n, width, S/4, S/4]``, …, ``[n, width, S/32, S/32]``."""
        coarse, *finer = reversed(maps)
        x = self.paths[0](coarse)
        for path, skip in zip(self.paths[1:], finer, strict=True):
            x = path(x, skip)
        x = functional.interpolate(self.reduce(x), scale_factor=2, mode="bilinear", align_corners=False)
        return self.out(functional.relu(self.refine(x))).squeeze(1)
