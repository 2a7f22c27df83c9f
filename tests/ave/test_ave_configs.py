"""The shipped configurations are valid, and those of the published settings have the published sizes."""

import pytest

from avcl_core.config.load import read
from avcl_core.config.presets import find_config, preset_folder
from avcl_core.config.run import load_run


def load(name: str, *overrides: str):
    return load_run(read(find_config(name, "avcl_ave"), list(overrides)))


def test_every_shipped_configuration_has_a_case_here():
    assert {path.stem for path in preset_folder("avcl_ave").glob("*.yaml")} == {
        "embedded",
        "digits",
        "supervised",
        "weak",
        "ave_avmoe",
        "ave_avmoe_warm",
        "ave_avmoe_embedded",
        "ave_avmoe_digits",
        "ave_php",
        "ave_php_embedded",
    }


@pytest.mark.parametrize("name", ["ave_avmoe", "ave_avmoe_warm"])
def test_avmoe_as_published(name: str):
    """The model of avmoe.md 3.8 with the recipe of 4.1."""
    options, parts = load(name)
    model = parts.model.model_dump()
    assert {key: model[key] for key in ("cross_experts", "uni_experts", "skip", "reduction", "groups", "latents")} == {
        "cross_experts": 1, "uni_experts": 1, "skip": 2, "reduction": 8, "groups": 2, "latents": 32,
    }  # fmt: skip
    assert (model["bottleneck_norm"], model["uni_attention"], model["specaug"]) == ("batch", "none", True)
    training = options.training
    assert (training.lr, training.schedule, training.decay, training.decay_every) == (5e-4, "step", 0.35, 3)
    assert (training.epochs, training.patience, training.batch_size, training.micro_batch) == (50, 20, 16, 2)
    assert set(options.init) == ({"ave"} if name == "ave_avmoe_warm" else set())


@pytest.mark.parametrize("name", ["supervised", "weak"])
def test_published_settings(name):
    options, parts = load(name)
    assert (parts.tasks["ave"].setting, parts.tasks["ave"].width) == (name, 256)
    assert {n: (t.name, t.size) for n, t in options.towers.items()} == {
        "visual": ("swin_v2", "full"),
        "audio": ("htsat", "full"),
    }
    assert options.towers["audio"].tile == "clip"
    assert all(tower.checkpoint is not None for tower in options.towers.values())  # never random weights unnoticed
    assert options.data.world is None
    training = options.training
    assert (training.lr, training.epochs, training.batch_size, training.micro_batch) == (5e-4, 50, 16, 2)
    assert (training.weight_decay, training.clip, training.selection) == (0.0, None, "best")


def test_small_configurations():
    for name, given in (("embedded", ()), ("digits", ("data.world.images=images", "data.world.sounds=sounds"))):
        options, parts = load(name, *given)
        assert (parts.tasks["ave"].setting, parts.tasks["ave"].width) == ("supervised", 128)
        assert {tower.size for tower in options.towers.values()} == {"tiny"}
