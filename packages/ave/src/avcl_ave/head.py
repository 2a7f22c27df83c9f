"""The simple AVE head: token means of every tower, a little context over time, one event and one relevance per second."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl_core.batch import Batch, Outputs
from avcl_core.features import Features, FeatureSpec

WIDTH = 128
"""Width of the fused representation of a second."""


class TemporalHead(nn.Module):
    """Localise one event per clip from the final tokens of any number of towers.

    Per second, the token mean of every tower is normalised (towers differ in scale), the towers are concatenated and
    projected to :data:`WIDTH`; a residual convolution over three seconds adds context.

    Outputs:
        ``relevance`` ``[b, T]``: logit that the second contains the clip's event.
        ``event`` ``[b, C]``: logits of the clip's event class, from the maximum over time (background is no class).
    """

    def __init__(self, spec: FeatureSpec, classes: int) -> None:
        super().__init__()
        widths = {tower: shape.width for tower, shape in spec.final.items()}
        self.norms = nn.ModuleDict({tower: nn.LayerNorm(width) for tower, width in widths.items()})
        self.project = nn.Linear(sum(widths.values()), WIDTH)
        self.context = nn.Conv1d(WIDTH, WIDTH, kernel_size=3, padding=1)
        self.relevance = nn.Linear(WIDTH, 1)
        self.event = nn.Linear(WIDTH, classes)

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs for tokens ``[b, T, N, D]`` per tower."""
        means = [norm(features.final[tower].mean(2)) for tower, norm in self.norms.items()]
        seconds = nn.functional.gelu(self.project(torch.cat(means, -1)))
        seconds = seconds + nn.functional.gelu(self._over_time(seconds))
        return {
            "relevance": self.relevance(seconds).squeeze(-1),
            "event": self.event(seconds.amax(1)),
        }

    def _over_time(self, seconds: Tensor) -> Tensor:
        return self.context(seconds.transpose(1, 2)).transpose(1, 2)
