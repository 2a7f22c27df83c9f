"""PVT-v2: published stage maps in front of the merges, attention over reduced keys, and the authors' checkpoint layout."""

from __future__ import annotations

import re

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from shared_backbones import create
from shared_backbones.convert import convert_in_process, load_converter
from shared_backbones.errors import WeightsError
from shared_backbones.registry import build


def maps_of(tower, x, swap=None):
    """Tokens in front of every merge, and the final ones."""
    tokens, aux = tower.embed(tower.frontend(x))
    found = []
    for sub in tower.subs:
        if sub.kind == "merge":
            found.append(tokens)
        out = tower.run(sub, tokens, aux, swap=swap if sub.kind == "mlp" else None)
        tokens = out if sub.kind == "merge" else tokens + out
    return [*found, tower.final(tokens)]


def test_maps_in_front_of_a_merge_are_the_published_ones(tiny, sample):
    tower, x = tiny("pvt_v2"), sample("pvt_v2")
    expected = tower.net.forward_intermediates(x, intermediates_only=True)
    found = maps_of(tower, x)
    assert [tuple(m.shape[1:]) for m in found] == [(256, 16), (64, 32), (16, 40), (4, 64)]
    for mine, published in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, published.flatten(2).transpose(1, 2), rtol=1e-5, atol=2e-5)


def test_a_stage_ends_normalised_whatever_took_the_mlps_place(tiny, sample):
    tower = tiny("pvt_v2")
    with torch.no_grad():
        for stage in tower.net.stages:
            stage.norm.weight.fill_(1)
            stage.norm.bias.fill_(0)
        maps = maps_of(tower, sample("pvt_v2"), swap=lambda z: 5 * z + 1)
    for tokens in maps:
        torch.testing.assert_close(tokens.mean(-1), torch.zeros(tokens.shape[:2]), rtol=0, atol=1e-4)
        torch.testing.assert_close(tokens.var(-1, correction=0), torch.ones(tokens.shape[:2]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("stage", [0, 3])
def test_prefix_equals_attention_over_the_concatenation(stage, tiny):
    """Keys and values: the rows, then the map reduced by strided patches (stage 0: 8×8), each head by itself."""
    tower = tiny("pvt_v2")
    sub = next(s for s in tower.subs if s.kind == "attn" and s.stage == stage)
    block, width, count = tower.blocks[sub.block], sub.width, (1, 2, 5, 8)[stage]
    g = torch.Generator().manual_seed(3)
    x = torch.randn(2, sub.grid[0] * sub.grid[1], width, generator=g)
    k, v = (torch.randn(2, 3, width, generator=g) for _ in range(2))
    z = F.layer_norm(x, (width,), block.norm1.weight, block.norm1.bias, 1e-6)
    read, attn = z, block.attn
    if stage == 0:
        patches = z.view(2, 2, 8, 2, 8, width).permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
        read = patches @ attn.sr.weight.flatten(1).T + attn.sr.bias
        read = F.layer_norm(read, (width,), attn.norm.weight, attn.norm.bias, 1e-5)
    wk, wv = attn.kv.weight[:width], attn.kv.weight[width:]
    keys = torch.cat((k, read), 1) @ wk.T + attn.kv.bias[:width]
    values = torch.cat((v, read), 1) @ wv.T + attn.kv.bias[width:]
    q, size = attn.q(z), width // count
    heads = [slice(i * size, (i + 1) * size) for i in range(count)]
    parts = [(q[..., h] @ keys[..., h].transpose(1, 2) / size**0.5).softmax(-1) @ values[..., h] for h in heads]
    expected = attn.proj(torch.cat(parts, -1))
    torch.testing.assert_close(tower.run(sub, x, {}, prefix=(k, v)), expected, rtol=1e-4, atol=1e-5)


def authors(tensors):
    """timm's names in the authors' naming, by splitting at the dots."""
    found = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[0] == "patch_embed":
            parts[0] = "patch_embed1"
        elif parts[0] == "stages":
            number, part = int(parts[1]) + 1, parts[2]
            label = {"downsample": "patch_embed", "blocks": "block", "norm": "norm"}[part]
            parts = [f"{label}{number}", *parts[3:]]
            if parts[-2] == "dwconv":
                parts.insert(-1, "dwconv")
        found[".".join(parts)] = tensor
    return found


@pytest.fixture(scope="module")
def b0():
    model = timm.create_model("pvt_v2_b0", pretrained=False).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=g))
    return model


@pytest.mark.parametrize("naming", [authors, dict])
def test_conversion(naming, b0, tmp_path):
    tensors = naming(b0.state_dict())
    assert ("block3.1.mlp.dwconv.dwconv.weight" in tensors) == (naming is authors)
    torch.save(tensors, tmp_path / "pvt_v2_b0.pth")
    done = convert_in_process(tmp_path / "pvt_v2_b0.pth", tmp_path / "out.safetensors")
    assert (done.tower, done.variant, done.dropped) == ("pvt_v2", "b0", ("head.bias", "head.weight"))
    assert done.tensors == len(tensors) - 2
    tower = create("pvt_v2", variant="b0", checkpoint=done.file)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = b0.forward_features(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tower.encode(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(WeightsError, match="variant 'b0'; expected 'b5'"):
        create("pvt_v2", checkpoint=done.file)


@pytest.mark.parametrize("variant", ["b0", "b1", "b2", "b3", "b4", "b5"])
def test_every_published_size_is_told_by_its_tensors(variant):
    own = build("pvt_v2", "full", {"variant": variant}, device="meta").net.state_dict()
    published = authors(own)
    assert {re.split(r"\d", name)[0] for name in published} == {"patch_embed", "block", "norm"}
    found = load_converter("pvt_v2").translate(published)
    assert found[0] == variant
    assert found[1].keys() == own.keys()


def test_conversion_is_strict(b0, tmp_path):
    tensors = authors(b0.state_dict())
    tensors["block1.0.attn.pos"] = tensors.pop("norm2.weight")
    tensors["patch_embed1.proj.bias"] = torch.zeros(3)
    torch.save(tensors, tmp_path / "file.pth")
    expected = (
        r"missing 1 keys: stages\.1\.norm\.weight; unknown 1 keys: stages\.0\.blocks\.0\.attn\.pos; "
        r"wrong shapes: patch_embed\.proj\.bias \(3,\) instead of \(32,\)"
    )
    with pytest.raises(WeightsError, match=expected):
        convert_in_process(tmp_path / "file.pth", tmp_path / "out.safetensors")
    del tensors["patch_embed1.proj.weight"]
    torch.save(tensors, tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=r"PVT-v2 with 0 channels and \(2, 2, 2, 2\) blocks; expected b0"):
        convert_in_process(tmp_path / "file.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_converted_file_holds_float32_under_the_towers_names(b0, tmp_path):
    torch.save(authors({name: tensor.half() for name, tensor in b0.state_dict().items()}), tmp_path / "file.pth")
    done = convert_in_process(tmp_path / "file.pth", tmp_path / "out.safetensors")
    tensors = load_file(done.file)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert torch.equal(tensors["stages.2.norm.weight"], b0.stages[2].norm.weight.half().float())
