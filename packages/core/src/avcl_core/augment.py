"""SpecAugment: which entries of a log-mel a training step hides, in stripes of time and of frequency."""

from __future__ import annotations

import torch
from torch import Tensor

PUBLISHED = (1024, 64)
"""Spectrogram (frames, mels) for which HTS-AT's stripes of 64 frames and 8 bins are meant."""


def stripe_widths(spectrogram: tuple[int, int]) -> tuple[int, int]:
    """Return the bounds (frames, mels) of the stripes for a tower whose longest log-mel is ``spectrogram``.

    64 frames of 1024 and 8 of 64 bins (HTS-AT's training, avmoe.md 4.1), in the same proportion for other sizes: 16 of 256 and 2 of
    16 for the tiny tower. The time axis is the tower's, not the clip's: 5 seconds lose as much per stripe as 10. At least 2, since
    widths stay below their bound and a bound of 1 would hide nothing.
    """
    frames, mels = (
        max(2, round(bound * size / whole)) for bound, size, whole in zip((64, 8), spectrogram, PUBLISHED, strict=True)
    )
    return frames, mels


def spec_augment(
    count: int,
    frames: int,
    mels: int,
    generator: torch.Generator,
    widths: tuple[int, int] = (64, 8),
    stripes: int = 2,
) -> Tensor:
    """Return which entries of ``count`` log-mels are hidden: bool ``[count, frames, mels]``, on the generator's device.

    Every segment gets ``stripes`` stripes of time and as many of frequency, independently: a width uniform in 0…bound − 1, then
    a start uniform in 0…size − width − 1 (Park et al., Interspeech 2019, section 2, without time warping). Stripes may overlap.

    Args:
        widths: the bounds (frames, mels), see :func:`stripe_widths`.

    Raises:
        ValueError: a bound that is not positive or longer than its axis.
    """
    hidden = torch.zeros(count, frames, mels, dtype=torch.bool, device=generator.device)
    for axis, (size, bound) in enumerate(zip((frames, mels), widths, strict=True)):
        if not 0 < bound <= size:
            raise ValueError(
                f"SpecAugment: stripes below {bound} {('frames', 'mels')[axis]} in a log-mel of {size}; "
                f"expected a bound from 1 to {size}"
            )
        drawn = {"generator": generator, "device": generator.device}
        width = torch.randint(bound, (count, stripes, 1), **drawn)
        # Double precision, so that the integer part is uniform to 2^-40 whatever the number of places.
        start = (torch.rand(count, stripes, 1, dtype=torch.float64, **drawn) * (size - width)).long()
        place = torch.arange(size, device=generator.device)
        line = ((place >= start) & (place < start + width)).any(1)
        hidden |= line.unsqueeze(2 - axis)
    return hidden
