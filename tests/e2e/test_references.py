"""Every shipped method runs the stream; `avcl run` with references makes three such runs, killed and resumed to the same bytes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from avcl.cli import main
from avcl.report import render
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.summary import summarise

from .conftest import Child, run_folders, start, without

NAMES = ("single", "joint")
SAME = ("metrics.jsonl", "results.jsonl", "results/matrix.csv", "ownership.json")


@pytest.fixture(scope="module")
def small(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One epoch of finetuning, in a folder of its own."""
    kept = without(overrides, "method.", "runs=", "training.epochs")
    return [*kept, "method.name=finetune", "training.epochs=1", f"runs={tmp_path_factory.mktemp('referenced')}"]


@pytest.fixture(scope="module")
def alone(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return an ordinary run of a method, made when first asked for."""
    folder, given = tmp_path_factory.mktemp("alone"), without(small, "runs=", "method.")
    return cache(lambda method: start([*given, f"method.name={method}", f"runs={folder / method}"]))


@pytest.mark.parametrize(
    ("method", "cells"),
    [
        ("finetune", {("ave", "ave"), ("avvp", "ave"), ("avvp", "avvp")}),
        ("joint", {("avvp", "ave"), ("avvp", "avvp")}),
        ("single", {("ave", "ave"), ("avvp", "avvp")}),
    ],
)
def test_method_fills_its_cells_of_the_matrix(method: str, cells: set, alone: Callable[[str], Path]) -> None:
    run = alone(method)
    matrix = RunRecord.load(run).matrix
    assert {(row, column) for row in matrix.rows for column in matrix.columns if matrix.cell(row, column)} == cells
    assert (run / "results" / "table.md").is_file()


def avcl(*arguments: str) -> int:
    """The command line in this process, so that imports are paid once; its workers are processes all the same."""
    sys.argv = ["avcl", *arguments]
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def command(*arguments: str) -> Child:
    """The command line in a process and process group of its own."""

    def work() -> None:
        os.setsid()
        os._exit(avcl(*arguments))

    return Child(work)


def of(overrides: list[str], method: str) -> Path:
    (found,) = (run for run in run_folders(overrides) if run.parent.name == method)
    return found


def committed(overrides: list[str]) -> set[Path]:
    return {path for run in run_folders(overrides) for path in run.glob("checkpoints/*/manifest.json")}


def wait_for_a_commit(overrides: list[str], since: set[Path], child: Child) -> None:
    """Return once a run has committed something new; the command must not end before."""
    while not committed(overrides) - since:
        assert os.waitpid(child.pid, os.WNOHANG) == (0, 0), "ended before its first commit"
        time.sleep(0.02)


def test_killed_and_stopped_then_resumed_with_everything_done_once(
    small: list[str], alone: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    child = command("run", "embedded", *small, "references=[single,joint]")
    wait_for_a_commit(small, set(), child)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    run = of(small, "finetune")
    assert json.loads((run / "run.json").read_text())["references"] == {n: f"../../{n}/{run.name}" for n in NAMES}

    child = command("resume", str(run))
    wait_for_a_commit(small, committed(small), child)
    child.stop(signal.SIGTERM)
    assert child.wait() == 75
    assert f"continue with: avcl resume {run}" in capfd.readouterr().err

    assert avcl("resume", str(run), "workers=0") == 0
    said = capfd.readouterr().out
    assert "− single" in said
    folders = {name: of(small, name) for name in NAMES}
    for folder in (run, *folders.values()):
        assert json.loads((folder / "run.json").read_text())["status"] == "done"
    before = {path: path.stat().st_mtime_ns for folder in folders.values() for path in folder.glob("*.jsonl")}
    assert avcl("resume", str(run)) == 0
    assert "3 runs, 3 done" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is repeated"

    for method, folder in {"finetune": run, **folders}.items():
        for name in SAME:
            assert (folder / name).read_bytes() == (alone(method) / name).read_bytes(), f"{method}: {name}"

    summary = summarise(RunRecord.load(run))
    for name, folder in folders.items():
        finals = [test.final.value for test in summarise(RunRecord.load(folder)).tests]
        assert [gap.reference.value for gap in summary.references[name].gaps] == finals
    (run / "report.html").unlink()
    assert "Against the references" in render([run]).read_text()
