"""HTS-AT's and CLAP's published checkpoint layouts: generated here key by key, converted, and compared with a direct
formulation that works on the original names with plain torch functions."""

from __future__ import annotations

import argparse
import math
import pickle
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from shared_backbones import create
from shared_backbones.convert import convert_in_process
from shared_backbones.errors import WeightsError

DEPTHS, HEADS, WINDOW = (2, 2, 6, 2), (4, 8, 16, 32), 8
# All tensors are views of one block of noise: a checkpoint of 600 MB then takes 30 MB on disk.
NOISE = torch.randn(8_000_000, generator=torch.Generator().manual_seed(0))


def weight(name: str, *shape: int, scale: float = 0.05, shift: float = 0.0) -> Tensor:
    count = math.prod(shape)
    start = zlib.crc32(name.encode()) % (len(NOISE) - count)
    block = NOISE[start : start + count].view(shape)
    return block if (scale, shift) == (1.0, 0.0) else block * scale + shift


def linear(prefix: str, out: int, into: int) -> dict[str, Tensor]:
    return {
        f"{prefix}.weight": weight(prefix, out, into, scale=into**-0.5),
        f"{prefix}.bias": weight(f"{prefix}b", out),
    }


def norm(prefix: str, width: int) -> dict[str, Tensor]:
    return {f"{prefix}.weight": weight(prefix, width, shift=1), f"{prefix}.bias": weight(f"{prefix}b", width)}


