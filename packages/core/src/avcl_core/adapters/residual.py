"""A bottleneck adapter added as a residual (Houlsby et al. 2019), in the parallel form of He et al. 2022."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from avcl_core.sites import SiteModule
from avcl_core.walk import Ctx


class ResidualAdapter(SiteModule):
    """``up(gelu(down(LN(own))))`` with ``up`` zero at first, so that a fresh adapter leaves the tower unchanged.

    Args:
        width: token width C.
        bottleneck: width of the hidden layer.
        reads: ``entry`` runs parallel to the sublayer, ``exit`` after it.

    Shapes: own ``[B, N, C]`` → ``[B, N, C]``.
    """

    def __init__(self, width: int, bottleneck: int, reads: Literal["entry", "exit"] = "entry") -> None:
        super().__init__()
        self.reads = reads
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, own: Tensor, other: Tensor | None, ctx: Ctx) -> Tensor:
        """Return the residual ``[B, N, C]``; the other modality and the context are not used."""
        return self.up(nn.functional.gelu(self.down(self.norm(own))))
