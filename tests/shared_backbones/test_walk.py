"""The walk, sublayer by sublayer, equals the library's own encoder for every tower."""

import pytest
import torch
import torchvision

from shared_backbones import create, names
from shared_backbones.registry import build

TINY = ["beats", "clap", "clip_vit", "htsat", "pvt_v2", "resnet18", "resnet50", "swin_v2", "vggish"]


def library(tower, x):
    """The same tokens by the library's own forward, which knows nothing of sublayers."""
    net = tower.net
    match tower.info.name:
        case "beats":
            # No library has it: its own modules, put together as post-norm blocks are.
            y = net.encoder.positioned(net.tokens(tower.frontend(x)))
            bias, alpha = net.encoder.bias(y.shape[1]), 4**0.25
            for layer in net.encoder.layers:
                y = layer.self_attn_layer_norm(alpha * y + layer.self_attn(y, bias, None, None))
                y = layer.final_layer_norm(alpha * y + layer.fc2(torch.nn.functional.gelu(layer.fc1(y))))
            return y
        case "swin_v2":
            return net.forward_features(x).flatten(1, 2)
        case "clip_vit":
            return net.vision_model.post_layernorm(net.vision_model(x).last_hidden_state)
        case "pvt_v2":
            return net.forward_features(x).flatten(2).transpose(1, 2)
        case "vggish":
            maps = net.features(tower.frontend(x))
            return net.embeddings(maps.permute(0, 2, 3, 1).flatten(1)).unsqueeze(1)
        case "resnet18" | "resnet50":
            for layer in (
                net.conv1,
                net.bn1,
                net.relu,
                net.maxpool,
                *(m for n, m in net.named_children() if "layer" in n),
            ):
                x = layer(x)
            return x.flatten(2).transpose(1, 2)
    # The library's encoder regroups its output and fails where the last grid is small, so call its stages.
    encoder = tower.encoder
    features = tower.frontend(x)
    x = encoder.batch_norm(features.transpose(1, 3)).transpose(1, 3)
    x = encoder.patch_embed(encoder.reshape_mel2img(x))
    for stage, grid in zip(encoder.layers, encoder.input_resolutions, strict=True):
        x = stage(x, grid)[0]
    return encoder.norm(x)


def test_every_tower_is_tested():
    # The language model reads prompts of any length: test_language.py.
    assert names() == sorted([*TINY, "av_llama"])


@pytest.mark.parametrize("name", TINY)
def test_walk_equals_the_library(name, tiny, sample):
    tower, x = tiny(name), sample(name, 3)
    with torch.no_grad():
        expected = library(tower, x)
    found = tower.encode(x)
    rows, columns = tower.info.grid
    assert found.shape == (3, tower.info.class_tokens + rows * columns, tower.info.width)
    assert expected.std() > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", TINY)
def test_subs_say_what_they_return(name, tiny, sample):
    tower = tiny(name)
    x, aux = tower.embed(tower.frontend(sample(name)))
    depth = -1
    for sub in tower.subs:
        out = tower.run(sub, x, aux)
        assert out.shape[1:] == (tower.info.class_tokens + sub.grid[0] * sub.grid[1], sub.width)
        x = tower.join(sub, x, out)
        assert sub.block in (depth, depth + 1)
        depth = sub.block
    assert depth + 1 == sum(tower.info.depths)
    assert [sub.stage for sub in tower.subs] == sorted(sub.stage for sub in tower.subs)


