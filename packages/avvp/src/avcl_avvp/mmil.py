"""The second AVVP head: attentive multi-modal multiple-instance pooling (MMIL; Tian et al., ECCV 2020; tasks.md 2.4)."""

from __future__ import annotations

import torch
from torch import nn

from avcl_avvp.segments import SegmentFeatures, initialise
from avcl_core.batch import Batch, Outputs
from avcl_core.features import Features, FeatureSpec
from avcl_core.precision import precise

SMALLEST = 1e-7
"""Probabilities of a video are kept this far from 0 and 1 before they become logits, as the loss does with them anyway."""


class PoolingHead(nn.Module):
    """Classify every second of each modality, and let two attentions say which of them the video's label speaks of.

    P_m[s, c] = σ(Linear) for modality m and second s, A_m = softmax of a Linear over the seconds, B = softmax of a Linear over
    the two modalities; one Linear of each kind serves both modalities. p_m = Σ_s A_m P_m and p = Σ_m Σ_s A_m B_m P_m, which
    may exceed 1 and is then clamped. HAN's attention encoder is not part of it.

    Outputs:
        ``clip``, ``clip_audio``, ``clip_visual`` ``[b, C]``: logits of p, p_a and p_v.
        ``audio``, ``visual`` ``[b, T, C]``: the probabilities P_a and P_v per second.

    Args:
        spec: shapes of the towers' final tokens.
        classes: C.
        width: d.
        motion: whether batches bring r2plus1d_18 features.
    """

    def __init__(self, spec: FeatureSpec, classes: int, width: int = 128, motion: bool = False) -> None:
        super().__init__()
        self.segments = SegmentFeatures(spec, width, motion)
        self.event, self.time_attention, self.modality_attention = (nn.Linear(width, classes) for _ in range(3))
        initialise(self)

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs for tokens ``[b, T, N, D]`` per tower."""
        seconds = torch.stack(self.segments(features, batch), 1)
        over_time = precise(self.time_attention(seconds)).softmax(2)
        over_modalities = precise(self.modality_attention(seconds)).softmax(1)
        probability = precise(self.event(seconds)).sigmoid()
        pooled = over_time * probability
        in_modality, in_video = pooled.sum(2), (over_modalities * pooled).sum((1, 2))
        return {
            "clip": torch.logit(in_video, eps=SMALLEST),
            "clip_audio": torch.logit(in_modality[:, 0], eps=SMALLEST),
            "clip_visual": torch.logit(in_modality[:, 1], eps=SMALLEST),
            "audio": probability[:, 0],
            "visual": probability[:, 1],
        }
