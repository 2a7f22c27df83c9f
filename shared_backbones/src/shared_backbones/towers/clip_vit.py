"""CLIP's vision transformer (Radford et al., ICML 2021) with its text side, through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from shared_backbones.errors import TowerError, nearest
from shared_backbones.registry import register
from shared_backbones.text import LENGTH, ClipText
from shared_backbones.tower import Prefix, Sub, Swap, Tower, TowerInfo, refuse, refuse_hiding
from shared_backbones.vocabulary import STAND_IN, Vocabulary, byte_vocabulary, clip_vocabulary, stand_in_vocabulary

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# width, blocks, heads, patch, image size; text width, blocks, heads; joint width; vocabulary
FULL = {
    "b32": (768, 12, 12, 32, 224, 512, 12, 8, 512, 49408),
    "b16": (768, 12, 12, 16, 224, 512, 12, 8, 512, 49408),
    "l14_336": (1024, 24, 16, 14, 336, 768, 12, 12, 768, 49408),
}
TINY = (64, 4, 2, 8, 32, 32, 2, 2, 32, 259)
# What LLaVA and its kin read, transformers' hidden_states[-2] (avqacl_moe.md 3.8): a variant without its last block and without text.
PARTS = {"l14_336_penultimate": "l14_336"}


@register("clip_vit")
def clip_vit(size: str, variant: str | None = None, tokenizer: str | Path | None = None) -> ClipVit:
    """Full: ``variant`` b32 (default), b16 or l14_336, text with ``tokenizer=``, or l14_336_penultimate, which takes the weights of
    l14_336 and ends in front of its last block: no last norm, no text. Tiny: 32 pixels, 17 tokens, byte-level text."""
    if size == "tiny":
        if variant is not None:
            raise TowerError(
                f"tower clip_vit: variant {variant!r} picks a published size; size='tiny' has one configuration"
            )
        if tokenizer is not None:
            raise TowerError("tower clip_vit: tokenizer= is for size='full'; size='tiny' reads bytes")
        return ClipVit("tiny", "tiny", TINY, byte_vocabulary(start=257, end=258, pad=0))
    variant = variant or "b32"
    if variant in PARTS:
        if tokenizer is not None:
            raise TowerError(f"tower clip_vit: variant {variant!r} has no text side; leave tokenizer= out")
        return ClipVit("full", variant, FULL[PARTS[variant]], None, part_of=PARTS[variant])
    if variant not in FULL:
        raise TowerError(f"tower clip_vit: unknown variant {variant!r}{nearest(variant, [*FULL, *PARTS])}")
    words = FULL[variant][-1]
    if tokenizer == STAND_IN:
        return ClipVit("full", variant, FULL[variant], stand_in_vocabulary(words - 2, words - 1, 0, words))
    return ClipVit("full", variant, FULL[variant], clip_vocabulary(tokenizer) if tokenizer is not None else None)


class Sight(nn.Module):
    """CLIP's vision transformer in front of its last block, under the names that it has in CLIP."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.vision_model = CLIPVisionModel(config)
        # The last norm belongs behind the last block: tokens in front of that one have none.
        self.vision_model.add_module("post_layernorm", nn.Identity())


class ClipVit(Tower):
    """Pre-norm blocks; `embed` gives tokens behind CLIP's first norm and, as ``aux["raw"]``, those in front of it.

    With ``part_of`` the last block is not built, `final` changes nothing, and there is no text side.
    """

    net: CLIPModel | Sight

    def __init__(
        self,
        size: str,
        variant: str,
        geometry: tuple[int, ...],
        vocabulary: Vocabulary | None,
        part_of: str | None = None,
    ) -> None:
        width, depth, heads, patch, image, text_width, text_depth, text_heads, joint, words = geometry
        depth -= part_of is not None
        vision = CLIPVisionConfig(
            hidden_size=width, intermediate_size=4 * width, projection_dim=joint, num_hidden_layers=depth,
            num_attention_heads=heads, image_size=image, patch_size=patch, hidden_act="quick_gelu",
        )  # fmt: skip
        text = CLIPTextConfig(
            vocab_size=words, hidden_size=text_width, intermediate_size=4 * text_width, projection_dim=joint,
            num_hidden_layers=text_depth, num_attention_heads=text_heads, max_position_embeddings=LENGTH,
            hidden_act="quick_gelu", bos_token_id=words - 2, eos_token_id=words - 1, pad_token_id=0,
        )  # fmt: skip
        if part_of is not None:
            net = Sight(vision)
        else:
            config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=joint)
            net = CLIPModel(config)
        grid = (image // patch, image // patch)
        subs = (Sub(kind, 0, block, grid, width) for block in range(depth) for kind in ("attn", "mlp"))
        super().__init__(
            TowerInfo(
                name="clip_vit", size=size, variant=variant, modality="visual", width=width, class_tokens=1, grid=grid,
                depths=(depth,), image_size=image, mean=MEAN, std=STD, joint_width=joint if part_of is None else None,
                heads=(heads,), part_of=part_of,
            ),
            net,
            tuple(subs),
        )  # fmt: skip
        if isinstance(net, CLIPModel):
            self.text = ClipText("clip_vit", net, vocabulary)

    def embed(self, features: Tensor, hide: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        refuse_hiding(self.info.name, hide)
        vision = self.net.vision_model
        raw = vision.embeddings(features)
        return vision.pre_layrnorm(raw), {"raw": raw}

    def run(
        self, sub: Sub, tokens: Tensor, aux: dict[str, Any], prefix: Prefix | None = None, swap: Swap | None = None
    ) -> Tensor:
        refuse(sub, self.info.name, prefix, swap)
        layer = self._layer(sub)
        if sub.kind == "mlp":
            return (swap or self.mlp(sub))(layer.layer_norm2(tokens))
        attn, normed = layer.self_attn, layer.layer_norm1(tokens)
        keys, values = (torch.cat((rows, normed), 1) for rows in prefix) if prefix is not None else (normed, normed)

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)

        out = F.scaled_dot_product_attention(
            split(attn.q_proj(normed)), split(attn.k_proj(keys)), split(attn.v_proj(values))
        )
        return attn.out_proj(out.transpose(1, 2).flatten(2))

    def mlp(self, sub: Sub) -> Swap:
        return self._layer(sub).mlp

    def _layer(self, sub: Sub) -> CLIPEncoderLayer:
        return cast(CLIPEncoderLayer, self.net.vision_model.encoder.layers[sub.block])

    def final(self, tokens: Tensor) -> Tensor:
        return self.net.vision_model.post_layernorm(tokens)

    def project(self, final_tokens: Tensor) -> Tensor:
        if not isinstance(self.net, CLIPModel):
            return super().project(final_tokens)
        return self.net.visual_projection(final_tokens[:, 0])
