"""OpenAI's CLIP archives (TorchScript, half precision) or their state dicts to tower `clip_vit`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shared_backbones.convert import Converter
from shared_backbones.convert.hf_clip import variant_of

if TYPE_CHECKING:
    from shared_backbones.convert import Tensors

DROPPED = {"input_resolution", "context_length", "vocab_size"}
TOP = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
# Stored for multiplication from the right, while a linear layer multiplies by its transpose.
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.*)")
INSIDE = {
    "attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
PACKED = re.compile(r"attn\.in_proj_(weight|bias)")


def translate(tensors: Tensors) -> tuple[str | None, Tensors, list[str]]:
    """Query, key and value are thirds of the packed input projection."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if name in DROPPED:
            continue
        if name in TRANSPOSED:
            found[TRANSPOSED[name]] = tensor.t()
        elif match := BLOCK.fullmatch(name):
            head = f"{'vision_model' if match[1] else 'text_model'}.encoder.layers.{match[2]}."
            module, _, leaf = match[3].rpartition(".")
            if packed := PACKED.fullmatch(match[3]):
                for part, third in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{head}self_attn.{part}_proj.{packed[1]}"] = third
            else:
                found[f"{head}{INSIDE.get(module, module)}.{leaf}"] = tensor
        else:
            found[TOP.get(name, name)] = tensor
    return variant_of(found), found, sorted(DROPPED & tensors.keys())


CONVERTER = Converter(
    "clip_vit", lambda names: "visual.conv1.weight" in names and "ln_final.weight" in names, translate
)
