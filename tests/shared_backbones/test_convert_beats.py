"""BEATs' published checkpoint: generated here tensor by tensor, converted strictly, and equal to the direct formulation."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from safetensors.torch import load_file

from shared_backbones import WeightsError, create
from shared_backbones.convert import convert_in_process
from shared_backbones.convert.archive import read_cfg

# All tensors are views of one block of noise: a checkpoint of 363 MB then takes 24 MB on disk.
NOISE = torch.randn(6_000_000, generator=torch.Generator().manual_seed(0))
CFG = {
    "encoder_layers": 12, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072, "encoder_attention_heads": 12,
    "activation_fn": "gelu", "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "dropout_input": 0.0,
    "encoder_layerdrop": 0.05, "layer_norm_first": False, "deep_norm": True, "conv_bias": False, "conv_pos": 128,
    "conv_pos_groups": 16, "relative_position_embedding": True, "num_buckets": 320, "max_distance": 800,
    "gru_rel_pos": True, "input_patch_size": 16, "embed_dim": 512, "layer_wise_gradient_decay_ratio": 0.6,
    "finetuned_model": False,
}  # fmt: skip


def drawn(name, *shape, scale=0.05, shift=0.0):
    count = math.prod(shape)
    block = NOISE[zlib.crc32(name.encode()) % (len(NOISE) - count) :][:count].view(shape)
    return block if (scale, shift) == (1.0, 0.0) else block * scale + shift


def linear(name, out, into):
    # Half the usual size, without which 12 blocks of noise saturate the softmax.
    return {f"{name}.weight": drawn(name, out, into, scale=0.5 / into**0.5), f"{name}.bias": drawn(f"{name}b", out)}


def norm(name, width):
    return {f"{name}.weight": drawn(name, width, shift=1), f"{name}.bias": drawn(f"{name}b", width)}


def tensors():
    """The table of avqacl_moe.md 3.7."""
    t = {"patch_embedding.weight": drawn("patch", 512, 1, 16, 16)}
    t |= norm("layer_norm", 512) | linear("post_extract_proj", 768, 512) | norm("encoder.layer_norm", 768)
    t["encoder.pos_conv.0.bias"] = drawn("conv", 768)
    t["encoder.pos_conv.0.weight_g"] = drawn("length", 1, 1, 128, shift=1)
    t["encoder.pos_conv.0.weight_v"] = drawn("direction", 768, 48, 128)
    table = drawn("table", 320, 12, scale=1.0)
    for i in range(12):
        p = f"encoder.layers.{i}"
        for part in ("q", "k", "v", "out"):
            t |= linear(f"{p}.self_attn.{part}_proj", 768, 768)
        t |= linear(f"{p}.self_attn.grep_linear", 8, 64)
        t[f"{p}.self_attn.grep_a"] = drawn(f"{p}a", 1, 12, 1, 1, shift=1)
        t[f"{p}.self_attn.relative_attention_bias.weight"] = table
        t |= norm(f"{p}.self_attn_layer_norm", 768) | norm(f"{p}.final_layer_norm", 768)
        t |= linear(f"{p}.fc1", 3072, 768) | linear(f"{p}.fc2", 768, 3072)
    return t


def shapes_only(**changes):
    """As published, with zeros that take no space on disk."""
    found = {name: torch.zeros(()).expand(t.shape) for name, t in tensors().items()}
    found["encoder.pos_conv.0.weight_v"] = torch.ones(()).expand(768, 48, 128)
    return found | changes


def test_published_checkpoint_equals_the_direct_formulation(tmp_path, direct):
    t = tensors()
    assert len(t) == 250
    distinct = {(x.data_ptr(), x.shape) for name, x in t.items() if "relative" in name}
    assert len(distinct) == 1
    assert sum(x.numel() for name, x in t.items() if "relative" not in name) + 320 * 12 == 90_311_792
    source, twin = tmp_path / "BEATs_iter3_plus_AS2M.pt", tmp_path / "beats.safetensors"
    torch.save({"cfg": CFG, "model": t}, source)
    try:
        done = convert_in_process(source, twin)
        assert (done.tower, done.converter, done.variant, done.dropped) == ("beats", "beats", "beats", ())
        assert done.tensors == 250 - 11 - 1
        tower = create("beats", checkpoint=twin).double()
    finally:
        source.unlink()
        twin.unlink(missing_ok=True)
    features = torch.randn(1, 1, 48, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    padding = (torch.arange(400 + 160 * 47) >= 4000).unsqueeze(0)
    expected = direct.direct_beats(t, features, padding)
    with torch.no_grad():
        tokens, aux = tower.embed(features, padding=padding)
        for sub in tower.subs:
            tokens = tower.join(sub, tokens, tower.run(sub, tokens, aux))
    assert tokens.shape == (1, 24, 768)
    assert expected.std() > 0.5
    # The folded weight is stored in float32: 6e-8 of it, in the first of 12 blocks.
    assert (tokens - expected).abs().max() < 1e-6


def test_conversion_is_strict(tmp_path):
    t = shapes_only(
        **{
            "encoder.layers.12.fc1.bias": torch.zeros(1),
            "encoder.pos_conv.0.weight_g": torch.ones(128),
            "encoder.layers.4.self_attn.relative_attention_bias.weight": torch.zeros(320, 1),
        }
    )
    del t["encoder.layers.3.self_attn.grep_a"], t["encoder.layers.5.self_attn.relative_attention_bias.weight"]
    torch.save({"cfg": CFG, "model": t}, tmp_path / "beats.pt")
    expected = (
        r"beats\.pt: not the layout beats of tower beats: missing 2 keys: encoder\.layers\.3\.self_attn\.grep_a, "
        r"encoder\.layers\.5\.self_attn\.relative_attention_bias\.weight; unknown 1 keys: encoder\.layers\.12\.fc1\.bias; "
        r"wrong shapes: encoder\.layers\.4\.self_attn\.relative_attention_bias\.weight \(320, 1\) instead of \(320, 12\), "
        r"encoder\.pos_conv\.0\.weight_g \(128,\) instead of \(1, 1, 128\)$"
    )
    with pytest.raises(WeightsError, match=expected):
        convert_in_process(tmp_path / "beats.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_blocks_with_tables_of_their_own_are_refused(tmp_path):
    name = "encoder.layers.7.self_attn.relative_attention_bias.weight"
    torch.save({"cfg": CFG, "model": shapes_only(**{name: torch.ones(320, 12)})}, tmp_path / "beats.pt")
    with pytest.raises(WeightsError, match=r"beats\.pt: .*layers\.7\..* differ from .*layers\.0\."):
        convert_in_process(tmp_path / "beats.pt", tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({**CFG, "max_distance": 1280}, "cfg max_distance 1280 instead of 800$"),
        (
            {**CFG, "layer_norm_first": True, "deep_norm": False},
            "layer_norm_first True instead .*; cfg deep_norm False",
        ),
        ({key: value for key, value in CFG.items() if key != "gru_rel_pos"}, "cfg without gru_rel_pos; expected True$"),
        (None, "no table cfg beside the tensors"),
    ],
)
def test_another_configuration_is_refused(cfg, message, tmp_path):
    content = {"model": shapes_only()} if cfg is None else {"cfg": cfg, "model": shapes_only()}
    torch.save(content, tmp_path / "beats.pt")
    with pytest.raises(WeightsError, match=rf"beats\.pt: not the layout beats of tower beats: .*{message}"):
        convert_in_process(tmp_path / "beats.pt", tmp_path / "out.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_fine_tuned_checkpoint_drops_its_head(zipped, tmp_path):
    head = {"predictor.weight": torch.zeros(527, 768), "predictor.bias": torch.zeros(527)}
    cfg = {**CFG, "finetuned_model": True, "predictor_class": 527}
    content = {"cfg": cfg, "model": shapes_only(**head), "label_dict": {0: "/m/09x0r"}}
    torch.save(content, tmp_path / "beats.pt", _use_new_zipfile_serialization=zipped)
    assert read_cfg(tmp_path / "beats.pt") == cfg
    done = convert_in_process(tmp_path / "beats.pt", tmp_path / "out.safetensors", tower="beats")
    assert done.dropped == ("predictor.bias", "predictor.weight")
    weight = load_file(done.file)["encoder.pos_conv.weight"]
    assert torch.equal(weight, torch.zeros(768, 48, 128))  # a length of zero


def test_other_files_have_no_cfg(tmp_path):
    torch.save({"weight": torch.zeros(1), "cfg": 3}, tmp_path / "plain.pt")
    assert read_cfg(tmp_path / "plain.pt") is None
