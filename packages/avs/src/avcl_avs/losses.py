"""What the masks are trained with: cross-entropy per pixel on annotated frames, and the match of sound and masked picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

PUBLISHED_FRAMES = 10
"""Frames of the batch over which the published audio-visual match loss is a sum: two clips of five."""


def frame_bce(logits: Tensor, mask: Tensor, annotated: Tensor) -> Tensor:
    """Return the binary cross-entropy of every frame ``[b, T]``, the mean over its pixels, and zero where it is not annotated.

    In ``s4`` one training frame of five is annotated, so the pixels of the others are left out before, not after.

    Args:
        logits, mask: ``[b, T, H, W]``.
        annotated: ``[b, T]``.
    """
    known = annotated.bool()
    pixels = functional.binary_cross_entropy_with_logits(logits[known], mask[known].to(logits.dtype), reduction="none")
    return pixels.new_zeros(known.shape).masked_scatter(known, pixels.mean((1, 2)))


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
