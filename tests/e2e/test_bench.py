"""`avcl bench` measures every task and phase of a configuration, and changes nothing but caches; no number is judged here."""

from __future__ import annotations

import json
import sys

import pytest

from avcl.bench import PHASES, bench, named_source
from avcl_core.config.load import read
from avcl_core.config.presets import find_config
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError
from avcl_core.running.launch import Console
from avcl_core.running.preview import size_of_configuration, substitutes

from .conftest import run_folders

KEYS = {"task", "phase", "batch_size", "batches", "samples_per_second", "seconds_per_batch", "peak_memory_bytes"}


def test_every_task_and_phase_is_measured_with_replay_from_the_tasks_before(overrides: list[str], monkeypatch) -> None:
    from avcl_core.training.stepper import Stepper

    replayed = []
    step = Stepper.step

    def noticing(self, batches, count, coordinates, index):
        before = len(self.method.memory)
        replayed.append((batches[0].task, before > 0))
        return step(self, batches, count, coordinates, index)

    monkeypatch.setattr(Stepper, "step", noticing)
    before = set(run_folders(overrides))
    found = bench(read(find_config("embedded", "avcl"), overrides), 2, Console())
    assert [(row["task"], row["phase"]) for row in found["tasks"]] == [
        (task, phase) for task in ("ave", "avvp") for phase in PHASES
    ]
    for row in found["tasks"]:
        assert set(row) - {"split"} == KEYS
        assert ("split" in row) == (row["phase"] == "step")
        assert row["batches"] == 2
        assert row["samples_per_second"] > 0
        assert row["peak_memory_bytes"] > 2**20
        assert row["seconds_per_batch"]["min"] <= row["seconds_per_batch"]["median"] <= row["seconds_per_batch"]["max"]
        for seconds in row.get("split", {}).values():
            assert seconds > 0
        if "split" in row:
            assert sum(row["split"].values()) == pytest.approx(row["batch_size"] / row["samples_per_second"], rel=0.01)
    # One step to warm up and two that count; the second task replays samples of the first.
    assert replayed == [("ave", False)] * 3 + [("avvp", True)] * 3
    assert set(run_folders(overrides)) == before
    json.dumps(found)


def test_the_command_prints_json(overrides: list[str], monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    from avcl.cli import main

    monkeypatch.setattr(
        sys, "argv", ["avcl", "bench", "embedded", *overrides, "stream.tasks=[ave]", "--steps", "1", "--json"]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    assert {row["task"] for row in json.loads(capsys.readouterr().out)["tasks"]} == {"ave"}


def test_a_task_a_method_and_a_size_name_a_configuration(overrides: list[str], tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, added = named_source(["task=avs", "method=avmoe", "setting=ms3", "size=tiny", "seed=3"])
    options, parts = load_run(source)
    assert (options.stream.tasks, options.model["name"], options.seed, added) == (("avs",), "avmoe", 3, [])
    assert parts.tasks["avs"].setting == "ms3"
    assert options.towers["visual"].size == "tiny"

    source, added = named_source(["task=ave", "method=avmoe", "size=full", "training.micro_batch=1", "training.lr=1"])
    options, _ = load_run(source)
    assert all(tower.size == "full" and tower.random and tower.checkpoint is None for tower in options.towers.values())
    assert options.data.world is not None
    assert str(options.data.root) == "data/stand-in"
    assert (options.training.micro_batch, options.training.lr) == (1, 1.0)
    assert not any(text.startswith("training.") for text in added)  # who names one of batch and micro-batch means both


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["task=ave"], "method= is missing"),
        (["task=ave", "method=avmoe", "size=big"], "size=big"),
        (["task=avs", "method=avmoe"], "avs_avmoe_embedded"),
        (["task=ave", "method=nothing"], "ave_nothing_embedded"),
    ],
)
def test_what_names_no_configuration_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        named_source(arguments)


def test_only_what_nobody_named_is_replaced(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = find_config("supervised", "avcl_ave")
    named = ["data.root=mine", "towers.audio.checkpoint=mistyped.ckpt"]
    assert substitutes(path, named) == ["towers.visual.checkpoint=null", "towers.visual.random=true"]
    weights = tmp_path / "swin.pth"
    weights.touch()
    assert substitutes(path, [*named, f"towers.visual.checkpoint={weights}"]) == []


def test_a_generated_world_stands_in_without_what_it_does_not_hold(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, added = named_source(["task=avvp", "method=avmoe", "size=full"])
    assert "tasks.avvp.motion=false" in added
    _, added = named_source(["task=avvp", "method=avmoe", "size=full", "data.root=elsewhere"])
    assert not [text for text in added if text.startswith("tasks.")]


def test_sizes_are_told_before_a_run(overrides: list[str]) -> None:
    from avcl_core.running.assemble import assemble, describe
    from avcl_core.running.launch import launch_fabric

    source = read(find_config("embedded", "avcl"), overrides)
    options, parts = load_run(source)
    assembly = assemble(options, parts, *launch_fabric(options))
    said = dict(describe(assembly))
    size = size_of_configuration(source)
    assert size.uncounted == ""
    assert dict(size.rows()).items() <= said.items()
    method = assembly.build()
    for experience in assembly.stream.experiences:
        method.model.grow(experience)
    assert size.total == sum(parameter.numel() for parameter in method.model.parameters())
    assert size.trainable == size.total - sum(size.frozen.values())
    heads = [count for owner, count in size.owners.items() if owner.startswith("head:")]
    assert max(heads) + size.owners["shared"] <= size.peak_trained <= size.trainable
    assert size.memory["optimizer"] == 2 * size.memory["gradients"] == 8 * size.peak_trained
    assert [record.task for record in size.forward] == list(options.stream.tasks)
    json.dumps(size.to_json())
