"""A task's own command line trains and tests it; ranks, heads that start elsewhere and options of tasks through whole runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from avcl_core.config.load import read
from avcl_core.config.presets import find_config
from avcl_core.config.run import load_run, paths_below
from avcl_core.errors import ConfigError

from .conftest import start, without


def test_shuffled_labels_are_only_shuffled_where_something_is_learnt(overrides: list[str], straight: Path) -> None:
    run = start([*overrides, "stream.shuffle_labels=true"])
    plain, shuffled = (
        json.loads(path.joinpath("results.jsonl").read_text().splitlines()[0]) for path in (straight, run)
    )
    assert plain["metrics"] != shuffled["metrics"]
    assert plain["controls"]["true class on every second"] == shuffled["controls"]["true class on every second"]


def test_a_task_trains_and_tests_alone(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from avcl_ave.cli import main

    runs = next(text for text in overrides if text.startswith("runs="))
    alone = without(overrides, "method.", "stream.")

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["ave", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    assert [call("train", *alone), call("test", runs)] == [0, 0]
    shown = capsys.readouterr().out
    assert "test acc" in shown
    assert "always background" in shown
    assert "equal to what the run stored" in shown

    assert call("test", runs, "split=val", "modalities=vision") == 0
    shown = capsys.readouterr().out
    assert "equal to what the run stored" not in shown, "another split and one modality are another question"
    written = next(Path(line.split()[-1]) for line in shown.splitlines() if line.startswith("written to"))
    assert written.name == "latest-val-visual"
    assert json.loads((written / "results.jsonl").read_text())["samples"] == len(
        (written / "results" / "examples" / "ave.jsonl").read_text().splitlines()
    )
    for wrong, named in (("spilt=val", "split"), ("split=vla", "val"), ("modalities=smell", "visual")):
        assert call("test", runs, wrong) == 2
        assert named in capsys.readouterr().err


def test_two_processes_through_the_command_line_equal_one(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of tasks whose heads have no dropout: its masks are drawn by each rank for its own rows."""
    from avcl.children import Child
    from avcl.cli import main

    made = []
    for devices in (1, 2):
        runs = tmp_path / str(devices)
        given = [*without(overrides, "runs=", "stream.tasks="), "stream.tasks=[avvp,avqa_ground]", f"runs={runs}"]
        command = ["avcl", "run", "embedded", *given, "fabric.accelerator=cpu", f"fabric.devices={devices}"]
        if devices == 1:
            monkeypatch.setattr(sys, "argv", command)
            with pytest.raises(SystemExit) as end:
                main()
            assert not end.value.code
        else:
            child = Child(command[1:])
            said = child.stdout.read()
            assert child.wait() == 0, said
        (run,) = (path.parent for path in runs.glob("*/*/*/run.json"))
        assert (run / "report.html").is_file()
        made.append([json.loads(line)["metrics"] for line in (run / "results.jsonl").read_text().splitlines()])
    assert made[0] == made[1]


def test_relative_places_do_not_change_the_digest_of_a_run(tmp_path: Path) -> None:

    given = ["data.world.images=mnist", "data.world.sounds=fsdd", "towers.visual.checkpoint=swin.safetensors"]
    given += ["init.avqa=runs/grounding"]
    options, _ = load_run(read(find_config("digits", "avcl"), given))
    moved = paths_below(options, tmp_path)
    assert moved.data.world is not None
    assert moved.data.world.images == tmp_path / "mnist"
    assert moved.digest == options.digest


def test_a_run_whose_head_started_elsewhere_is_evaluated_from_any_folder(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from avcl_core.errors import IntegrityError
    from avcl_core.running import launch

    monkeypatch.chdir(tmp_path)
    given = without(overrides, "method.", "stream.", "runs=", "training.epochs")
    given += ["stream.tasks=[ave]", "training.epochs=1", "model.name=frozen", "method.name=finetune", "runs=runs"]
    source = start(given)
    run = start([*given, f"init.ave={source}"])
    assert not source.is_absolute()
    assert len(json.loads((run / "run.json").read_text())["init"]["ave"]) == 64
    first, second = (path.joinpath("metrics.jsonl").read_text().splitlines()[0] for path in (source, run))
    assert json.loads(first)["loss"] != json.loads(second)["loss"], "the second run went on from the first one's head"
    monkeypatch.chdir(tmp_path.parent)
    found = launch.evaluate(tmp_path / run, None, launch.Console())
    assert found["ave"].agrees
    monkeypatch.chdir(tmp_path)
    before = set(Path("runs").glob("*/*/*"))
    with pytest.raises(IntegrityError, match=r"init\.ave: .* is neither a run folder nor a checkpoint"):
        start([*given, "init.ave=runs"])
    assert set(Path("runs").glob("*/*/*")) == before, "refused before a run folder is made"


def test_options_of_tasks_that_the_stream_leaves_out_are_checked_and_dropped() -> None:
    path = find_config("embedded", "avcl")
    options, parts = load_run(read(path, ["stream.tasks=[avs]"]))
    assert set(options.tasks) == set(parts.tasks) == {"avs"}
    with pytest.raises(ConfigError, match=r"tasks\.ave\.widht.*width"):
        load_run(read(path, ["stream.tasks=[avs]", "tasks.ave.widht=4"]))
    with pytest.raises(ConfigError, match=r"tasks\.avqq: task 'avqq' is not installed.*avqa"):
        load_run(read(path, ["tasks.avqq.x=1"]))


def test_a_run_that_is_being_written_is_not_resumed_twice(straight: Path) -> None:
    from avcl_core.errors import RunError
    from avcl_core.running import launch
    from avcl_core.running.lock import only_writer

    with only_writer(straight), pytest.raises(RunError, match="another process is working on this run"):
        launch.resume(straight, [], launch.Console())


def test_sweep_refuses_what_is_given_twice_and_keeps_what_is_not_swept() -> None:
    from avcl.sweep import combinations, sweep
    from avcl_core.errors import ConfigError

    assert combinations(["seed=3"], ["er"], []) == [["seed=3", "method.name=er"]]
    with pytest.raises(ConfigError, match="seed= and its option are both given"):
        sweep("embedded", ["seed=3"], [], [1])
