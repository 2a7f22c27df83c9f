"""The published AVVP head: multi-modal grouping (MGN), which DG-SCT and AVMOE put on their towers (tasks.md 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl_avvp.data import SECONDS
from avcl_avvp.grouping import ModalityTrans
from avcl_avvp.segments import SegmentFeatures, initialise
from avcl_core.batch import Batch, Outputs
from avcl_core.features import Features, FeatureSpec
from avcl_core.precision import precise

MODALITY_DEPTH, JOINT_DEPTH = 3, 6
"""Transformer blocks before a modality's and before the joint grouping."""


class GroupingHead(nn.Module):
    """Class tokens gather the segments of each modality, and the groups of both say what the video holds.

    Outputs:
        ``clip``, ``clip_audio``, ``clip_visual`` ``[b, C]``: logits of p, p_a and p_v, from the joint, audio and visual groups.
        ``audio``, ``visual`` ``[b, 10, C]``: P_m = p_m·M_m per second. No probabilities: M is in (1, 2), 1.1 on average over
        the seconds, so P may exceed 1 and its localisation in time is weak by construction.
        ``class_audio``, ``class_visual`` ``[b, C, C]``: class logits of the two token tables, the same for every sample.

    Args:
        spec: shapes of the towers' final tokens.
        classes: C.
        width: d; a multiple of 8.
        motion: whether batches bring r2plus1d_18 features.
    """

    def __init__(self, spec: FeatureSpec, classes: int, width: int = 128, motion: bool = False) -> None:
        super().__init__()
        self.segments = SegmentFeatures(spec, width, motion)
        self.audio_token = nn.Parameter(torch.zeros(classes, width))
        self.visual_token = nn.Parameter(torch.zeros(classes, width))
        self.audio = ModalityTrans(width, MODALITY_DEPTH, classes, others=SECONDS)
        self.visual = ModalityTrans(width, MODALITY_DEPTH, classes)
        self.joint = ModalityTrans(width, JOINT_DEPTH, classes)
        self.clip, self.clip_audio, self.clip_visual = (nn.Linear(width, 1) for _ in range(3))
        self.token_class = nn.Linear(width, classes)
        initialise(self)

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs for tokens ``[b, 10, N, D]`` per tower."""
        audio, visual = self.segments(features, batch)
        rows = len(audio)
        audio_token, visual_token = (
            t.to(audio.dtype).expand(rows, -1, -1) for t in (self.audio_token, self.visual_token)
        )
        heard, audio_map = self.audio(audio, audio_token, visual)
        seen, visual_map = self.visual(visual, visual_token)
        joint, _ = self.joint(heard, seen)
        clip_audio, clip_visual = self.clip_audio(heard).squeeze(-1), self.clip_visual(seen).squeeze(-1)
        return {
            "clip": self.clip(joint).squeeze(-1),
            "clip_audio": clip_audio,
            "clip_visual": clip_visual,
            "audio": _per_second(clip_audio, audio_map),
            "visual": _per_second(clip_visual, visual_map),
            "class_audio": self.token_class(self.audio_token).expand(rows, -1, -1),
            "class_visual": self.token_class(self.visual_token).expand(rows, -1, -1),
        }


def _per_second(logits: Tensor, found: Tensor) -> Tensor:
    """Return p·M ``[b, T, C]`` for logits ``[b, C]`` and M ``[b, C, T]``."""
    return (precise(logits).sigmoid()[:, :, None] * found).transpose(1, 2)
