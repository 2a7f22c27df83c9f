"""The grounding part of the AVQA head: where in a frame does its second of sound come from, and do the two belong together."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from avcl_core.features import Features, FeatureSpec

MATCH_WIDTHS = (512, 256, 128)
"""Widths between the concatenated pair and the two match logits."""


class GroundingHead(nn.Module):
    """Steps 1–3 of the ST-AVQA head (Li et al., CVPR 2022; tasks.md 4.4): 10,000,002 parameters at d = 1536, audio 768.

    Args:
        visual: width d of the visual tower's final tokens, and of everything inside.
        audio: width of the audio tower's tokens.
    """

    def __init__(self, visual: int, audio: int) -> None:
        super().__init__()
        self.audio_in = nn.Linear(audio, visual)
        self.audio_out = nn.Linear(visual, visual)
        self.fuse = nn.Linear(2 * visual, visual)
        widths = (2 * visual, *MATCH_WIDTHS, 2)
        self.match_layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def sound(self, means: Tensor) -> Tensor:
        """Step 1: token means of the sound ``[…, D_a]`` → a ``[…, d]``."""
        return self.audio_out(torch.relu(self.audio_in(means)))

    def ground(self, maps: Tensor, sound: Tensor) -> Tensor:
        """Step 2: frame maps ``[…, N, d]`` and a ``[…, d]`` → s ``[…, d]``.

        Attention is the softmax over positions of the cosine between position and sound; the grounded vector is the attention-
        weighted sum of the normalised positions. Beside it stands the mean of the map as it is.
        """
        directions = functional.normalize(maps, dim=-1)
        attention = torch.softmax((directions @ functional.normalize(sound, dim=-1).unsqueeze(-1)).squeeze(-1), dim=-1)
        grounded = (attention.unsqueeze(-2) @ directions).squeeze(-2)
        return self.fuse(torch.tanh(torch.cat([maps.mean(-2), grounded], -1)))

    def match(self, sound: Tensor, grounded: Tensor) -> Tensor:
        """Step 3: a and s ``[…, d]`` → logits ``[…, 2]``: 1 when frame and sound are of the same second, 0 when not."""
        hidden = torch.cat([sound, grounded], -1)
        *inner, last = self.match_layers
        for layer in inner:
            hidden = torch.relu(layer(hidden))
        return last(hidden)


def widths(spec: FeatureSpec) -> tuple[int, int]:
    """Return the widths of the final visual and audio tokens."""
    return spec.final["visual"].width, spec.final["audio"].width


def frame_maps(tokens: Tensor, spec: FeatureSpec) -> Tensor:
    """Return the visual tokens that lie on the grid, ``[b, T, N, d]``: class tokens in front are dropped."""
    return tokens[:, :, spec.final["visual"].class_tokens :]


def sound_means(features: Features, spec: FeatureSpec) -> Tensor:
    """Return the token means of each second of sound ``[b, T, D_a]``, before the tower's final norm (tasks.md 4.4)."""
    return features.stages["audio"][-1][:, :, spec.final["audio"].class_tokens :].mean(2)


def match_pairs(head: GroundingHead, sound: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Return match logits ``[b, 2, T, 2]`` of the grounded positive (index 0) and negative (index 1) frames ``[b, T, d]``."""
    return torch.stack([head.match(sound, positive), head.match(sound, negative)], 1)


def match_nll(logits: Tensor) -> Tensor:
    """Return per sample the cross-entropy of ``[b, 2, T, 2]`` logits over positives and negatives together, ``[b]``."""
    truth = logits.new_tensor([1, 0]).long()[None, :, None].expand(logits.shape[:3])
    return (
        functional.cross_entropy(logits.flatten(0, 2), truth.flatten(), reduction="none").view(len(logits), -1).mean(1)
    )
