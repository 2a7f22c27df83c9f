"""`avcl bench` measures every task and phase of a configuration, and changes nothing but caches; no number is judged here."""

from __future__ import annotations

import json
import sys

import pytest

from avcl.bench import PHASES, bench
from avcl_core.config.load import read
from avcl_core.config.presets import find_config
from avcl_core.running.launch import Console

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
        assert set(row) == KEYS
        assert row["batches"] == 2
        assert row["samples_per_second"] > 0
        assert row["peak_memory_bytes"] > 2**20
        assert row["seconds_per_batch"]["min"] <= row["seconds_per_batch"]["median"] <= row["seconds_per_batch"]["max"]
    # One step to warm up and two that count; the second task replays samples of the first.
    assert replayed == [("ave", False)] * 3 + [("avvp", True)] * 3
    assert set(run_folders(overrides)) == before
    json.dumps(found)


def test_the_command_prints_json(overrides: list[str], monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    from avcl.cli import main

    monkeypatch.setattr(sys, "argv", ["avcl", "bench", *overrides, "stream.tasks=[ave]", "--steps", "1", "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    assert {row["task"] for row in json.loads(capsys.readouterr().out)["tasks"]} == {"ave"}
