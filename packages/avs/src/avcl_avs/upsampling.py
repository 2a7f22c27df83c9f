"""The up-sampling head: a grid of patches grows to a mask in doublings, and the frame's class token asks the sound what to show."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from avcl_avs.head import enlarged, needs_both
from avcl_avs.mapnorm import MapNorm
from avcl_avs.options import SegmentationOptions
from avcl_avs.readout import Readout
from avcl_core.batch import Batch, Outputs
from avcl_core.errors import ConfigError
from avcl_core.features import Features, FeatureSpec, TokenShape

EIGHTHS = (12, 6, 3, 2)
"""Channels of the grid and after each doubling, in eighths of the option `width`; further doublings keep the last number."""
HEADS = 8
"""Heads of the attention over the sound."""


class Doubling(nn.Module):
    """Bilinear doubling, then a 3×3 convolution without bias, batch norm per clip, ReLU."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.norm = MapNorm(width)

    def forward(self, maps: Tensor, frames: int) -> Tensor:
        """Return ``[b·T, width, 2H, 2W]`` for ``[b·T, C, H, W]``; ``frames`` rows are a clip."""
        doubled = functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
        return functional.relu(self.norm(self.conv(doubled), frames))


class SoundAttention(nn.Module):
    """Cross-attention with one query, the class token of a frame, over the tokens of its second of sound.

    Args:
        visual: channels of the query.
        audio: channels of the sound.
        width: channels inside and of the result, a multiple of 8.
    """

    def __init__(self, visual: int, audio: int, width: int) -> None:
        super().__init__()
        self.sound = nn.Linear(audio, width)
        self.query = nn.Linear(visual, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Return ``[n, width]`` for queries ``[n, visual]`` and tokens ``[n, N_a, audio]``."""
        sound = self.sound(tokens)
        projected = self.query(query)[:, None], self.key(sound), self.value(sound)
        parts = (value.unflatten(-1, (HEADS, -1)).transpose(1, 2) for value in projected)
        return self.out(functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(1))


class UpsamplingHead(nn.Module):
    """PHP's segmentation head (Yin et al., ICCV 2025; php.md 3.9): 3,127,105 parameters at the published size.

    Both towers' last tokens are read before the final norms. Nothing mixes frames, except that batch norm learns from all
    frames of a clip. Doublings: as many as lead from the tower's grid to ``mask_size``, five from 7×7 to 224.

    Outputs:
        ``logits`` ``[b, T, 224, 224]``.

    Raises:
        ConfigError: a tower is missing, the visual one has no class token or no square grid, or no number of doublings leads
            to ``mask_size``.
    """

    def __init__(self, spec: FeatureSpec, options: SegmentationOptions) -> None:
        super().__init__()
        self.shape = patch_shape(spec)
        steps = doublings(self.shape.grid[0], options.mask_size)
        widths = [options.width * part // 8 for part in (*EIGHTHS, *[EIGHTHS[-1]] * steps)][: steps + 1]
        self.project = nn.Linear(self.shape.width, widths[0])
        self.steps = nn.ModuleList(Doubling(a, b) for a, b in pairwise(widths))
        self.attend = SoundAttention(self.shape.width, spec.stages["audio"][-1].width, 2 * options.width)
        self.readout = Readout(widths[-1], 2 * options.width)

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the logits for tokens ``[b, T, 1 + N, C]`` and ``[b, T, N_a, C_a]``; of the batch nothing is used."""
        visual, audio = (features.stages[tower][-1] for tower in ("visual", "audio"))
        b, frames = visual.shape[:2]
        tokens = visual.flatten(0, 1)
        grid = self.project(tokens[:, self.shape.class_tokens :])
        maps = grid.transpose(1, 2).unflatten(2, self.shape.grid)
        for step in self.steps:
            maps = step(maps, frames)
        sound = self.attend(tokens[:, 0], audio.flatten(0, 1))
        return {"logits": enlarged(self.readout(maps, sound, frames).unflatten(0, (b, frames)))}


def patch_shape(spec: FeatureSpec) -> TokenShape:
    """Return the shape of the visual tower's last tokens; ConfigError where they have no class token or no square grid."""
    needs_both(spec)
    shape = spec.stages["visual"][-1]
    if not shape.class_tokens:
        raise ConfigError(
            "task avs: head upsampling asks the sound with the class token of towers.visual, which has none; choose clip_vit"
        )
    if shape.grid[0] != shape.grid[1]:
        raise ConfigError(f"task avs: head upsampling needs a square grid of patches; towers.visual has {shape.grid}")
    return shape


def doublings(grid: int, size: int) -> int:
    """Return how often ``grid`` is doubled to be ``size``; ConfigError where no number of times, at least one, will do."""
    steps = (size // grid).bit_length() - 1
    if steps < 1 or grid << steps != size:
        known = ", ".join(str(grid << step) for step in range(1, 7) if grid << step <= 256)
        raise ConfigError(
            f"task avs: head upsampling doubles the {grid}×{grid} patches of towers.visual; mask_size {size} is none of {known}"
        )
    return steps
