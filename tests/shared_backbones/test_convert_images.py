"""Image checkpoints in their published layouts: old and new Swin-V2 naming, OpenAI and transformers CLIP, torchvision."""

from __future__ import annotations

import math
import zlib

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from shared_backbones import create
from shared_backbones.convert import convert_in_process, formats, load_converter
from shared_backbones.errors import WeightsError
from shared_backbones.registry import build

NOISE = torch.randn(26_000_000, generator=torch.Generator().manual_seed(0))


def weight(name: str, *shape: int, scale: float = 0.05, shift: float = 0.0) -> Tensor:
    count = math.prod(shape)
    start = zlib.crc32(name.encode()) % (len(NOISE) - count)
    return NOISE[start : start + count].view(shape) * scale + shift


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "foreign.pt"
    yield path
    for made in tmp_path.iterdir():
        made.unlink()


@pytest.fixture(scope="module")
def swin():
    """timm's own model of this name, 10 classes, with weights that matter."""
    model = timm.create_model("swinv2_base_window12_192", pretrained=False, num_classes=10).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(weight(name, *tensor.shape, shift=float(name.endswith("norm1.weight"))))
    return model


@pytest.mark.parametrize("naming", ["authors", "timm"])
def test_swin_v2(naming, swin, file):
    tensors = dict(swin.state_dict())
    if naming == "authors":
        tensors = {name.replace("head.fc.", "head."): tensor for name, tensor in tensors.items()}
        for i in (1, 2, 3):  # from the start of a stage to the end of the one before
            for leaf in ("norm.weight", "norm.bias", "reduction.weight"):
                tensors[f"layers.{i - 1}.down.{leaf}"] = tensors.pop(f"layers.{i}.downsample.{leaf}")
        tensors = {name.replace(".down.", ".downsample."): tensor for name, tensor in tensors.items()}
        tensors["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 144, 144)
        tensors["layers.0.blocks.0.attn.relative_coords_table"] = torch.zeros(1, 23, 23, 2)
        tensors["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(144, 144, dtype=torch.long)
        torch.save({"model": tensors, "epoch": 90}, file)
    else:
        torch.save(tensors, file)
    done = convert_in_process(file, file.with_name("out.safetensors"))
    assert (done.tower, done.variant, done.converter) == ("swin_v2", "base", "swin_v2")
    tower = create("swin_v2", variant="base", checkpoint=done.file)
    x = torch.randn(1, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = swin.forward_features(x).flatten(1, 2)
    torch.testing.assert_close(tower.encode(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(WeightsError, match="variant 'base'; expected 'large'"):
        create("swin_v2", checkpoint=done.file)


def test_swin_v2_of_another_width(file):
    torch.save(
        {"patch_embed.proj.weight": torch.zeros(96, 3, 4, 4), "layers.0.blocks.0.attn.logit_scale": torch.zeros(3)},
        file,
    )
    with pytest.raises(WeightsError, match="96 channels; expected 192"):
        convert_in_process(file, file.with_name("out.safetensors"))


def openai_clip() -> dict[str, Tensor]:
    """ViT-B/32 under OpenAI's names, in half precision as published."""
    t = {
        "input_resolution": torch.tensor(224),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
        "logit_scale": torch.tensor(4.6),
        "visual.class_embedding": weight("class", 768),
        "visual.positional_embedding": weight("vpos", 50, 768),
        "visual.conv1.weight": weight("conv", 768, 3, 32, 32, scale=0.02),
        "visual.proj": weight("vproj", 768, 512),
        "text_projection": weight("tproj", 512, 512),
        "positional_embedding": weight("tpos", 77, 512),
        "token_embedding.weight": weight("token", 49408, 512),
    }
    norms = [("visual.ln_pre", 768), ("visual.ln_post", 768), ("ln_final", 512)]
    for tower, width in (("visual.", 768), ("", 512)):
        for i in range(12):
            p = f"{tower}transformer.resblocks.{i}"
            norms += [(f"{p}.ln_1", width), (f"{p}.ln_2", width)]
            t[f"{p}.attn.in_proj_weight"] = weight(f"{p}in", 3 * width, width)
            t[f"{p}.attn.in_proj_bias"] = weight(f"{p}inb", 3 * width)
            for name, out, into in (("attn.out_proj", 1, 1), ("mlp.c_fc", 4, 1), ("mlp.c_proj", 1, 4)):
                t[f"{p}.{name}.weight"] = weight(f"{p}{name}", out * width, into * width, scale=0.03)
                t[f"{p}.{name}.bias"] = weight(f"{p}{name}b", out * width)
    for name, width in norms:
        t[f"{name}.weight"], t[f"{name}.bias"] = weight(name, width, shift=1), weight(f"{name}b", width)
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in t.items()}


def direct_blocks(t, p, x, heads, mask=None):
    """OpenAI's residual blocks [L, B, C] by torch's packed multi-head attention and the quick GELU x·σ(1.702x)."""
    width = x.shape[-1]
    for i in range(12):
        q = f"{p}transformer.resblocks.{i}"
        y = F.layer_norm(x, (width,), t[f"{q}.ln_1.weight"], t[f"{q}.ln_1.bias"])
        y, _ = F.multi_head_attention_forward(
            y, y, y, width, heads, t[f"{q}.attn.in_proj_weight"], t[f"{q}.attn.in_proj_bias"], None, None, False, 0.0,
            t[f"{q}.attn.out_proj.weight"], t[f"{q}.attn.out_proj.bias"], training=False, need_weights=False, attn_mask=mask,
        )  # fmt: skip
        x = x + y
        y = F.layer_norm(x, (width,), t[f"{q}.ln_2.weight"], t[f"{q}.ln_2.bias"])
        y = F.linear(y, t[f"{q}.mlp.c_fc.weight"], t[f"{q}.mlp.c_fc.bias"])
        x = x + F.linear(y * torch.sigmoid(1.702 * y), t[f"{q}.mlp.c_proj.weight"], t[f"{q}.mlp.c_proj.bias"])
    return x


def test_openai_clip_equals_the_direct_formulation(file):
    tensors = openai_clip()
    torch.save(tensors, file)
    done = convert_in_process(file, file.with_name("out.safetensors"), tower="clip_vit")
    assert (done.variant, done.converter) == ("b32", "openai_clip")
    assert set(done.dropped) == {"input_resolution", "context_length", "vocab_size"}
    tower = create("clip_vit", checkpoint=done.file)
    t = {name: tensor.float() for name, tensor in tensors.items()}

    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    patches = F.conv2d(x, t["visual.conv1.weight"], stride=32).flatten(2).transpose(1, 2)
    tokens = torch.cat((t["visual.class_embedding"].expand(1, 1, -1), patches), 1) + t["visual.positional_embedding"]
    tokens = F.layer_norm(tokens, (768,), t["visual.ln_pre.weight"], t["visual.ln_pre.bias"])
    tokens = direct_blocks(t, "visual.", tokens.transpose(0, 1), 12).transpose(0, 1)
    expected = F.layer_norm(tokens, (768,), t["visual.ln_post.weight"], t["visual.ln_post.bias"])
    found = tower.encode(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tower.project(found), expected[:, 0] @ t["visual.proj"], rtol=1e-4, atol=1e-4)

    ids = torch.tensor([49406, 320, 1125, 49407])
    text = t["token_embedding.weight"][ids] + t["positional_embedding"][:4]
    text = direct_blocks(t, "", text[:, None], 8, torch.full((4, 4), -math.inf).triu(1))[:, 0]
    text = F.layer_norm(text, (512,), t["ln_final.weight"], t["ln_final.bias"])
    hidden = tower.net.text_model(input_ids=ids[None]).last_hidden_state[0]
    torch.testing.assert_close(hidden, text, rtol=1e-4, atol=1e-4)
    joint = tower.net.text_projection(hidden[-1])
    torch.testing.assert_close(joint, text[-1] @ t["text_projection"], rtol=1e-4, atol=1e-4)


def test_transformers_clip_and_its_gaps(file):
    tensors = {
        name: torch.zeros(()).expand(t.shape)
        for name, t in build("clip_vit", "full", {"variant": "b16"}, device="meta").net.state_dict().items()
    }
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    _, translated, dropped = load_converter("hf_clip").translate(tensors)
    assert dropped == ["text_model.embeddings.position_ids"]
    assert load_converter("hf_clip").translate(tensors)[0] == "b16"
    assert len(translated) == len(tensors) - 1
    del tensors["text_projection.weight"]
    torch.save(tensors, file)
    with pytest.raises(WeightsError, match=r"missing 1 keys: text_projection\.weight"):
        convert_in_process(file, file.with_name("out.safetensors"))
    tensors["vision_model.embeddings.patch_embedding.weight"] = torch.zeros(768, 3, 8, 8)
    with pytest.raises(WeightsError, match=r"\(768, 8, 197\); expected one of b32"):
        load_converter("hf_clip").translate(tensors)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_resnets(name, file):
    oracle = getattr(torchvision.models, name)(weights=None).eval()
    tensors = {
        name: tensor.abs() + 0.5 if name.endswith("running_var") else tensor + weight(name, *tensor.shape)
        for name, tensor in oracle.state_dict().items()
        if tensor.is_floating_point()  # the older files have no batch counters
    }
    oracle.load_state_dict(tensors, strict=False)
    torch.save(tensors, file, _use_new_zipfile_serialization=False)
    done = convert_in_process(file, file.with_name("out.safetensors"))
    assert (done.tower, done.dropped) == (name, ("fc.bias", "fc.weight"))
    tower = create(name, checkpoint=done.file)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    oracle.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(tower.encode(x).mean(1), oracle(x), rtol=1e-4, atol=1e-4)
    tensors["layer5.0.conv1.weight"] = tensors.pop("layer2.0.bn1.running_mean")
    torch.save(tensors, file)
    with pytest.raises(WeightsError, match=r"missing 1 keys: layer2\.0\.bn1\.running_mean; unknown 1 keys: layer5"):
        convert_in_process(file, file.with_name("out.safetensors"))


def test_layout_of_another_tower_is_refused(file):
    torch.save({"bn0.weight": torch.zeros(64)}, file)
    with pytest.raises(WeightsError, match="looks like htsat, which is not for tower clap"):
        convert_in_process(file, file.with_name("out.safetensors"), tower="clap")
    with pytest.raises(WeightsError, match="holds weights of tower htsat, asked for clap"):
        convert_in_process(file, file.with_name("out.safetensors"), converter="htsat", tower="clap")
    with pytest.raises(WeightsError, match=r"unknown name 'htsad'; did you mean 'htsat'\?"):
        load_converter("htsad")
    assert set(formats()) == {
        "beats", "hf_clap", "hf_clip", "htsat", "laion_clap", "openai_clip", "pvt_v2", "swin_v2", "torchvision_resnet",
        "torchvision_resnet50", "uni_moe_audio", "vggish", "vggish_pca",
    }  # fmt: skip
