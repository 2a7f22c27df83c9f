"""The shipped configurations are valid, those for LLP have the published sizes, and options are checked."""

import os
from pathlib import Path

import pytest

from avcl_core.config.load import read
from avcl_core.config.presets import find_config, preset_folder
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[2] / "packages" / "avvp"


def load(name: str, *overrides: str):
    return load_run(read(find_config(name, "avcl_avvp"), list(overrides)))


def test_every_shipped_configuration_has_a_case_here():
    assert {path.stem for path in preset_folder("avcl_avvp").glob("*.yaml")} == {
        "embedded",
        "digits",
        "llp",
        "llp_mmil",
        "avvp_avmoe",
        "avvp_avmoe_embedded",
        "avvp_php",
        "avvp_php_embedded",
    }


def test_avmoe_as_published():
    """The model of avmoe.md 3.8 with the recipe of 4.1."""
    options, parts = load("avvp_avmoe")
    model = parts.model.model_dump()
    assert {key: model[key] for key in ("cross_experts", "uni_experts", "skip", "reduction", "groups", "latents")} == {
        "cross_experts": 1, "uni_experts": 1, "skip": 1, "reduction": 8, "groups": 2, "latents": 32,
    }  # fmt: skip
    assert (model["bottleneck_norm"], model["uni_attention"], model["balance_weight"]) == ("none", "latent", 2.0)
    assert parts.tasks["avvp"].motion
    training = options.training
    assert (training.lr, training.schedule, training.decay, training.decay_every) == (3e-4, "step", 0.1, 10)
    assert (training.epochs, training.batch_size, training.micro_batch) == (40, 8, 1)


@pytest.mark.parametrize(("name", "head"), [("llp", "mgn"), ("llp_mmil", "mmil")])
def test_published_settings(name, head):
    options, parts = load(name, "towers.visual.checkpoint=swin", "towers.audio.checkpoint=htsat")
    task = parts.tasks["avvp"]
    assert (task.head, task.width, task.motion) == (head, 128, True)
    assert {n: (t.name, t.size) for n, t in options.towers.items()} == {
        "visual": ("swin_v2", "full"),
        "audio": ("htsat", "full"),
    }
    assert options.towers["audio"].tile == "clip"
    assert options.data.world is None
    training = options.training
    assert (training.lr, training.epochs, training.batch_size, training.micro_batch) == (3e-4, 40, 8, 1)
    assert (training.weight_decay, training.clip, training.selection) == (0.0, None, "best")


def test_small_configurations():
    for name, given in (("embedded", ()), ("digits", ("data.world.images=images", "data.world.sounds=sounds"))):
        options, parts = load(name, *given)
        assert (parts.tasks["avvp"].head, parts.tasks["avvp"].motion) == ("mmil", None)
        assert {tower.size for tower in options.towers.values()} == {"tiny"}


def test_the_published_head_is_the_default():
    _, parts = load_run(read(None, ["stream.tasks=[avvp]"]))
    assert (parts.tasks["avvp"].head, parts.tasks["avvp"].width) == ("mgn", 128)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("tasks.avvp.head=mil", r"tasks\.avvp\.head: found 'mil'.*'mgn', 'mmil' or 'text'"),
        ("tasks.avvp.width=100", r"tasks\.avvp\.width: found 100.*multiple of 8"),
        ("tasks.avvp.width=0", r"tasks\.avvp\.width: found 0"),
        ("tasks.avvp.motions=true", r"tasks\.avvp\.motions: unknown key; did you mean 'motion'"),
    ],
)
def test_wrong_options_are_named(override, part):
    with pytest.raises(ConfigError, match=part):
        load("embedded", override)


@pytest.mark.parametrize(("script", "command"), [("train", "train"), ("test", "test"), ("val", "test")])
def test_scripts_are_three_lines_that_pass_everything_on(script, command):
    path = PACKAGE / f"{script}.sh"
    assert os.access(path, os.X_OK)
    first, strict, line = path.read_text().splitlines()
    assert (first, strict) == ("#!/usr/bin/env bash", "set -euo pipefail")
    assert line.endswith(f' --package avcl-avvp avvp {command} "$@"' + (" split=val" if script == "val" else ""))
