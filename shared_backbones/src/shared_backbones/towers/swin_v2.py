"""Swin Transformer V2 (Liu et al., CVPR 2022) through timm: window attention on images, tokens after patch merging."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block, SwinTransformerV2Stage
from torch import Tensor
from torch.nn import functional as F

from shared_backbones.errors import TowerError, nearest
from shared_backbones.registry import register
from shared_backbones.tower import Prefix, Sub, Swap, Tower, TowerInfo, refuse, refuse_hiding
from shared_backbones.windows import from_windows, to_windows, window_attention

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The position bias 16·sigmoid(·) lies between 0 and 16. A prefix row has no position, so it gets the middle of that range; with 0
# it would carry e^-8 of a token's weight.
PREFIX_BIAS = 8.0

FULL: dict[str, dict[str, Any]] = {
    "large": {"embed_dim": 192, "num_heads": (6, 12, 24, 48)},
    "base": {"embed_dim": 128, "num_heads": (4, 8, 16, 32)},
}
TINY: dict[str, Any] = {
    "img_size": 64, "embed_dim": 16, "depths": (2, 2, 6, 2), "num_heads": (1, 2, 4, 8), "window_size": 4,
}  # fmt: skip


@register("swin_v2")
def swin_v2(size: str, variant: str | None = None) -> SwinV2:
    """Full: ``variant`` large (default) or base, window 12, 192 pixels, ImageNet-22k geometry; tiny: 64 pixels, widths 16…128."""
    if size == "tiny":
        if variant is not None:
            raise TowerError(
                f"tower swin_v2: variant {variant!r} picks a published size; size='tiny' has one configuration"
            )
        return SwinV2("tiny", "tiny", TINY)
    variant = variant or "large"
    if variant not in FULL:
        raise TowerError(f"tower swin_v2: unknown variant {variant!r}{nearest(variant, FULL)}")
    geometry = {"img_size": 192, "depths": (2, 2, 18, 2), "window_size": 12} | FULL[variant]
    return SwinV2("full", variant, geometry)


class SwinV2(Tower):
    """Res-post-norm: a residual is ``norm1(attention(x))`` or ``norm2(mlp(x))``, so a swap sits in front of its norm.

    timm keeps a stage's down-sampling at the start of the next stage; so does the walk, as a merge in front of its blocks.
    """

    net: SwinTransformerV2

    def __init__(self, size: str, variant: str, geometry: dict[str, Any]) -> None:
        net = SwinTransformerV2(num_classes=0, drop_path_rate=0.0, **geometry)
        stages = [cast(SwinTransformerV2Stage, stage) for stage in net.layers]
        self.blocks: list[SwinTransformerV2Block] = []
        subs: list[Sub] = []
        for i, stage in enumerate(stages):
            at = (i, len(self.blocks), cast("tuple[int, int]", stage.output_resolution), net.embed_dim * 2**i)
            if i:
                subs.append(Sub("merge", *at))
            for block in stage.blocks:
                at = (i, len(self.blocks), *at[2:])
                subs += [Sub("attn", *at), Sub("mlp", *at)]
                self.blocks.append(cast(SwinTransformerV2Block, block))
        last = subs[-1]
        super().__init__(
            TowerInfo(
                name="swin_v2", size=size, variant=variant, modality="visual", width=last.width, class_tokens=0,
                grid=last.grid, depths=tuple(geometry["depths"]), image_size=geometry["img_size"],
                mean=IMAGENET_MEAN, std=IMAGENET_STD, heads=tuple(geometry["num_heads"]),
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
            stage = cast(SwinTransformerV2Stage, self.net.layers[sub.stage])
            rows, columns = sub.grid
            return stage.downsample(tokens.unflatten(1, (2 * rows, 2 * columns))).flatten(1, 2)
        block = self.blocks[sub.block]
        if sub.kind == "mlp":
            return block.norm2((swap or self.mlp(sub))(tokens))
        return block.norm1(self._attention(block, sub, tokens, prefix))

    def mlp(self, sub: Sub) -> Swap:
        return self.blocks[sub.block].mlp

    def _attention(self, block: SwinTransformerV2Block, sub: Sub, tokens: Tensor, prefix: Prefix | None) -> Tensor:
        attn, window, shift = block.attn, block.window_size[0], block.shift_size[0]
        weights = attn.qkv.weight.chunk(3)
        q_bias, v_bias = cast(Tensor, attn.q_bias), cast(Tensor, attn.v_bias)
        x = to_windows(tokens, sub.grid, window, shift)
        q, k, v = F.linear(x, attn.qkv.weight, torch.cat((q_bias, cast(Tensor, attn.k_bias), v_bias))).chunk(3, -1)
        if prefix is not None:
            prefix = (F.linear(prefix[0], weights[1]), F.linear(prefix[1], weights[2], v_bias))
        table = attn.cpb_mlp(attn.relative_coords_table).flatten(0, -2)
        index = cast(Tensor, attn.relative_position_index)
        bias = 16 * torch.sigmoid(table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1))
        scale = attn.logit_scale.clamp(max=math.log(100.0)).exp()
        mask = cast("Tensor | None", block.attn_mask)
        out = window_attention(q, k, v, attn.num_heads, bias, mask, prefix, scale, PREFIX_BIAS)
        return from_windows(attn.proj(out), sub.grid, window, shift)

    def final(self, tokens: Tensor) -> Tensor:
        return self.net.norm(tokens)