@pytest.mark.parametrize("name", TINY)
def test_samples_do_not_see_each_other(name, tiny, sample):
    tower, x = tiny(name), sample(name, 3)
    torch.testing.assert_close(tower.encode(x)[1:2], tower.encode(x[1:2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "overrides", "parameters"),
    [
        # Without the 21,841-way head of 1536·21841 + 21841: 228,772,549 in all (avmoe.md 8.1).
        ("swin_v2", {}, 228_772_549 - 1537 * 21841),
        ("swin_v2", {"variant": "base"}, 86_893_816),
        # Without token-semantic head, class head, STFT and mel tensors: 31,325,143 in all (avmoe.md 8.1).
        ("htsat", {}, 31_325_143 - 527 * (768 * 6 + 1) - 527 * 528 - 2 * 513 * 1024 - 513 * 64),
        ("clip_vit", {}, 151_277_313),
        ("clip_vit", {"variant": "l14_336"}, 427_944_193),
        ("clap", {}, 153_492_890),
        ("resnet18", {}, 11_176_512),
        # Without the 1,000-way heads: 25,557,032, 25,362,856 and 81,956,008 in all; 81.44 M (tasks.md 3.3).
        ("resnet50", {}, 25_557_032 - 2049 * 1000),
        ("pvt_v2", {"variant": "b2"}, 25_362_856 - 513 * 1000),
        ("pvt_v2", {}, 81_956_008 - 513 * 1000),
        ("vggish", {}, 72_141_184),
        # As published less the 128 lengths of the convolution's weight norm, which are folded (avqacl_moe.md 3.7).
        ("beats", {}, 90_311_792 - 128),
    ],
)
def test_parameter_counts_of_full_towers(name, overrides, parameters):
    tower = build(name, "full", overrides, device="meta")
    assert sum(p.numel() for p in tower.parameters()) == parameters


HEADS = {
    "swin_v2": (6, 12, 24, 48),
    "htsat": (4, 8, 16, 32),
    "clap": (4, 8, 16, 32),
    "clip_vit": (12,),
    "pvt_v2": (1, 2, 5, 8),
    "beats": (12,),
}


@pytest.mark.parametrize("name", TINY)
def test_attention_heads_are_told_per_stage(name, tiny):
    """As published at full size; at any size the library's attention of a stage has as many."""
    assert build(name, "full", {}, device="meta").info.heads == HEADS.get(name, ())
    tower = tiny(name)
    if tower.info.heads:
        assert len(tower.info.heads) == len(tower.info.depths)
    built = [
        next(getattr(module, key) for key in ("num_heads", "num_attention_heads", "heads") if hasattr(module, key))
        for name, module in tower.net.named_modules()
        if name.endswith(("attn", "attention.self")) and "text_model" not in name
    ]
    assert tuple(built) == tuple(h for h, n in zip(tower.info.heads, tower.info.depths, strict=False) for _ in range(n))


@pytest.mark.parametrize(
    ("name", "grids", "widths"),
    [
        ("swin_v2", [48, 24, 12, 6], [192, 384, 768, 1536]),
        ("htsat", [64, 32, 16, 8], [96, 192, 384, 768]),
        ("clap", [64, 32, 16, 8], [96, 192, 384, 768]),
        ("clip_vit", [7], [768]),
        ("resnet18", [56, 28, 14, 7], [64, 128, 256, 512]),
        ("resnet50", [56, 28, 14, 7], [256, 512, 1024, 2048]),
        ("pvt_v2", [56, 28, 14, 7], [64, 128, 320, 512]),
    ],
)
def test_geometry_of_full_towers(name, grids, widths):
    tower = build(name, "full", {}, device="meta")
    stages = {sub.stage: (sub.grid, sub.width) for sub in tower.subs}
    assert list(stages.values()) == [((g, g), w) for g, w in zip(grids, widths, strict=True)]


@pytest.mark.parametrize(
    ("name", "grids", "widths"),
    [
        ("swin_v2", [16, 8, 4, 2], [16, 32, 64, 128]),
        ("htsat", [16, 8, 4, 2], [16, 32, 64, 128]),
        ("clap", [16, 8, 4], [16, 32, 64]),
        ("resnet50", [16, 8, 4, 2], [16, 32, 64, 128]),
        ("pvt_v2", [16, 8, 4, 2], [16, 32, 40, 64]),
        ("clip_vit", [4], [64]),
    ],
)
def test_geometry_of_tiny_towers(name, grids, widths):
    tower = build(name, "tiny", {}, device="meta")
    stages = {sub.stage: (sub.grid, sub.width) for sub in tower.subs}
    assert list(stages.values()) == [((g, g), w) for g, w in zip(grids, widths, strict=True)]


def test_full_htsat_equals_the_library_forward(scrambled):
    tower = build("htsat", "full", {})
    scrambled(tower.net)
    wave = 0.3 * torch.randn(1, 32000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled = tower.net(input_features=tower.frontend(wave)).pooler_output
    torch.testing.assert_close(tower.encode(wave).mean(1), pooled, rtol=1e-4, atol=1e-4)


def test_full_swin_equals_the_library_forward(scrambled):
    tower = build("swin_v2", "full", {"variant": "base"})
    scrambled(tower.net)
    x = torch.randn(1, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tower.net.forward_features(x).flatten(1, 2)
    torch.testing.assert_close(tower.encode(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet50", 2048)])
def test_resnets_equal_torchvision(name, width, scrambled):
    tower = build(name, "full", {})
    oracle = getattr(torchvision.models, name)(weights=None)
    scrambled(oracle)
    oracle.eval()
    oracle.fc = torch.nn.Identity()
    tower.net.load_state_dict(oracle.state_dict())
    for size in ((64, 96), (75, 50)):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        tokens = tower.encode(x)
        assert tokens.shape[2] == width
        with torch.no_grad():
            torch.testing.assert_close(tokens.mean(1), oracle(x), rtol=1e-4, atol=1e-4)


def test_clip_gives_the_tokens_in_front_of_its_first_norm(tiny, sample):
    tower, x = tiny("clip_vit"), sample("clip_vit")
    tokens, aux = tower.embed(x)
    torch.testing.assert_close(aux["raw"], tower.net.vision_model.embeddings(x))
    torch.testing.assert_close(tokens, tower.net.vision_model.pre_layrnorm(aux["raw"]))


def test_wrong_inputs_are_refused(tiny):
    with pytest.raises(ValueError, match=r"\[B, 3, 64, 64\]"):
        tiny("swin_v2").encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="at most 81919"):
        tiny("htsat").encode(torch.zeros(1, 90000))
    with pytest.raises(ValueError, match="at most 256, 16"):
        tiny("htsat").embed(torch.zeros(1, 1, 300, 16))
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        tiny("clap").encode(torch.zeros(8000))
    with pytest.raises(ValueError, match=r"at most 16000 \(1 s\)"):
        tiny("vggish").encode(torch.zeros(1, 16001))
    with pytest.raises(ValueError, match=r"\[B, 1, 96, 64\]"):
        tiny("vggish").embed(torch.zeros(1, 1, 98, 64))


def test_encode_takes_a_full_length_waveform():
    tower = create("htsat", size="tiny", pretrained=False)
    assert tower.encode(torch.zeros(1, tower.info.max_samples)).shape == (1, 4, 128)
