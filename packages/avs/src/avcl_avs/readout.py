"""The last step of the up-sampling head: 512 channels per pixel meet the sound, without ever being in memory together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from avcl_avs.mapnorm import MapNorm, over_clip

CHUNK = 2**24
"""Numbers of Φ that are in memory at a time (64 MiB in float32)."""


class Readout(nn.Module):
    """Logits of maps and sounds: Φ = ReLU(BN(conv3×3(maps))), m = ⟨Φ, u⟩ per pixel, logit = conv1×1(Φ ⊙ m) (php.md 3.9).

    As m is one number per pixel, the logit is m · ⟨Φ, w⟩ + b: two sums over the channels of Φ, which is all that is needed of
    it. The ReLU lets neither sum be moved in front of the convolution, or of the up-sampling before that, so Φ is computed for
    some channels at a time; for its gradient these are computed again, unless all of them fit at once. Channels rather than
    frames, because the statistics of a channel are over all frames of the clip. In evaluation the batch norm is part of the
    convolution's weights.

    Args:
        inputs: channels of the maps.
        width: channels P of Φ and of the sound.
        chunk: numbers of Φ that are in memory at a time; never less than one channel of a clip.
    """

    def __init__(self, inputs: int, width: int, chunk: int = CHUNK) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, 3, padding=1)
        self.norm = MapNorm(width)
        self.out = nn.Linear(width, 1)
        self.chunk = chunk

    def forward(self, maps: Tensor, sound: Tensor, frames: int) -> Tensor:
        """Return logits ``[b·T, H, W]`` for maps ``[b·T, C, H, W]`` and u ``[b·T, P]``; ``frames`` rows are a clip."""
        readers = torch.stack([sound, self.out.weight.expand_as(sound)], 1)
        clips = zip(maps.split(frames), readers.split(frames), strict=True)
        heard, shown = torch.cat([self._clip(*clip) for clip in clips]).unbind(1)
        return heard * shown + self.out.bias

    def _clip(self, maps: Tensor, readers: Tensor) -> Tensor:
        """Return ⟨Φ, reader⟩ ``[T, 2, H, W]`` of one clip for maps ``[T, C, H, W]`` and two readers per frame ``[T, 2, P]``."""
        tensors = (*self.conv.parameters(), *self.norm.parameters(), *self.norm.buffers())
        size = max(1, self.chunk // maps[:, 0].numel())
        sums, seen = maps.new_zeros(()), []
        for piece, *own in zip(readers.split(size, 2), *(tensor.split(size) for tensor in tensors), strict=True):
            given = self.training, maps, piece, *own
            if torch.is_grad_enabled() and size < len(self.conv.weight):
                found, *statistics = checkpoint(self._sums, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                found, *statistics = self._sums(*given)
            sums = sums + found
            seen.append(statistics)
        if self.training:
            self.norm.saw(*(torch.cat(values) for values in zip(*seen, strict=True)))
        return sums

    def _sums(
        self,
        learns: bool,
        maps: Tensor,
        readers: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor,
        shift: Tensor,
        mean: Tensor,
        var: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what some channels of Φ add to the sums, and the statistics that they were normalised with."""
        if learns:
            convolved = functional.conv2d(maps, weight, bias, padding=1)
            normed, mean, var = over_clip(convolved, scale, shift, self.norm.eps)
        else:
            gain = scale * torch.rsqrt(var + self.norm.eps)
            normed = functional.conv2d(
                maps, weight * gain[:, None, None, None], (bias - mean) * gain + shift, padding=1
            )
        phi = torch.relu(normed).flatten(2)
        return (readers @ phi).unflatten(2, maps.shape[2:]), mean, var
