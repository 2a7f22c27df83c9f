"""The simple AVVP head: per modality and second an independent logit per class, pooled over time by attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from avcl_core.batch import Batch, Outputs
from avcl_core.features import Features, FeatureSpec

WIDTH = 128
"""Width of the representation of a second."""
MODALITIES = ("audio", "visual")
"""The two modalities in which events are parsed."""
PRIOR = 0.1
"""Probability of a class in a second before training: most classes are absent from most seconds."""
SMALLEST = 1e-6
"""Probabilities are kept this far from 0 and 1 before they become logits again."""


class PoolingHead(nn.Module):
    """Parse events with multiple-instance learning: dense logits that only video-level labels ever supervise.

    A modality reads the token means of its own tower; where that tower is absent it reads all towers there are. Per
    modality, P[s,c] is the probability of class c in second s, A a softmax over the seconds, and the video-level
    probability is p_m[c] = Σ_s A[s,c] P[s,c]; the video has an event if either modality has it,
    p = 1 − (1 − p_audio)(1 − p_visual).

    Outputs, all logits:
        ``audio``, ``visual`` ``[b, T, C]``: events per second.
        ``clip_audio``, ``clip_visual``, ``clip`` ``[b, C]``: p_audio, p_visual and p.
    """

    def __init__(self, spec: FeatureSpec, classes: int) -> None:
        super().__init__()
        widths = {tower: shape.width for tower, shape in spec.final.items()}
        self.norms = nn.ModuleDict({tower: nn.LayerNorm(width) for tower, width in widths.items()})
        self.sources = {name: [name] if name in widths else list(widths) for name in MODALITIES}
        self.project = nn.ModuleDict(
            {name: nn.Linear(sum(widths[tower] for tower in self.sources[name]), WIDTH) for name in MODALITIES}
        )
        self.context = nn.ModuleDict({name: nn.Conv1d(WIDTH, WIDTH, kernel_size=3, padding=1) for name in MODALITIES})
        self.event = nn.ModuleDict({name: _event_layer(classes) for name in MODALITIES})
        self.attention = nn.ModuleDict({name: nn.Linear(WIDTH, classes) for name in MODALITIES})

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs for tokens ``[b, T, N, D]`` per tower."""
        means = {tower: norm(features.final[tower].mean(2)) for tower, norm in self.norms.items()}
        outputs: Outputs = {}
        missing = []
        for name in MODALITIES:
            seconds = nn.functional.gelu(self.project[name](torch.cat([means[t] for t in self.sources[name]], -1)))
            around = self.context[name](seconds.transpose(1, 2)).transpose(1, 2)
            seconds = seconds + nn.functional.gelu(around)
            outputs[name] = self.event[name](seconds)
            weights = self.attention[name](seconds).float().softmax(1)
            pooled = (weights * outputs[name].float().sigmoid()).sum(1)
            outputs[f"clip_{name}"] = _logit(pooled)
            missing.append(1 - pooled)
        outputs["clip"] = _logit(1 - missing[0] * missing[1])
        return outputs


def _event_layer(classes: int) -> nn.Linear:
    layer = nn.Linear(WIDTH, classes)
    nn.init.constant_(layer.bias, math.log(PRIOR / (1 - PRIOR)))
    return layer


def _logit(probability: Tensor) -> Tensor:
    return torch.logit(probability, eps=SMALLEST)
