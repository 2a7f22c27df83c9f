"""What the masks are trained with: cross-entropy per pixel on annotated frames, and the match of sound and masked picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

PUBLISHED_FRAMES = 10
"""Frames of the batch over which the published audio-visual match loss is a sum: two clips of five."""


def frame_bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the binary cross-entropy of every frame ``[b, T]``, the mean over its pixels, for ``[b, T, H, W]`` each."""
    return functional.binary_cross_entropy_with_logits(logits, mask.to(logits.dtype), reduction="none").mean((2, 3))


def audio_visual_match(logits: Tensor, maps: Sequence[Tensor], aligned: Sequence[Tensor]) -> Tensor:
    """Return AVM per frame ``[b, T]``: how far the masked picture is from the sound (tasks.md 3.4), mean over the scales.

    Per scale the logits are averaged down to the map, their sigmoid masks the map, and the spatial mean is compared with the
    sound: KL(softmax(sound) ‖ softmax(picture)), summed over the channels.

    Args:
        logits: ``[b, T, S, S]``.
        maps: per scale ``[b, T, C, H, H]``, H a divisor of S, as the decoder takes them in, that is, after its ReLU.
        aligned: per scale the sound ``[b, T, C]``.
    """
    found = []
    for grid, sound in zip(maps, aligned, strict=True):
        small = functional.avg_pool2d(logits, logits.shape[-1] // grid.shape[-1])
        picture = (small.sigmoid()[:, :, None] * grid).mean((3, 4))
        heard, seen = sound.log_softmax(-1), picture.log_softmax(-1)
        found.append((heard.exp() * (heard - seen)).sum(-1))
    return torch.stack(found).mean(0)
