"""Swin-V2 checkpoints to tower `swin_v2`: the authors' and old timm naming, or today's timm naming (avmoe.md 5.3)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shared_backbones.convert import Converter
from shared_backbones.errors import WeightsError

if TYPE_CHECKING:
    from shared_backbones.convert import Tensors

# The class head, and buffers that depend only on the geometry.
DROPPED = re.compile(
    r"head\.(fc\.)?(weight|bias)|layers\.\d+\.blocks\.\d+\.(attn_mask|attn\.(relative_coords_table|relative_position_index|k_bias))"
)
DOWNSAMPLE = re.compile(r"layers\.(\d+)\.(downsample\..*)")
WIDTHS = {192: "large", 128: "base"}


def translate(tensors: Tensors) -> tuple[str | None, Tensors, list[str]]:
    """The authors keep a stage's down-sampling at its end, today's timm at the start of the next: i becomes i + 1."""
    dropped = [name for name in tensors if DROPPED.fullmatch(name)]
    old = any(name.startswith("layers.0.downsample.") for name in tensors)
    found: Tensors = {}
    for name in tensors.keys() - set(dropped):
        match = DOWNSAMPLE.fullmatch(name)
        found[f"layers.{int(match[1]) + 1}.{match[2]}" if old and match else name] = tensors[name]
    width = tensors["patch_embed.proj.weight"].shape[0]
    if width not in WIDTHS:
        raise WeightsError(f"patch_embed.proj.weight has {width} channels; expected 192 (large) or 128 (base)")
    return WIDTHS[width], found, dropped


CONVERTER = Converter(
    "swin_v2", lambda names: {"patch_embed.proj.weight", "layers.0.blocks.0.attn.logit_scale"} <= names, translate
)
