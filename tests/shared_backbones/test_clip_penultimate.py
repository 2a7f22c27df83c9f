"""The variant of CLIP without its last block gives the library's hidden_states[-2] and loads the whole variant's weights, strictly."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel

from shared_backbones import create
from shared_backbones.convert import convert_in_process
from shared_backbones.errors import TowerError, WeightsError
from shared_backbones.registry import build
from shared_backbones.towers import clip_vit

PART = "l14_336_penultimate"
SMALL = (32, 3, 2, 8, 24, 16, 2, 2, 16, 259)


@pytest.fixture
def small(monkeypatch, scrambled):
    """The large variant in a small geometry, and its weights."""
    monkeypatch.setitem(clip_vit.FULL, "l14_336", SMALL)
    monkeypatch.setattr("shared_backbones.convert.hf_clip.VARIANTS", {(32, 8, 10): "l14_336"})
    whole = build("clip_vit", "full", {"variant": "l14_336"})
    scrambled(whole.net)
    return whole


@pytest.fixture
def file(small, tmp_path):
    source = tmp_path / "pytorch_model.bin"
    torch.save(small.net.state_dict(), source)
    return convert_in_process(source, tmp_path / "clip.safetensors").file


def test_tokens_are_the_librarys_hidden_states_before_the_last_block(small, file):
    tower = create("clip_vit", variant=PART, checkpoint=file).double()
    config = small.net.config.vision_config
    oracle = CLIPVisionModel(config).double()
    oracle.load_state_dict(small.net.vision_model.state_dict())
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        states = oracle(x, output_hidden_states=True).hidden_states
    assert len(states) == 4
    torch.testing.assert_close(tower.encode(x), states[-2], atol=1e-10, rtol=0)
    assert float((states[-1] - states[-2]).abs().max()) > 1e-2


def test_it_is_a_tower_without_last_norm_and_without_text(small, file):
    tower = create("clip_vit", variant=PART, checkpoint=file)
    assert (tower.info.depths, tower.info.joint_width, tower.text) == ((2,), None, None)
    assert [(sub.block, sub.kind) for sub in tower.subs] == [(b, k) for b in (0, 1) for k in ("attn", "mlp")]
    tokens = torch.randn(1, 10, 32)
    assert tower.final(tokens) is tokens
    with pytest.raises(TypeError, match="no text side"):
        tower.project(tokens)
    with pytest.raises(TowerError, match="leave tokenizer= out"):
        build("clip_vit", "full", {"variant": PART, "tokenizer": "x"})


def test_only_a_complete_file_of_the_whole_variant_is_taken(small, file, tmp_path):
    tensors = load_file(file)
    metadata = {"tower": "clip_vit", "size": "full", "variant": "l14_336"}
    unused = "vision_model.encoder.layers.2.mlp.fc1.weight"
    for name, change, says in (
        ("less", lambda t: t.pop(unused), f"missing 1 keys: {unused}"),
        ("more", lambda t: t.update(extra=torch.zeros(1)), "unknown 1 keys: extra"),
        ("other", lambda t: t.update({unused: torch.zeros(3)}), rf"wrong shapes: {unused} \(3,\)"),
    ):
        changed = dict(tensors)
        change(changed)
        save_file(changed, tmp_path / name, metadata=metadata)
        with pytest.raises(WeightsError, match=says):
            create("clip_vit", variant=PART, checkpoint=tmp_path / name)
    save_file(tensors, tmp_path / "b32", metadata=metadata | {"variant": "b32"})
    with pytest.raises(WeightsError, match="variant 'b32'; expected 'l14_336'"):
        create("clip_vit", variant=PART, checkpoint=tmp_path / "b32")


def test_the_published_size_lacks_one_block_and_the_last_norm():
    tower = build("clip_vit", "full", {"variant": PART}, device="meta")
    count = sum(p.numel() for p in tower.net.parameters())
    block = sum(p.numel() for p in tower.net.vision_model.encoder.layers[0].parameters())
    assert (block, count + block + 2 * 1024) == (12_596_224, 303_507_456)
    assert (tower.info.depths, tower.info.grid, tower.info.width) == ((23,), (24, 24), 1024)
