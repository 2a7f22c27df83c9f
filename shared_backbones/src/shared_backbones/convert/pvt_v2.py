"""PVT-v2 checkpoints to tower `pvt_v2`: the authors' naming, which counts stages from 1, or timm's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shared_backbones.convert import Converter
from shared_backbones.errors import WeightsError

if TYPE_CHECKING:
    from shared_backbones.convert import Tensors

DROPPED = {"head.weight", "head.bias"}
PART = re.compile(r"(patch_embed|block|norm)([1-4])\.(.+)")
# Width of the first stage and blocks per stage.
VARIANTS: dict[tuple[int, tuple[int, ...]], str] = {
    (32, (2, 2, 2, 2)): "b0", (64, (2, 2, 2, 2)): "b1", (64, (3, 4, 6, 3)): "b2",
    (64, (3, 4, 18, 3)): "b3", (64, (3, 8, 27, 3)): "b4", (64, (3, 6, 40, 3)): "b5",
}  # fmt: skip


def rename(name: str) -> str:
    """An authors' name in timm's naming; any other name as it is."""
    match = PART.fullmatch(name)
    if match is None:
        return name
    part, stage, rest = match[1], int(match[2]) - 1, match[3]
    if part == "patch_embed":
        return f"stages.{stage}.downsample.{rest}" if stage else f"patch_embed.{rest}"
    if part == "norm":
        return f"stages.{stage}.norm.{rest}"
    return f"stages.{stage}.blocks.{rest.replace('.dwconv.dwconv.', '.dwconv.')}"


def translate(tensors: Tensors) -> tuple[str | None, Tensors, list[str]]:
    """Patch embeddings become down-samplings, depthwise convolutions lose their wrapper, the class head is dropped."""
    found = {rename(name): tensor for name, tensor in tensors.items() if name not in DROPPED}
    blocks = [re.match(r"stages\.(\d)\.blocks\.(\d+)\.", name) for name in found]
    pairs = {(int(match[1]), int(match[2])) for match in blocks if match}
    depths = tuple(sum(stage == i for stage, _ in pairs) for i in range(4))
    stem = found.get("patch_embed.proj.weight")
    width = 0 if stem is None else stem.shape[0]
    if (width, depths) not in VARIANTS:
        raise WeightsError(
            f"PVT-v2 with {width} channels and {depths} blocks; expected {', '.join(f'{v} {k}' for k, v in VARIANTS.items())}"
        )
    return VARIANTS[width, depths], found, sorted(DROPPED & tensors.keys())


CONVERTER = Converter(
    "pvt_v2", lambda names: "stages.0.blocks.0.mlp.dwconv.weight" in {rename(name) for name in names}, translate
)
