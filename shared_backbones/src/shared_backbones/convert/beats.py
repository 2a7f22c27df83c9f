"""BEATs' checkpoints in the layout of `BEATs_iter3_plus_AS2M.pt`, fine-tuned or not, to tower `beats` (avqacl_moe.md 3.7)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from shared_backbones.convert import Converter
from shared_backbones.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from shared_backbones.convert import Tensors

# The class head of fine-tuned checkpoints.
DROPPED = {"predictor.weight", "predictor.bias"}
CONV = "encoder.pos_conv"
TABLE = "encoder.relative_attention_bias.weight"
COPY = re.compile(r"encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight")

# What the shapes of the tensors do not tell, and what they do; the class default of max_distance is another one.
CFG = {
    "encoder_layers": 12, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072, "encoder_attention_heads": 12,
    "activation_fn": "gelu", "layer_norm_first": False, "deep_norm": True, "conv_bias": False, "conv_pos": 128,
    "conv_pos_groups": 16, "relative_position_embedding": True, "num_buckets": 320, "max_distance": 800,
    "gru_rel_pos": True, "input_patch_size": 16, "embed_dim": 512,
}  # fmt: skip


def layout() -> Tensors:
    """The 250 published tensors as shapes on the meta device: every block has a copy of the table of relative biases, and the
    convolution of positions a direction and a length per kernel position in place of its weight."""
    from shared_backbones.registry import build

    found = build("beats", "full", {}, device="meta").net.state_dict()
    weight, table = found.pop(f"{CONV}.weight"), found.pop(TABLE)
    blocks = {name.split(".")[2] for name in found if name.startswith("encoder.layers.")}
    found |= {f"encoder.layers.{i}.self_attn.relative_attention_bias.weight": table for i in blocks}
    bias = found.pop(f"{CONV}.bias")
    lengths = torch.empty(1, 1, weight.shape[2], device="meta")
    return found | {f"{CONV}.0.bias": bias, f"{CONV}.0.weight_g": lengths, f"{CONV}.0.weight_v": weight}


def fold(v: Tensor, g: Tensor) -> Tensor:
    """Weight of a convolution [out, in, kernel] from its direction and, per kernel position, its length [1, 1, kernel]."""
    v = v.double()
    return (g.double() * v / v.square().sum((0, 1), keepdim=True).sqrt()).float()


def translate(tensors: Tensors) -> tuple[str | None, Tensors, list[str]]:
    """All tensors under their names, except that the weight norm is folded and the 12 equal tables become one.

    WeightsError lists every missing and unknown key and every wrong shape of the published layout, and copies that differ.
    """
    from shared_backbones.weights import compare

    found = {name: tensor for name, tensor in tensors.items() if name not in DROPPED}
    if faults := compare(layout(), found):
        raise WeightsError(f"not the layout beats of tower beats: {'; '.join(faults)}")
    copies = {name: found.pop(name) for name in sorted(found) if COPY.fullmatch(name)}
    first, *others = copies
    if differing := [name for name in others if not torch.equal(copies[name], copies[first])]:
        raise WeightsError(
            f"{', '.join(differing)} differ from {first}; expected one table of relative biases that all blocks share"
        )
    found[TABLE] = copies[first]
    found[f"{CONV}.bias"] = found.pop(f"{CONV}.0.bias")
    found[f"{CONV}.weight"] = fold(found.pop(f"{CONV}.0.weight_v"), found.pop(f"{CONV}.0.weight_g"))
    return None, found, sorted(DROPPED & tensors.keys())


CONVERTER = Converter(
    "beats",
    lambda names: {"patch_embedding.weight", "encoder.layers.0.self_attn.grep_linear.weight"} <= names,
    translate,
    cfg=CFG,
)
