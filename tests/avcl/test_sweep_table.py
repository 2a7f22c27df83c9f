"""The numbers of a sweep's table by hand; comparisons know labels and settings."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from avcl.report import compare
from avcl.sweep import show_table
from avcl.sweep_plan import Sweep, load_sweep
from avcl.sweep_table import write_tables
from avcl_core.errors import ConfigError

from .sweep_runs import write_run

PLAN = """title: A | B
configs: [avs/avs_s4_avmoe_embedded, avs/avs_ms3_avmoe_embedded]
variants: {avmoe: [], uniform: [model.router=uniform, model.router_noise=0, model.balance_weight=0]}
seeds: [0, 1, 2]
"""
SCORES = {"avmoe": (60.0, 64.0, 71.0), "uniform": (59.0, 66.0, 65.0)}


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(PLAN)
    return load_sweep(tmp_path / "toy.yaml")


def s4(sweep: Sweep, variant: str) -> list:
    return [run for run in sweep.runs if run.variant == variant and "s4" in run.config]


def ms3(sweep: Sweep) -> list:
    return [run for run in sweep.runs if "ms3" in run.config]


def test_means_deviations_and_paired_differences(sweep: Sweep) -> None:
    for variant, scores in SCORES.items():
        for run, score in zip(s4(sweep, variant), scores, strict=True):
            write_run(run, score, controls={"always": 30.0 + run.seed, "never": 20.0, "shuffled": score - 27})
    write_run(ms3(sweep)[0], 0.5, ideal=1.0, controls={"low": 0.25})
    text = write_tables(sweep, sweep.find())
    mean, std = statistics.mean, statistics.stdev
    pairs = [b - a for a, b in zip(*SCORES.values(), strict=True)]
    first = f"{mean(SCORES['avmoe']):.2f} ± {std(SCORES['avmoe']):.2f} | 3 | – | – | 38.00 shuffled |"
    second = f"{mean(SCORES['uniform']):.2f} ± {std(SCORES['uniform']):.2f} | 3 |"
    assert f"| avmoe | {first}" in text
    assert f"| uniform | {second} −{-mean(pairs):.2f} ± {std(pairs):.2f} | 3 | 36.33 shuffled |" in text
    assert "| avmoe | 0.5000 | 1 | – | – | 0.2500 low |" in text
    assert "| uniform | – | 0 | – | 0 | – |" in text
    assert text.index("s4_avmoe_embedded: avs") < text.index("ms3_avmoe_embedded: avs")
    assert "7 of 12 runs done" in text
    assert text.count(": to run") == 5
    assert (sweep.folder / "table.md").read_text() == text
    record = json.loads((sweep.folder / "table.json").read_text())
    row = record["tables"][0]["rows"][1]
    assert row["difference"]["by_seed"] == {"0": -1.0, "1": 2.0, "2": -6.0}
    assert row["difference"]["std"] == pytest.approx(std(pairs))
    assert row["score"]["by_seed"] == {"0": 59.0, "1": 66.0, "2": 65.0}
    assert sum(run["folder"] is not None for run in record["runs"]) == 7


def test_differences_are_of_common_seeds_alone(sweep: Sweep) -> None:
    write_run(s4(sweep, "avmoe")[0], 50.0)
    write_run(s4(sweep, "avmoe")[2], 90.0)
    write_run(s4(sweep, "uniform")[1], 10.0)
    write_run(s4(sweep, "uniform")[2], 95.0)
    write_run(s4(sweep, "uniform")[0], 99.0, status="stopped")
    text = write_tables(sweep, sweep.find())
    assert "| uniform | 52.50 ± 60.10 | 2 | +5.00 | 1 |" in text


def test_a_shared_run_is_named(sweep: Sweep) -> None:
    Path("toy.yaml").write_text(PLAN.replace("{avmoe: []", "{avmoe: [], same: [model.skip=2]"))
    sweep = load_sweep(Path("toy.yaml"))
    write_run(s4(sweep, "avmoe")[0], 50.0)
    assert "| same (= avmoe) | 50.00 | 1 | +0.00 | 1 |" in write_tables(sweep, sweep.find())


def test_comparisons_group_by_label_and_part_settings(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write_run(run, 40.0 + run.seed) for run in sweep.runs]
    found = compare(folders)
    assert [stream.name for stream in found.streams] == ["avs (avs ms3)", "avs (avs s4)"]
    for stream in found.streams:
        assert [(group.title, len(group.runs)) for group in stream.groups] == [("avmoe", 3), ("uniform", 3)]
        assert stream.notes == ()
    assert compare(folders[:6]).streams[0].name == "avs", "one setting needs no name"
    show_table(sweep)
    page = (sweep.folder / "report.html").read_text()
    assert "<th>Variant</th>" in page
    assert "<th>uniform</th><td>finetune</td><td>avmoe</td>" in page
    again = write_run(sweep.runs[0], name="again")
    with pytest.raises(ConfigError, match="seed 0 of finetune · avmoe · avmoe in stream avs is there twice"):
        compare([*folders[:6], again])


def test_one_seed_with_two_configurations_becomes_two_rows(sweep: Sweep) -> None:
    Path("toy.yaml").write_text(PLAN.replace("seeds", "overrides: [training.epochs=1]\nseeds"))
    other = load_sweep(Path("toy.yaml"))
    folders = [write_run(sweep.runs[n], 40.0 + n) for n in (0, 1)]
    folders += [write_run(other.runs[n], 50.0 + n, name=f"short{n}") for n in (0, 1)]
    (stream,) = compare(folders).streams
    assert [(group.title, len(group.runs)) for group in stream.groups] == [
        ("avmoe, training.epochs=1", 2),
        ("avmoe, training.epochs=6", 2),
    ]
