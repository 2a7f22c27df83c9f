"""CLIP in the transformers layout to tower `clip_vit`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shared_backbones.convert import Converter
from shared_backbones.errors import WeightsError

if TYPE_CHECKING:
    from shared_backbones.convert import Tensors

DROPPED = re.compile(r"(text|vision)_model\.embeddings\.position_ids")
PATCH = "vision_model.embeddings.patch_embedding.weight"
POSITIONS = "vision_model.embeddings.position_embedding.weight"
VARIANTS = {(768, 32, 50): "b32", (768, 16, 197): "b16", (1024, 14, 577): "l14_336"}


def variant_of(tensors: Tensors) -> str:
    """Which published model it is, from width, patch size and number of tokens. WeightsError for another one."""
    for name in (PATCH, POSITIONS):
        if name not in tensors:
            raise WeightsError(
                f"CLIP checkpoint without {name} (or its name in OpenAI's layout): missing 1 keys: {name}"
            )
    found = (tensors[PATCH].shape[0], tensors[PATCH].shape[-1], tensors[POSITIONS].shape[0])
    if found not in VARIANTS:
        known = ", ".join(f"{name}: {shape}" for shape, name in VARIANTS.items())
        raise WeightsError(f"CLIP vision of (width, patch, tokens) {found}; expected one of {known}")
    return VARIANTS[found]


def translate(tensors: Tensors) -> tuple[str | None, Tensors, list[str]]:
    """The tower keeps these names."""
    dropped = [name for name in tensors if DROPPED.fullmatch(name)]
    found = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    return variant_of(found), found, dropped


CONVERTER = Converter("clip_vit", lambda names: "vision_model.pre_layrnorm.weight" in names, translate)
