"""Pyramid Vision Transformer v2 (Wang et al., CVMJ 2022) through timm: attention over spatially reduced keys, four stage maps."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.models.pvt_v2 import Block, PyramidVisionTransformerStage, PyramidVisionTransformerV2
from torch import Tensor
from torch.nn import functional as F

from shared_backbones.errors import TowerError, nearest
from shared_backbones.registry import register
from shared_backbones.tower import Prefix, Sub, Swap, Tower, TowerInfo, refuse, refuse_hiding

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

HEADS, REDUCTIONS = (1, 2, 5, 8), (8, 4, 2, 1)
WIDTHS = (64, 128, 320, 512)
FULL: dict[str, dict[str, Any]] = {
    "b5": {"embed_dims": WIDTHS, "depths": (3, 6, 40, 3), "mlp_ratios": (4, 4, 4, 4)},
    "b4": {"embed_dims": WIDTHS, "depths": (3, 8, 27, 3)},
    "b3": {"embed_dims": WIDTHS, "depths": (3, 4, 18, 3)},
    "b2": {"embed_dims": WIDTHS, "depths": (3, 4, 6, 3)},
    "b1": {"embed_dims": WIDTHS, "depths": (2, 2, 2, 2)},
    "b0": {"embed_dims": (32, 64, 160, 256), "depths": (2, 2, 2, 2)},
}
TINY: dict[str, Any] = {"embed_dims": (16, 32, 40, 64), "depths": (2, 2, 2, 2), "mlp_ratios": (4, 4, 4, 4)}


@register("pvt_v2")
def pvt_v2(size: str, variant: str | None = None) -> PvtV2:
    """Full: ``variant`` b5 (default) to b0, 224 pixels; tiny: 64 pixels, widths 16, 32, 40, 64, two blocks per stage."""
    if size == "tiny":
        if variant is not None:
            raise TowerError(
                f"tower pvt_v2: variant {variant!r} picks a published size; size='tiny' has one configuration"
            )
        return PvtV2("tiny", "tiny", TINY, 64)
    variant = variant or "b5"
    if variant not in FULL:
        raise TowerError(f"tower pvt_v2: unknown variant {variant!r}{nearest(variant, FULL)}")
    return PvtV2("full", variant, {"mlp_ratios": (8, 8, 4, 4)} | FULL[variant], 224)


class PvtV2(Tower):
    """Pre-norm blocks; a merge is the overlapping patch embedding in front of a stage.

    Every stage ends with a LayerNorm, and the published stage maps lie behind it. The last one is `final`. The others
    belong to the last MLP of their stage, whose residual r is such that tokens + r are the normalised map: what the walk has in front
    of a merge is then the published map, also with modules at the sites before it.
    """

    net: PyramidVisionTransformerV2

    def __init__(self, size: str, variant: str, geometry: dict[str, Any], image_size: int) -> None:
        net = PyramidVisionTransformerV2(
            num_classes=0, num_heads=HEADS, sr_ratios=REDUCTIONS, drop_path_rate=0.0, **geometry
        )
        self.stages = [cast(PyramidVisionTransformerStage, stage) for stage in net.stages]
        self.blocks: list[Block] = []
        subs: list[Sub] = []
        for i, (stage, width) in enumerate(zip(self.stages, geometry["embed_dims"], strict=True)):
            grid = (image_size // 4 // 2**i,) * 2
            if i:
                subs.append(Sub("merge", i, len(self.blocks), grid, width))
            for block in stage.blocks:
                at = (i, len(self.blocks), grid, width)
                subs += [Sub("attn", *at), Sub("mlp", *at)]
                self.blocks.append(cast(Block, block))
        # The stages that end at these blocks; the last stage's norm is `final`.
        last_blocks = {sub.block: sub.stage for sub in subs if sub.kind == "merge"}
        self.ends = {block - 1: stage - 1 for block, stage in last_blocks.items()}
        last = subs[-1]
        super().__init__(
            TowerInfo(
                name="pvt_v2", size=size, variant=variant, modality="visual", width=last.width, class_tokens=0,
                grid=last.grid, depths=geometry["depths"], image_size=image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD,
                heads=HEADS,
            ),
            net,
            tuple(subs),
        )  # fmt: skip

    def embed(self, features: Tensor, hide: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        refuse_hiding(self.info.name, hide)
        return self.net.patch_embed(features).flatten(1, 2), {}

    def run(
        self, sub: Sub, tokens: Tensor, aux: dict[str, Any], prefix: Prefix | None = None, swap: Swap | None = None
    ) -> Tensor:
        refuse(sub, self.info.name, prefix, swap)
        if sub.kind == "merge":
            downsample = cast(torch.nn.Module, self.stages[sub.stage].downsample)
            rows, columns = sub.grid
            return downsample(_map(tokens, (2 * rows, 2 * columns))).flatten(1, 2)
        block = self.blocks[sub.block]
        if sub.kind == "attn":
            return self._attention(block, sub, block.norm1(tokens), prefix)
        out = (swap or self.mlp(sub))(block.norm2(tokens))
        if sub.block in self.ends:
            return self.stages[sub.stage].norm(tokens + out) - tokens
        return out

    def mlp(self, sub: Sub) -> Swap:
        mlp, grid = self.blocks[sub.block].mlp, list(sub.grid)
        return lambda normed: mlp(normed, grid)

    def _attention(self, block: Block, sub: Sub, normed: Tensor, prefix: Prefix | None) -> Tensor:
        attn, heads = block.attn, block.attn.num_heads
        read = normed
        if attn.sr is not None and attn.norm is not None:
            read = attn.norm(attn.sr(_map(normed, sub.grid)).flatten(2).transpose(1, 2))
        keys_values = attn.kv(read).chunk(2, -1)
        if prefix is not None:
            # Rows join the reduced sequence: they lie on no grid that could be reduced.
            parts = zip(prefix, attn.kv.weight.chunk(2), attn.kv.bias.chunk(2), keys_values, strict=True)
            keys_values = tuple(torch.cat((F.linear(rows, w, b), x), 1) for rows, w, b, x in parts)
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (attn.q(normed), *keys_values))
        return attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def final(self, tokens: Tensor) -> Tensor:
        return self.stages[-1].norm(tokens)


def _map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, grid)