def index_table(w: int) -> Tensor:
    """Entry (i, j): row and column offset of i against j, counted from -(w-1), as one number."""
    table = torch.empty(w * w, w * w, dtype=torch.long)
    for i in range(w * w):
        for j in range(w * w):
            table[i, j] = (i // w - j // w + w - 1) * (2 * w - 1) + (i % w - j % w + w - 1)
    return table


def htsat_tensors() -> dict[str, Tensor]:
    """The encoder as its authors name it (avmoe.md 5.1 and 5.2), class heads and fixed front-end tensors included."""
    t: dict[str, Tensor] = {
        "spectrogram_extractor.stft.conv_real.weight": torch.zeros(513, 1, 1024),
        "spectrogram_extractor.stft.conv_imag.weight": torch.zeros(513, 1, 1024),
        "logmel_extractor.melW": torch.zeros(513, 64),
        **norm("bn0", 64),
        "bn0.running_mean": weight("mean", 64, scale=5, shift=-40),
        "bn0.running_var": weight("var", 64).abs() * 1000 + 200,
        "bn0.num_batches_tracked": torch.tensor(7),
        "patch_embed.proj.weight": weight("patch", 96, 1, 4, 4, scale=0.25),
        "patch_embed.proj.bias": weight("patchb", 96),
        **norm("patch_embed.norm", 96),
    }
    for i, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        width = 96 * 2**i
        for j in range(depth):
            p = f"layers.{i}.blocks.{j}"
            t |= norm(f"{p}.norm1", width) | norm(f"{p}.norm2", width)
            t |= linear(f"{p}.attn.qkv", 3 * width, width) | linear(f"{p}.attn.proj", width, width)
            t |= linear(f"{p}.mlp.fc1", 4 * width, width) | linear(f"{p}.mlp.fc2", width, 4 * width)
            t[f"{p}.attn.relative_position_bias_table"] = weight(f"{p}table", 225, heads, scale=1.0)
            t[f"{p}.attn.relative_position_index"] = index_table(WINDOW)
            side = 64 // 2**i
            if j % 2 and side > WINDOW:
                t[f"{p}.attn_mask"] = torch.zeros((side // WINDOW) ** 2, 64, 64)
        if i < 3:
            t |= norm(f"layers.{i}.downsample.norm", 4 * width)
            t[f"layers.{i}.downsample.reduction.weight"] = weight(
                f"red{i}", 2 * width, 4 * width, scale=0.5 / width**0.5
            )
    t |= norm("norm", 768)
    t["tscam_conv.weight"], t["tscam_conv.bias"] = torch.zeros(527, 768, 2, 3), torch.zeros(527)
    t["head.weight"], t["head.bias"] = torch.zeros(527, 527), torch.zeros(527)
    return t


def direct_htsat(t: dict[str, Tensor], logmel: Tensor) -> Tensor:
    """Normalised final tokens [B, 64, 768] of a log-mel [B, 1, frames, 64], from the tensors under their original names."""

    def ln(x, p):
        return F.layer_norm(x, x.shape[-1:], t[f"{p}.weight"], t[f"{p}.bias"], 1e-5)

    def lin(x, p):
        return x @ t[f"{p}.weight"].T + t[f"{p}.bias"]

    x = (logmel - t["bn0.running_mean"]) / (t["bn0.running_var"] + 1e-5).sqrt() * t["bn0.weight"] + t["bn0.bias"]
    x = F.interpolate(x, (1024, 64), mode="bicubic", align_corners=True)[:, 0]
    image = torch.cat([x[:, 256 * c : 256 * c + 256].transpose(1, 2) for c in range(4)], 1)  # row = 64·chunk + mel
    x = F.conv2d(image[:, None], t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=4)
    x = ln(x.flatten(2).transpose(1, 2), "patch_embed.norm")
    side = 64
    for i, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        for j in range(depth):
            p = f"layers.{i}.blocks.{j}"
            shift = WINDOW // 2 if j % 2 and side > WINDOW else 0
            q, k, v = lin(ln(x, f"{p}.norm1"), f"{p}.attn.qkv").chunk(3, -1)
            out = torch.empty_like(q)
            table = t[f"{p}.attn.relative_position_bias_table"]
            bias = table[index_table(WINDOW)].permute(2, 0, 1)
            for wi in range(side // WINDOW):
                for wj in range(side // WINDOW):
                    row = wi * WINDOW + torch.arange(WINDOW)
                    column = wj * WINDOW + torch.arange(WINDOW)
                    # Where the shifted window's tokens lie in the picture, and on which side of its seam.
                    at = (((row + shift) % side)[:, None] * side + (column + shift) % side).flatten()
                    region = ((row + shift >= side).long()[:, None] * 2 + (column + shift >= side).long()).flatten()
                    apart = (region[:, None] != region).float() * -100
                    split = [z[:, at].unflatten(-1, (heads, -1)).transpose(1, 2) for z in (q, k, v)]
                    scores = split[0] @ split[1].transpose(-1, -2) / split[0].shape[-1] ** 0.5 + bias + apart
                    out[:, at] = (scores.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)
            x = x + lin(out, f"{p}.attn.proj")
            x = x + lin(F.gelu(lin(ln(x, f"{p}.norm2"), f"{p}.mlp.fc1")), f"{p}.mlp.fc2")
        if i < 3:
            g = x.unflatten(1, (side, side))
            parts = [g[:, a::2, b::2] for b in (0, 1) for a in (0, 1)]
            x = ln(torch.cat(parts, -1).flatten(1, 2), f"layers.{i}.downsample.norm")
            x = x @ t[f"layers.{i}.downsample.reduction.weight"].T
            side //= 2
    return ln(x, "norm")


class Callback:
    """A stand-in for the non-tensor objects of Lightning files; not importable where the file is converted."""

    def __init__(self):
        self.best = {"acc": 0.5, "paths": ["a", "b"]}


def lightning(tensors: dict[str, Tensor]) -> dict:
    return {
        "epoch": 3,
        "global_step": 12345,
        "pytorch-lightning_version": "1.5.9",
        "state_dict": {f"sed_model.{name}": tensor for name, tensor in tensors.items()},
        "callbacks": {Callback: {"monitor": "acc", "best": np.float64(0.47), "object": Callback()}},
        "optimizer_states": [{"state": {0: {"step": 5, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}],
        "hyper_parameters": argparse.Namespace(batch_size=32, rates=np.arange(3)),
    }


@pytest.fixture(scope="module")
def htsat_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("htsat") / "HTSAT_AudioSet_Saved_1.ckpt"
    torch.save(lightning(htsat_tensors()), path)
    yield path
    for file in path.parent.iterdir():
        file.unlink()


def test_generated_layout_is_the_published_one():
    tensors = htsat_tensors()
    buffers = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index", "attn_mask")
    assert len(tensors) == 200  # avmoe.md 5.1
    assert sum(t.numel() for n, t in tensors.items() if not n.endswith(buffers)) == 31_325_143  # avmoe.md 8.1


def test_plain_weights_only_loading_would_fail(htsat_file):
    with pytest.raises(pickle.UnpicklingError):
        torch.load(htsat_file, weights_only=True)


def test_htsat_checkpoint_equals_the_direct_formulation(htsat_file):
    tower = create("htsat", checkpoint=htsat_file)
    wave = 0.2 * torch.randn(1, 32000, generator=torch.Generator().manual_seed(1))
    logmel = tower.frontend(wave)
    expected = direct_htsat(htsat_tensors(), logmel)
    assert expected.std() > 0.1
    torch.testing.assert_close(tower.encode(wave), expected, rtol=0, atol=1e-4)
    # Converted once: the twin beside the source is used again, and its header says what it is.
    twin = htsat_file.with_name(htsat_file.name + ".htsat.safetensors")
    stamp = twin.stat().st_mtime_ns
    assert create("htsat", checkpoint=htsat_file).weights_digest() == tower.weights_digest()
    assert twin.stat().st_mtime_ns == stamp
    with safe_open(twin, "pt") as file:
        assert {k: file.metadata()[k] for k in ("tower", "size", "variant")} == {
            "tower": "htsat", "size": "full", "variant": "htsat-tiny",
        }  # fmt: skip
    for name, size in (("htsat", "tiny"), ("clap", "full"), ("swin_v2", "full")):
        with pytest.raises(WeightsError, match="expected"):
            create(name, size=size, checkpoint=twin)


def test_missing_and_unknown_keys_are_listed(tmp_path):
    tensors = htsat_tensors()
    del tensors["layers.2.blocks.5.mlp.fc1.bias"], tensors["norm.weight"]
    tensors["layers.0.blocks.0.attn.gate"] = torch.zeros(3)
    tensors["patch_embed.norm.bias"] = torch.zeros(95)
    torch.save(lightning(tensors), tmp_path / "broken.ckpt")
    with pytest.raises(WeightsError) as caught:
        convert_in_process(tmp_path / "broken.ckpt", tmp_path / "out.safetensors")
    text = str(caught.value)
    assert "missing 2 keys" in text
    assert "layers.2.blocks.5.intermediate.dense.bias" in text
    assert "audio_encoder.norm.weight" in text
    assert "unknown 1 keys: audio_encoder.layers.0.blocks.0.attn.gate" in text
    assert "patch_embed.norm.bias (95,) instead of (96,)" in text
    assert "\n" not in text
    assert [f.name for f in tmp_path.iterdir()] == ["broken.ckpt"]


def clap_tensors() -> dict[str, Tensor]:
    """LAION's layout: both branches, projections, what is dropped by name, all behind ``module.``."""
    t = {f"audio_branch.{name}": tensor for name, tensor in htsat_tensors().items()}
    t["audio_branch.patch_embed.mel_conv2d.weight"] = torch.zeros(96, 1, 4, 12)
    t["audio_branch.patch_embed.mel_conv2d.bias"] = torch.zeros(96)
    for part in ("local_att", "global_att"):
        t[f"audio_branch.patch_embed.fusion_model.{part}.1.weight"] = torch.zeros(24, 96, 1, 1)
        t[f"audio_branch.patch_embed.fusion_model.{part}.2.running_mean"] = torch.zeros(24)
        t[f"audio_branch.patch_embed.fusion_model.{part}.2.num_batches_tracked"] = torch.tensor(1)
    for side in ("audio", "text"):
        for layer in (0, 3):
            t |= {k: torch.zeros_like(v) for k, v in linear(f"{side}_transform.sequential.{layer}", 512, 512).items()}
        t |= linear(f"{side}_projection.0", 512, 768) | linear(f"{side}_projection.2", 512, 512)
    t["logit_scale_a"], t["logit_scale_t"] = torch.tensor(2.7), torch.tensor(4.1)
    e = "text_branch.embeddings"
    t[f"{e}.position_ids"] = torch.arange(514)[None]
    t[f"{e}.word_embeddings.weight"] = weight("words", 8192, 768, scale=1.0).repeat(7, 1)[:50265]
    t[f"{e}.position_embeddings.weight"] = weight("positions", 514, 768)
    t[f"{e}.token_type_embeddings.weight"] = weight("types", 1, 768)
    t |= norm(f"{e}.LayerNorm", 768)
    for i in range(12):
        p = f"text_branch.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            t |= linear(f"{p}.attention.self.{part}", 768, 768)
        t |= linear(f"{p}.attention.output.dense", 768, 768) | norm(f"{p}.attention.output.LayerNorm", 768)
        t |= linear(f"{p}.intermediate.dense", 3072, 768) | linear(f"{p}.output.dense", 768, 3072)
        t |= norm(f"{p}.output.LayerNorm", 768)
    return t | linear("text_branch.pooler.dense", 768, 768)


def direct_roberta(t: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Joint text embedding [512] of one unpadded sequence of ids, post-norm blocks of 12 heads."""

    def ln(x, p):
        return F.layer_norm(x, x.shape[-1:], t[f"{p}.weight"], t[f"{p}.bias"], 1e-5)

    def lin(x, p):
        return x @ t[f"{p}.weight"].T + t[f"{p}.bias"]

    e = "text_branch.embeddings"
    x = t[f"{e}.word_embeddings.weight"][ids] + t[f"{e}.token_type_embeddings.weight"][0]
    x = ln(x + t[f"{e}.position_embeddings.weight"][2 : 2 + len(ids)], f"{e}.LayerNorm")
    for i in range(12):
        p = f"text_branch.encoder.layer.{i}"
        q, k, v = (
            lin(x, f"{p}.attention.self.{n}").unflatten(-1, (12, 64)).transpose(0, 1) for n in ("query", "key", "value")
        )
        mixed = ((q @ k.transpose(1, 2) / 8).softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = ln(x + lin(mixed, f"{p}.attention.output.dense"), f"{p}.attention.output.LayerNorm")
        x = ln(x + lin(F.gelu(lin(x, f"{p}.intermediate.dense")), f"{p}.output.dense"), f"{p}.output.LayerNorm")
    pooled = torch.tanh(lin(x[0], "text_branch.pooler.dense"))
    return lin(F.relu(lin(pooled, "text_projection.0")), "text_projection.2")


def test_clap_checkpoint_equals_the_direct_formulation(tmp_path):
    tensors = clap_tensors()
    source, twin = tmp_path / "630k-audioset-fusion-best.pt", tmp_path / "clap.safetensors"
    torch.save(
        {
            "epoch": 20,
            "name": "run",
            "args": argparse.Namespace(lr=1e-4, model=Callback()),
            "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()},
        },
        source,
    )
    try:
        done = convert_in_process(source, twin)
        assert (done.tower, done.converter, done.variant) == ("clap", "laion_clap", "htsat-tiny")
        tower = create("clap", checkpoint=twin)
    finally:
        source.unlink()
        twin.unlink(missing_ok=True)
    dropped = set(done.dropped)
    assert {"audio_branch.patch_embed.mel_conv2d.bias", "text_branch.embeddings.position_ids"} <= dropped
    assert {"audio_transform.sequential.0.weight", "audio_branch.tscam_conv.weight"} <= dropped
    assert not any("projection" in name or "encoder" in name for name in dropped)

    wave = 0.2 * torch.randn(1, 48000, generator=torch.Generator().manual_seed(1))
    audio = {name.removeprefix("audio_branch."): tensor for name, tensor in tensors.items()}
    expected = direct_htsat(audio, tower.frontend(wave))
    found = tower.encode(wave)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

    hidden = F.relu(expected.mean(1) @ tensors["audio_projection.0.weight"].T + tensors["audio_projection.0.bias"])
    joint = hidden @ tensors["audio_projection.2.weight"].T + tensors["audio_projection.2.bias"]
    torch.testing.assert_close(tower.project(found), joint, rtol=0, atol=1e-4)

    long, short = torch.tensor([0, 133, 4632, 9, 27, 2]), torch.tensor([0, 21, 2])
    ids = torch.stack((long, F.pad(short, (0, 3), value=1)))
    embedded = tower.text.forward_embeddings(tower.text.token_embeddings(ids), ids)
    expected = torch.stack((direct_roberta(tensors, long), direct_roberta(tensors, short)))
    torch.testing.assert_close(embedded, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(tower.net.logit_scale_a, torch.tensor(2.7))
    torch.testing.assert_close(tower.net.logit_scale_t, torch.tensor(4.1))


def test_a_left_over_clap_key_is_an_error(tmp_path):
    tensors = {f"module.{name}": tensor for name, tensor in clap_tensors().items() if "text_projection.2" not in name}
    tensors["module.audio_branch.norm2.weight"] = torch.zeros(2)
    torch.save({"state_dict": tensors}, tmp_path / "clap.pt")
    with pytest.raises(WeightsError, match=r"missing 2 keys.*linear2\.bias.*unknown 1 keys: .*norm2\.weight"):
        convert_in_process(tmp_path / "clap.pt", tmp_path / "out.safetensors")
    (tmp_path / "clap.pt").unlink()
