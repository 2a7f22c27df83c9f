"""Runs of other data or weights are not paired with new ones; runs of other code are, and the table says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avcl.sweep import overview, show_table
from avcl.sweep_jobs import command_of
from avcl.sweep_plan import Planned, Sweep, load_sweep
from avcl.sweep_table import write_tables

from .sweep_runs import write_run

PLAN = """title: toy
configs: [ave/ave_avmoe_embedded, avs/avs_s4_avmoe_embedded]
variants: {avmoe: [], uniform: [model.router=uniform, model.router_noise=0, model.balance_weight=0]}
seeds: [0, 1]
"""
DATA, WEIGHTS = "data of ave", "weights of the audio tower"


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(PLAN)
    return load_sweep(tmp_path / "toy.yaml")


def write(run: Planned, name: str, status: str = "done", code: str = "c" * 64, **changed: str) -> Path:
    digests = {"configuration": run.options.digest, "stream": "s", DATA: "d", WEIGHTS: "w"}
    digests |= {{"data": DATA, "weights": WEIGHTS, "stream": "stream"}[key]: value for key, value in changed.items()}
    return write_run(run, status=status, name=name, record={"digests": digests, "code": code})


def test_a_done_run_of_other_data_is_stale_and_starts_again(sweep: Sweep) -> None:
    old = [write(run, f"2026010{n}") for n, run in enumerate(sweep.runs[:3])]
    found = sweep.find()
    assert [found[run].folder for run in sweep.runs[:3]] == old, "all agree"
    new = write(sweep.runs[3], "20260109", data="changed", weights="other")
    found = sweep.find()
    assert [(found[run].state, found[run].folder) for run in sweep.runs[:4]] == [("to run", None)] * 3 + [("done", new)]
    assert found[sweep.runs[0]].differs == (DATA, WEIGHTS)
    assert command_of(sweep.runs[0], found[sweep.runs[0]])[0] == "run", "a stale run cannot go on"
    assert overview(sweep, found)[0]["state"] == f"stale ({DATA}, {WEIGHTS} changed)"
    text = write_tables(sweep, found)
    assert "1 of 8 runs done" in text
    assert f"seed 0: stale ({DATA}, {WEIGHTS} changed)" in text
    again = write(sweep.runs[0], "20260110", data="changed", weights="other")
    assert sweep.find()[sweep.runs[0]].folder == again
    write(sweep.runs[1], "20260111", stream="t", data="changed", weights="other")
    assert sweep.find()[sweep.runs[0]].differs == ("stream",), "the newest of its runs is the one that is shown"


def test_what_is_newer_than_all_done_runs_is_not_stale(sweep: Sweep) -> None:
    write(sweep.runs[0], "20260105")
    late = write(sweep.runs[1], "20260106", status="stopped", data="changed")
    assert sweep.find()[sweep.runs[1]].folder == late, (
        "nothing that is done says that its data are not the current ones"
    )
    early = write(sweep.runs[2], "20260104", status="stopped", data="changed")
    assert sweep.find()[sweep.runs[2]].differs == (DATA,), f"{early} would be refused when it is resumed"


def test_another_configuration_or_another_tower_is_no_change(sweep: Sweep) -> None:
    first, other = sweep.runs[0], next(run for run in sweep.runs if run.config.startswith("avs"))
    folder = write(first, "20260101")
    write(other, "20260102", stream="of avs", weights="other")
    assert sweep.find()[first].folder == folder
    Path("toy.yaml").write_text(PLAN.replace("=0]}", "=0], tower: [towers.audio.tile=2]}"))
    towers = load_sweep(Path("toy.yaml"))
    tiled = next(run for run in towers.runs if run.variant == "tower")
    write(tiled, "20260103", weights="of the other tower")
    found = towers.find()
    assert (found[towers.runs[0]].folder, found[tiled].state) == (folder, "done")


def test_the_table_says_which_runs_are_of_other_code(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    write(sweep.runs[0], "20260101", code="a" * 64)
    write(sweep.runs[1], "20260102", code="a" * 64)
    assert "Code:" not in write_tables(sweep, sweep.find())
    write(sweep.runs[2], "20260103", code="b" * 64)
    older = write(sweep.runs[3], "20260104")
    record = json.loads((older / "run.json").read_text())
    del record["code"]
    (older / "run.json").write_text(json.dumps(record))
    show_table(sweep)
    said = capsys.readouterr().out
    assert f"not recorded (1 of them), {'a' * 12} (2 of them), {'b' * 12} (1 of them)." in said
    assert "4 of 8 runs done" in said, "not a refusal"
