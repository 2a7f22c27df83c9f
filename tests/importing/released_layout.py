"""Checkpoints in the layout of AVMOE's code, made up from its description (avmoe.md 5.1, 5.3, 5.5): keys, shapes, and values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Geometry:
    """Tokens and width per stage of both towers, and the stage of every pair."""

    visual: tuple[tuple[int, int], ...]
    audio: tuple[tuple[int, int], ...]
    stages: tuple[int, ...]


FULL = Geometry(
    ((2304, 192), (576, 384), (144, 768), (36, 1536)),
    ((4096, 96), (1024, 192), (256, 384), (64, 768)),
    (0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3),
)
TINY = Geometry(
    ((256, 16), (64, 32), (16, 64), (4, 128)),
    ((256, 16), (64, 32), (16, 64), (4, 128)),
    (0, 0, 1, 1, 2, 2, 3, 3),
)
BASE = Geometry(((2304, 128), (576, 256), (144, 512), (36, 1024)), FULL.audio, FULL.stages)


@dataclass(frozen=True)
class Released:
    """Flags of one released model.

    Attributes:
        spelling: what stands between modality and ``adapter_blocks``.
        self_attention: of unimodal experts: nothing, ``temporal``, ``latent`` or ``dense``.
        audio_gates: whether audio experts have output gates; visual ones always have.
    """

    cross: int = 1
    uni: int = 1
    skip: int = 1
    latents: int = 32
    reduction: int = 8
    groups: int = 2
    norm: bool = False
    self_attention: str = ""
    audio_gates: bool = True
    spelling: str = ""


AVE = Released(skip=2, norm=True, spelling="moe_")
AVVP = Released(self_attention="dense")
S4 = Released(latents=87, self_attention="temporal", audio_gates=False, spelling="moe_")
MS3 = Released(2, 2, 2, 87, 2, self_attention="latent", audio_gates=False, spelling="moe_")
AVQA = Released(1, 2, latents=2, groups=4, audio_gates=False)


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int) -> Shapes:
    return norm(name, width) | {
        f"{name}.running_mean": (width,),
        f"{name}.running_var": (width,),
        f"{name}.num_batches_tracked": (),
    }


def attention(name: str, width: int) -> Shapes:
    return {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)} | linear(
        f"{name}.out_proj", width, width
    )


def lstm(name: str, inputs: int, hidden: int, bidirectional: bool = True) -> Shapes:
    shapes = {}
    for end in ("", "_reverse") if bidirectional else ("",):
        shapes |= {
            f"{name}.weight_ih_l0{end}": (4 * hidden, inputs),
            f"{name}.weight_hh_l0{end}": (4 * hidden, hidden),
            f"{name}.bias_ih_l0{end}": (4 * hidden,),
            f"{name}.bias_hh_l0{end}": (4 * hidden,),
        }
    return shapes


def adapters(released: Released, geometry: Geometry) -> Shapes:
    """The four adapter lists."""
    shapes: Shapes = {}
    kept = [stage for stage in geometry.stages if released.skip == 1 or (stage + 1) % released.skip]
    for modality in ("audio", "vis"):
        own, other = (geometry.audio, geometry.visual) if modality == "audio" else (geometry.visual, geometry.audio)
        for site in ("p1", "p2"):
            for index, stage in enumerate(kept):
                prefix = f"{modality}_{released.spelling}adapter_blocks_{site}.{index}."
                gated = released.audio_gates or modality == "vis"
                shapes |= _adapter(prefix, released, own[stage], other[stage], gated)
    return shapes


def _adapter(prefix: str, released: Released, own: tuple[int, int], other: tuple[int, int], gated: bool) -> Shapes:
    (n, c), (m, d), count = own, other, released.cross + released.uni
    shapes: Shapes = {f"{prefix}conv_adapter.weight": (n, m, 1, 1), f"{prefix}conv_adapter.bias": (n,)}
    shapes |= linear(f"{prefix}fc", d, c) | linear(f"{prefix}router.0", 2 * c, 128)
    shapes |= linear(f"{prefix}router.2", 128, 32) | linear(f"{prefix}router.4", 32, count)
    for number in range(released.cross):
        expert = f"{prefix}multimodal_experts.{number}."
        shapes |= {f"{expert}my_tokens": (released.latents, c), f"{expert}gate_av": (1,)}
        shapes |= _bottleneck(expert, released, c, gated)
    for number in range(released.uni):
        expert = f"{prefix}singlemodal_experts.{number}."
        if released.self_attention == "temporal":
            shapes |= attention(f"{expert}self_attention", c)
        elif released.self_attention == "latent":
            shapes |= {f"{expert}my_tokens": (released.latents, c), f"{expert}gate_self": (1,)}
        elif released.self_attention == "dense":
            shapes |= {f"{expert}gate_av": (1,)}
        shapes |= _bottleneck(expert, released, c, gated)
    return shapes


def _bottleneck(expert: str, released: Released, c: int, gated: bool) -> Shapes:
    r, g = released.reduction, released.groups
    shapes: Shapes = {
        f"{expert}down_sampler.weight": (c // r, c // g, 1, 1),
        f"{expert}up_sampler.weight": (c, c // (r * g), 1, 1),
        **norm(f"{expert}ln_before", c),
        **norm(f"{expert}ln_post", c),
    }
    if released.norm:
        shapes |= batch_norm(f"{expert}bn1", c // r) | batch_norm(f"{expert}bn2", c)
    return shapes | ({f"{expert}gate": (1,)} if gated else {})


# ---------------------------------------------------------------------- heads
def _layer(name: str, width: int, attentions: tuple[str, ...]) -> Shapes:
    shapes: Shapes = {}
    for kind in attentions:
        shapes |= attention(f"{name}.{kind}", width)
    shapes |= linear(f"{name}.linear1", width, 4 * width) | linear(f"{name}.linear2", 4 * width, width)
    return shapes | norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)


def _coders(index: str, visual: int, audio: int, width: int) -> Shapes:
    """Encoders, decoders, recurrent layers and gates of one temporal block; ``visual``, ``audio``: widths after the LSTM."""
    shapes: Shapes = {}
    for name, inputs in (("video", visual), ("audio", audio)):
        coder = f"temporal_attn.{name}_encoder{index}"
        shapes |= linear(f"{coder}.affine_matrix", inputs, width)
        for layer in ("encoder_layer", "encoder.layers.0", "encoder.layers.1"):
            shapes |= _layer(f"{coder}.{layer}", width, ("self_attn",))
        coder = f"temporal_attn.{name}_decoder{index}"
        shapes |= linear(f"{coder}.affine_matrix", inputs, width)
        for layer in ("decoder_layer", "decoder.layers.0"):
            shapes |= _layer(f"{coder}.{layer}", width, ("self_attn", "multihead_attn"))
        shapes |= linear(f"temporal_attn.{name}_gated{index}.0", width, 1)
    return shapes


def ave_head(visual: int, audio: int, width: int = 256, classes: int = 28) -> Shapes:
    shapes = linear("temporal_attn.v_fc", visual, 2 * width) | linear("temporal_attn.a_fc", audio, width // 2)
    shapes |= lstm("temporal_attn.audio_visual_rnn_layer.audio_rnn", width // 2, width // 2)
    shapes |= lstm("temporal_attn.audio_visual_rnn_layer.visual_rnn", 2 * width, width)
    shapes |= _coders("", 2 * width, width, width)
    shapes |= linear("CMBS.localize_module.classifier", width, 1)
    shapes |= linear("CMBS.localize_module.event_classifier", width, classes)
    return shapes | linear("CMBS.video_cas", width, classes) | linear("CMBS.audio_cas", width, classes)


def avs_head(geometry: Geometry, audio: int, width: int = 256) -> Shapes:
    """With the layers that are never used, but for the second backbone, of which one tensor stands for all."""
    half = width // 2
    shapes = linear("audio_linear", audio, half)
    for i, (_, inputs) in enumerate(geometry.visual):
        shapes |= linear(f"x{i + 1}_linear_", inputs, width)
        shapes |= linear(f"temporal_attn.v_fc.{i}", width, width)
        shapes |= lstm(f"temporal_attn.audio_visual_rnn_layer.{i}.audio_rnn", half, half)
        shapes |= lstm(f"temporal_attn.audio_visual_rnn_layer.{i}.visual_rnn", width, width)
        shapes |= _coders(f".{i}", 2 * width, width, width)
        tpavi = f"tpavi_b{i + 1}"
        shapes |= linear(f"{tpavi}.align_channel", half, width) | norm(f"{tpavi}.norm_layer", width)
        for name in ("g", "theta", "phi"):
            shapes |= {f"{tpavi}.{name}.weight": (half, width, 1, 1, 1), f"{tpavi}.{name}.bias": (half,)}
        shapes |= {f"{tpavi}.W_z.0.weight": (width, half, 1, 1, 1), f"{tpavi}.W_z.0.bias": (width,)}
        shapes |= batch_norm(f"{tpavi}.W_z.1", width)
        for unit in ("resConfUnit1", "resConfUnit2"):
            for conv in ("conv1", "conv2"):
                shapes |= _conv(f"path{i + 1}.{unit}.{conv}", width, width, 3)
    shapes |= _conv("output_conv.0", width, half, 3) | _conv("output_conv.2", half, width // 8, 3)
    shapes |= _conv("output_conv.4", width // 8, 1, 1)
    dead = linear("x1_linear", geometry.visual[0][1], 64) | _conv("conv4.conv2d_list.0", 8, width, 3)
    return shapes | dead | {"encoder_backbone.patch_embed1.proj.weight": (8, 3, 7, 7)}


def _conv(name: str, inputs: int, outputs: int, size: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def _mlp(name: str, inputs: int, hidden: int) -> Shapes:
    return linear(f"{name}.fc1", inputs, hidden) | linear(f"{name}.fc2", hidden, inputs)


def _grouping(name: str, width: int, tokens: int) -> Shapes:
    shapes = (
        norm(f"{name}.norm_tokens", width) | norm(f"{name}.norm_x", width) | norm(f"{name}.norm_post_tokens", width)
    )
    shapes |= _mlp(f"{name}.mlp_inter", tokens, width // 2)
    for part in ("q_proj", "k_proj", "v_proj", "proj"):
        shapes |= linear(f"{name}.pre_assign_attn.attn.{part}", width, width)
        shapes |= linear(f"{name}.assign.{part}", width, width)
    shapes |= norm(f"{name}.pre_assign_attn.norm_post", width) | norm(f"{name}.pre_assign_attn.norm2", width)
    shapes |= _mlp(f"{name}.pre_assign_attn.mlp", width, 4 * width)
    return shapes | norm(f"{name}.norm_new_x", width) | _mlp(f"{name}.mlp_channels", width, 4 * width)


def avvp_head(visual: int, audio: int, width: int = 128, classes: int = 25) -> Shapes:
    shapes = linear("fc_a", audio, width) | linear("fc_v", visual, width)
    shapes |= linear("fc_st", 512, width) | linear("fc_fusion", 2 * width, width)
    shapes |= {"audio_token": (classes, width), "visual_token": (classes, width)}
    for name, depth in (("audio_cug", 3), ("visual_cug", 3), ("av_mcg", 6)):
        for i in range(depth):
            block = f"{name}.blocks.{i}"
            shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
            shapes |= linear(f"{block}.attn.qkv", width, 3 * width) | linear(f"{block}.attn.proj", width, width)
            shapes |= _mlp(f"{block}.mlp", width, 4 * width)
        shapes |= _grouping(f"{name}.grouping", width, classes)
    shapes |= _grouping("audio_cug.han_encoder", width, 10)
    for name in ("fc_prob", "fc_prob_a", "fc_prob_v"):
        shapes |= linear(name, width, 1)
    return shapes | linear("fc_cls", width, classes)


def grounding_head(visual: int, audio: int) -> Shapes:
    d = visual
    shapes = linear("fc_a1", audio, d) | linear("fc_a2", d, d) | linear("fc_gl", 2 * d, d)
    for i, (inputs, outputs) in enumerate(((2 * d, 512), (512, 256), (256, 128), (128, 2))):
        shapes |= linear(f"fc{i + 1}", inputs, outputs)
    return shapes


def avqa_head(visual: int, audio: int, answers: int = 42, words: int = 93) -> Shapes:
    """With the layers that are never used."""
    d = visual
    shapes = grounding_head(visual, audio) | {"question_encoder.word2vec.weight": (words, d)}
    shapes |= lstm("question_encoder.lstm", d, d, bidirectional=False) | linear("question_encoder.fc", 2 * d, d)
    for name in ("linear11", "linear12", "linear21", "linear22"):
        shapes |= linear(name, d, d)
    shapes |= norm("norm1", d) | norm("norm2", d) | attention("attn_a", d) | attention("attn_v", d)
    shapes |= linear("fc_fusion", 2 * d, d) | linear("fc_ans", d, answers)
    return shapes | linear("fc_a1_pure", audio, d) | linear("fc_a2_pure", d, d) | norm("norm3", d)


# ---------------------------------------------------------------------- values
def values(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors with which every part of a model matters: no gate is zero, no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _value(name, shape, generator) for name, shape in shapes.items()}


def _value(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    kind = name.rpartition(".")[2]
    drawn = torch.randn(shape, generator=generator)
    if kind == "num_batches_tracked":
        return torch.tensor(7)
    if kind in ("gate", "gate_av", "gate_self"):
        return 0.3 + 0.1 * drawn
    if kind == "my_tokens":
        return 0.2 * torch.rand(shape, generator=generator)
    if kind == "running_var":
        return 0.5 + drawn.abs()
    if kind == "weight" and len(shape) == 1:
        return 1 + 0.2 * drawn
    if kind in ("weight", "in_proj_weight") or kind.startswith("weight_"):
        return drawn / math.sqrt(math.prod(shape[1:]))
    return 0.2 * drawn


def meta(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


# ---------------------------------------------------------------------- towers
def released_towers(visual: Mapping[str, Tensor], audio: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tower tensors as the authors' files name them, from today's names: an inverse of what the importer has to do."""
    return dict([*_swin(visual), *_htsat(audio)])


