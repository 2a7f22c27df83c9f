"""Every shipped method runs the stream to its end, and a task's own command line trains and tests it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from avcl_core.evaluation.record import RunRecord

from .conftest import start


def without_method(overrides: list[str]) -> list[str]:
    return [text for text in overrides if not text.startswith("method.")]


@pytest.mark.parametrize(
    ("method", "cells"),
    [
        ("finetune", {("ave", "ave"), ("avvp", "ave"), ("avvp", "avvp")}),
        ("joint", {("avvp", "ave"), ("avvp", "avvp")}),
        ("single", {("ave", "ave"), ("avvp", "avvp")}),
    ],
)
def test_method_fills_its_cells_of_the_matrix(method: str, cells: set, overrides: list[str]) -> None:
    run = start([*without_method(overrides), f"method.name={method}"])
    matrix = RunRecord.load(run).matrix
    assert {(row, column) for row in matrix.rows for column in matrix.columns if matrix.cell(row, column)} == cells
    assert (run / "results" / "table.md").is_file()


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
    for arguments in (["train", *without_method(overrides)], ["test", runs]):
        monkeypatch.setattr(sys, "argv", ["ave", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "test acc" in shown
    assert "always background" in shown
    assert "equal to what the run stored" in shown
