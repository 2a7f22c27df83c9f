"""What both AVVP heads begin with: one vector per second and modality, from token means and, where there are any, motion features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl_avvp.motion import MOTION_WIDTH
from avcl_core.batch import Batch
from avcl_core.features import Features, FeatureSpec

SIGMA = 0.02
"""Standard deviation of the truncated normal from which all weights of the heads are drawn."""


class SegmentFeatures(nn.Module):
    """Seconds of both modalities in the head's width (tasks.md 2.4).

    a0 = Linear(a) and v0 = Linear([Linear(v), Linear(v_3d)]) with a, v the token means of the audio and the visual tower
    and v_3d the r2plus1d_18 features; without these, v0 = Linear(v). A modality whose tower is absent reads all towers that
    there are, concatenated. v_3d belongs to what is seen: it needs a visual tower, and it is zero for samples, or seconds,
    whose visual modality is missing.

    Args:
        spec: shapes of the towers' final tokens.
        width: d, 128 in the publications.
        motion: whether the batches bring ``motion`` ``[b, T, 512]``.
    """

    def __init__(self, spec: FeatureSpec, width: int, motion: bool) -> None:
        super().__init__()
        widths = {tower: shape.width for tower, shape in spec.final.items()}
        self.audio_towers = ("audio",) if "audio" in widths else tuple(widths)
        self.visual_towers = ("visual",) if "visual" in widths else tuple(widths)
        self.audio = nn.Linear(sum(widths[tower] for tower in self.audio_towers), width)
        self.visual = nn.Linear(sum(widths[tower] for tower in self.visual_towers), width)
        joined = motion and "visual" in widths
        self.motion = nn.Linear(MOTION_WIDTH, width) if joined else None
        self.fuse = nn.Linear(2 * width, width) if joined else None

    def forward(self, features: Features, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return a0 and v0 ``[b, T, d]`` for tokens ``[b, T, N, D]`` per tower."""
        audio = self.audio(_token_means(features, self.audio_towers))
        visual = self.visual(_token_means(features, self.visual_towers))
        if self.motion is not None and self.fuse is not None:
            motion = batch.inputs["motion"].to(visual.dtype)
            if "visual" in batch.present:
                present = batch.present["visual"].to(motion)  # [b] or [b, T]
                motion = motion * present.reshape(len(present), -1, 1)
            visual = self.fuse(torch.cat([visual, self.motion(motion)], -1))
        return audio, visual


def _token_means(features: Features, towers: tuple[str, ...]) -> Tensor:
    return torch.cat([features.final[tower].mean(2) for tower in towers], -1)


def initialise(head: nn.Module) -> None:
    """Draw all weights of linear layers and attentions from a truncated normal of :data:`SIGMA`, with biases of zero."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=SIGMA)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention):
            nn.init.trunc_normal_(module.in_proj_weight, std=SIGMA)
            nn.init.zeros_(module.in_proj_bias)