def _swin(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        stage = re.match(r"layers\.(\d)\.downsample\.", name)
        if stage:
            # timm 0.6 has the down-sampling of a stage at its end.
            name = name.replace(f"layers.{stage[1]}.", f"layers.{int(stage[1]) - 1}.", 1)
        yield f"swin.{name}", tensor
    yield "swin.layers.0.blocks.1.attn_mask", torch.zeros(4, 16, 16)
    yield "swin.layers.0.blocks.0.attn.relative_coords_table", torch.zeros(1, 7, 7, 2)
    yield "swin.layers.0.blocks.0.attn.relative_position_index", torch.zeros(16, 16)
    yield "swin.head.weight", torch.zeros(21, 128)
    yield "swin.head.bias", torch.zeros(21)


def _htsat(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    names = (
        ("batch_norm.", "bn0."),
        ("layernorm_before.", "norm1."),
        ("layernorm_after.", "norm2."),
        ("attention.self.relative_position_", "attn.relative_position_"),
        ("attention.output.dense.", "attn.proj."),
        ("intermediate.dense.", "mlp.fc1."),
        ("output.dense.", "mlp.fc2."),
    )
    for name, tensor in tensors.items():
        name = name.removeprefix("audio_encoder.")
        part = re.fullmatch(r"(.+)attention\.self\.(query|key|value)\.(weight|bias)", name)
        if part:
            if part[2] == "query":
                root = f"audio_encoder.{part[1]}attention.self"
                thirds = [tensors[f"{root}.{which}.{part[3]}"] for which in ("query", "key", "value")]
                yield f"htsat.{part[1]}attn.qkv.{part[3]}", torch.cat(thirds)
            continue
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        yield f"htsat.{name}", tensor
    yield "htsat.spectrogram_extractor.stft.conv_real.weight", torch.zeros(5, 1, 8)
    yield "htsat.spectrogram_extractor.stft.conv_imag.weight", torch.zeros(5, 1, 8)
    yield "htsat.logmel_extractor.melW", torch.zeros(5, 4)
    yield "htsat.layers.0.blocks.1.attn_mask", torch.zeros(4, 16, 16)
    yield "htsat.tscam_conv.weight", torch.zeros(3, 128, 2, 3)
    yield "htsat.tscam_conv.bias", torch.zeros(3)
    yield "htsat.head.weight", torch.zeros(3, 3)
    yield "htsat.head.bias", torch.zeros(3)
