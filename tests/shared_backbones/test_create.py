"""Towers by name: lazy imports, refusals that tell what to do, embedded weights and checkpoints."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared_backbones import TowerError, WeightsError, create, names, register, save_embedded, weights
from shared_backbones.registry import factory_of


def test_importing_and_listing_is_light():
    code = (
        "import sys, shared_backbones, shared_backbones.catalogue; shared_backbones.names(); "
        "shared_backbones.catalogue.list_weights(); "
        "print([m for m in ('torch', 'timm', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names():
    assert {"swin_v2", "clip_vit", "htsat", "clap", "pvt_v2", "resnet18", "resnet50", "vggish", "beats"} <= set(names())
    assert names() == sorted(names())


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("swin_v3", {}, r"unknown name 'swin_v3'; did you mean 'swin_v2'\?"),
        ("zzz", {}, "unknown name 'zzz'; known: .*swin_v2"),
        ("swin_v2", {"size": "small"}, "size 'small'; known: full, tiny"),
        ("swin_v2", {"varient": "base"}, r"unknown override 'varient'; did you mean 'variant'\?"),
        ("htsat", {"variant": "base"}, "unknown override 'variant'"),
        ("swin_v2", {"variant": "lerge"}, r"unknown variant 'lerge'; did you mean 'large'\?"),
        ("clip_vit", {"variant": "b33"}, r"unknown variant 'b33'; did you mean 'b32'\?"),
        ("swin_v2", {"size": "tiny", "variant": "base"}, "size='tiny' has one configuration"),
        ("pvt_v2", {"variant": "b6"}, r"unknown variant 'b6'; did you mean 'b[0-5]'\?"),
        ("pvt_v2", {"size": "tiny", "variant": "b0"}, "size='tiny' has one configuration"),
        ("vggish", {"variant": "pca"}, "unknown override 'variant'"),
        ("clap", {"size": "tiny", "tokenizer": "x"}, "size='tiny' reads bytes"),
        ("htsat", {"pretrained": True}, "do not ship"),
        ("htsat", {"pretrained": True, "checkpoint": "x"}, "not both"),
    ],
)
def test_refusals(name, kwargs, message):
    with pytest.raises(TowerError, match=message) as caught:
        create(name, **kwargs)
    assert "\n" not in str(caught.value)


def test_missing_checkpoint(tmp_path):
    with pytest.raises(WeightsError, match="no such file; expected weights of tower htsat"):
        create("htsat", size="tiny", checkpoint=tmp_path / "none.safetensors")


def test_registering_a_tower_of_ones_own():
    @register("mine")
    def mine(size, width=3):
        return create("resnet18", size="tiny", pretrained=False)

    try:
        assert "mine" in names()
        assert factory_of("mine") is mine
        with pytest.raises(TowerError, match="did you mean 'width'"):
            create("mine", size="tiny", pretrained=False, widht=4)
    finally:
        from shared_backbones import registry

        del registry._factories["mine"]


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path)
    return tmp_path


def test_tiny_without_embedded_weights_names_the_command(embedded):
    with pytest.raises(WeightsError, match=r"`avcl weights pretrain`.*pretrained=False"):
        create("htsat", size="tiny")


@pytest.mark.parametrize(
    "name", ["beats", "clap", "clip_vit", "htsat", "pvt_v2", "resnet18", "resnet50", "swin_v2", "vggish"]
)
def test_embedded_weights_come_back(name, embedded, tiny, sample):
    tower = tiny(name, seed=3)
    file = save_embedded(tower, embedded, {"command": "test", "seed": 3})
    assert file.stat().st_size < 2_000_000
    loaded = create(name, size="tiny")
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert loaded.weights_digest() == create(name, size="tiny", seed=9).weights_digest()
    assert loaded.weights_digest() == create(name, size="tiny", checkpoint=file).weights_digest()
    stored = load_file(file)
    assert all(torch.equal(t.to(stored[n].dtype), stored[n]) for n, t in loaded.net.state_dict().items())
    assert not torch.equal(
        loaded.encode(sample(name)), create(name, size="tiny", pretrained=False).encode(sample(name))
    )
    torch.testing.assert_close(loaded.encode(sample(name)), tower.encode(sample(name)), rtol=0.02, atol=0.05)
    manifest = json.loads((embedded / "manifest.json").read_text())
    assert manifest[name]["provenance"] == {"command": "test", "seed": 3}
    assert manifest[name]["sha256"] == weights.sha256_of(file)


def test_two_towers_share_one_manifest(embedded, tiny):
    save_embedded(tiny("htsat"), embedded, {})
    save_embedded(tiny("resnet18"), embedded, {})
    assert set(json.loads((embedded / "manifest.json").read_text())) == {"htsat", "resnet18"}


def test_changed_embedded_file_is_refused(embedded, tiny):
    file = save_embedded(tiny("htsat"), embedded, {})
    tensors = load_file(file)
    tensors["audio_encoder.norm.bias"] += 1
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=r"htsat\.safetensors: sha256 .* manifest\.json says"):
        create("htsat", size="tiny")


def test_weights_that_overflow_half_precision_are_not_saved(embedded, tiny):
    tower = tiny("resnet18")
    with torch.no_grad():
        tower.net.bn1.running_mean[0] = 1e6
    with pytest.raises(WeightsError, match=r"bn1\.running_mean is not finite in half precision"):
        save_embedded(tower, embedded, {})
    assert not list(embedded.iterdir())


def test_converted_file_with_wrong_tensors_lists_them(tmp_path, tiny):
    file = save_embedded(tiny("resnet18"), tmp_path, {})
    tensors = load_file(file)
    tensors["extra.weight"] = tensors.pop("bn1.weight")
    save_file(tensors, file, metadata={"tower": "resnet18", "variant": "tiny", "size": "tiny"})
    with pytest.raises(WeightsError, match=r"missing 1 keys: bn1\.weight; unknown 1 keys: extra\.weight"):
        create("resnet18", size="tiny", checkpoint=file)


def test_resnet18_keeps_its_names_and_embedded_weights():
    """Pinned from before its body was shared with other residual networks."""
    assert create("resnet18", size="tiny").weights_digest().startswith("250054446c523802")
