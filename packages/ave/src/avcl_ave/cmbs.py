"""The CMBS head: events of a clip and its seconds from both modalities after temporal attention (Xia & Zhao, CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl_ave.temporal import TemporalAttention
from avcl_core.batch import Batch, Outputs
from avcl_core.errors import ConfigError
from avcl_core.features import Features, FeatureSpec

STRONGEST = 4
"""Seconds whose scores make the clip's score of a class: those with the largest ones."""
SCORES = 0.3
"""Weight of the clip scores in the class logits."""


class ClipScores(nn.Module):
    """What both settings of AVE share: the fused seconds, and class scores of the clip from each modality alone.

    Args:
        spec: shapes of the towers ``visual`` and ``audio``.
        classes: number of event classes C.
        width: width of a fused second (256 as published).

    Raises:
        ConfigError: one of the two towers is not configured.
    """

    def __init__(self, spec: FeatureSpec, classes: int, width: int) -> None:
        super().__init__()
        for tower in ("visual", "audio"):
            if tower not in spec.final:
                raise ConfigError(
                    f"towers.{tower}: not configured; the head of task ave compares what is seen with what is heard; "
                    "configure both towers (a run on one modality: modalities=…)"
                )
        self.temporal = TemporalAttention(spec.final["visual"].width, spec.final["audio"].width, width)
        self.visual_scores = nn.Linear(width, classes)
        self.audio_scores = nn.Linear(width, classes)

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return fused seconds ``[b, T, width]`` and clip scores ``[b, C]`` of the towers' tokens ``[b, T, N, D]``."""
        visual, audio = self.temporal(features.final["visual"].mean(2), features.final["audio"].mean(2))
        scores = (_strongest(self.visual_scores(visual)) + _strongest(self.audio_scores(audio))) / 2
        return (visual + audio) / 2, scores


def _strongest(scores: Tensor) -> Tensor:
    """``[b, T, C]`` → per class the mean of the largest scores over time ``[b, C]``; of all where there are fewer seconds."""
    return scores.topk(min(STRONGEST, scores.shape[1]), dim=1).values.mean(1)


class EventHead(nn.Module):
    """Head of the supervised setting (tasks.md 1.4).

    Outputs:
        ``relevance`` ``[b, T]``: e, logit that the second contains the clip's event.
        ``event`` ``[b, C]``: c, logits of the clip's event class (background is no class).
        ``scores`` ``[b, C]``: av, the clip scores.
    """

    def __init__(self, spec: FeatureSpec, classes: int, width: int = 256) -> None:
        super().__init__()
        self.clip = ClipScores(spec, classes, width)
        self.relevance = nn.Linear(width, 1)
        self.event = nn.Linear(width, classes)

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs for tokens ``[b, T, N, D]`` per tower."""
        fused, scores = self.clip(features)
        event = self.event(torch.amax(fused, dim=1)) + SCORES * scores
        return {"relevance": self.relevance(fused).squeeze(-1), "event": event, "scores": scores}


class WeakEventHead(nn.Module):
    """Head of the weak setting: every second has logits of all classes and background (tasks.md 1.5).

    Outputs:
        ``segments`` ``[b, T, C + 1]``: q_t, background last.
        ``scores`` ``[b, C]``: av, the clip scores.
    """

    def __init__(self, spec: FeatureSpec, classes: int, width: int = 256) -> None:
        super().__init__()
        self.clip = ClipScores(spec, classes, width)
        self.segments = nn.Linear(width, classes + 1)

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs for tokens ``[b, T, N, D]`` per tower."""
        fused, scores = self.clip(features)
        return {"segments": self.segments(fused), "scores": scores}
