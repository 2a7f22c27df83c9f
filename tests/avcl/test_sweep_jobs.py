"""A sweep goes on after failures and stops, repeats nothing that is done, and says what it would do."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

import avcl.sweep_jobs
from avcl.cli import main
from avcl.sweep import run_sweep
from avcl.sweep_jobs import run_jobs
from avcl.sweep_plan import Found, Planned, Sweep, load_sweep
from avcl_core.errors import RunError, Stopped
from avcl_core.running.lock import only_writer

from .sweep_runs import child, spawned, write_run

PLAN = """title: toy
configs: [ave/ave_avmoe_embedded]
variants: {avmoe: [], uniform: [model.router=uniform], frozen: [model.name=frozen]}
seeds: [0, 1]
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(PLAN)
    return load_sweep(tmp_path / "toy.yaml")


class Launcher:
    """Stands for the command of a run: ``how[variant, seed]`` says how its process behaves, and ``asked`` is what was launched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.how: dict[tuple[str, int], str] = {}
        self.asked: list[tuple[str, int, str]] = []
        monkeypatch.setattr(avcl.sweep_jobs, "run_jobs", functools.partial(run_jobs, command=self, start=spawned))
        self.reported: list[list[Path]] = []
        monkeypatch.setattr("avcl.report.page.render_comparison", self.report)

    def report(self, folders: list[Path], out: Path, plan: list) -> Path:
        self.reported.append(folders)
        return out

    def __call__(self, run: Planned, found: Found) -> list[str]:
        self.asked.append((run.variant, run.seed, found.state))
        return child(run, self.how.get((run.variant, run.seed), "done"), 40.0 + 10 * run.seed, found.folder)


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Launcher:
    return Launcher(monkeypatch)


def everything(sweep: Sweep, state: str = "to run") -> list[tuple[str, int, str]]:
    return [(run.variant, run.seed, state) for run in sweep.runs]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["avcl", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_failures_stop_nothing_and_only_they_are_tried_again(
    sweep: Sweep, launcher: Launcher, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher.how = {("avmoe", 1): "fail", ("uniform", 0): "die"}
    with pytest.raises(RunError, match="sweep toy: 2 of 6 runs failed; the same command tries them again"):
        run_sweep(sweep, 1)
    assert launcher.asked == everything(sweep)
    shown = capsys.readouterr()
    assert "failed: ave/ave_avmoe_embedded · avmoe · seed 1: loss is not finite at step 3 (exit code 1)" in shown.err
    assert "uniform · seed 0: it said nothing (ended by signal SIGKILL)" in shown.err
    table = (sweep.folder / "table.md").read_text()
    assert table in shown.out
    assert "4 of 6 runs done" in table
    assert "* ave/ave_avmoe_embedded · avmoe · seed 1: failed" in table
    assert "* ave/ave_avmoe_embedded · uniform · seed 0: to run" in table
    launcher.how, launcher.asked = {}, []
    run_sweep(sweep, 1)
    assert launcher.asked == [("avmoe", 1, "failed"), ("uniform", 0, "to run")]
    assert "6 of 6 runs done" in (sweep.folder / "table.md").read_text()
    assert [len(folders) for folders in launcher.reported] == [4, 6]
    launcher.asked = []
    run_sweep(sweep, 1)
    assert launcher.asked == [], "nothing is repeated"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_request_reaches_all_runs_and_the_sweep_goes_on_afterwards(
    sweep: Sweep, launcher: Launcher, number: signal.Signals
) -> None:
    launcher.how = {("avmoe", 1): "wait", ("uniform", 0): "wait"}
    lines: list[str] = []
    seen = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        if sum("ready" in text for text in lines) == 2 and not seen.is_set():
            seen.set()
            os.kill(os.getpid(), number)

    todo = [(run, Found("to run")) for run in sweep.todo]
    with pytest.raises(Stopped, match=f"stopped by {number.name}; the same command goes on"):
        run_jobs(todo, 2, say, launcher, spawned)
    assert Stopped.exit_code == 75
    assert launcher.asked == everything(sweep)[:3], "nothing was started after the request"
    found = sweep.find()
    assert [found[run].state for run in sweep.runs] == ["done", "stopped", "stopped", "to run", "to run", "to run"]
    launcher.how, launcher.asked = {}, []
    run_sweep(sweep, 2)
    assert launcher.asked == [("avmoe", 1, "stopped"), ("uniform", 0, "stopped"), *everything(sweep)[3:]]
    assert {found.state for found in sweep.find().values()} == {"done"}


def test_a_run_that_is_preempted_stops_the_sweep(sweep: Sweep, launcher: Launcher) -> None:
    launcher.how = {("avmoe", 0): "preempted", ("avmoe", 1): "wait"}
    with pytest.raises(Stopped, match="a signal to one of its runs"):
        run_jobs([(run, Found("to run")) for run in sweep.todo], 1, print, launcher, spawned)
    assert launcher.asked == everything(sweep)[:1]


def test_no_more_than_the_asked_number_of_runs_at_a_time(sweep: Sweep, launcher: Launcher) -> None:
    now, most = 0, 0

    def say(line: str) -> None:
        nonlocal now, most
        now += line.endswith(": start")
        now -= ": done in" in line
        most = max(most, now)

    assert run_jobs([(run, Found("to run")) for run in sweep.todo], 3, say, launcher, spawned) == []
    assert most == 3
    assert len(launcher.asked) == 6


def test_two_sweeps_of_one_plan_do_not_run_together(sweep: Sweep, launcher: Launcher) -> None:
    sweep.folder.mkdir(parents=True)
    with only_writer(sweep.folder), pytest.raises(RunError, match=r"runs/toy: another process"):
        run_sweep(sweep, 1)
    assert launcher.asked == []


def test_the_command_stops_with_75_fails_with_1_and_ends_with_0(
    sweep: Sweep, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher.how = {("uniform", 1): "preempted"}
    assert call(monkeypatch, "sweep", "toy.yaml", "--jobs", "1") == 75
    assert "the same command goes on" in capsys.readouterr().err
    launcher.how = {("frozen", 0): "fail"}
    assert call(monkeypatch, "sweep", "toy.yaml") == 1
    assert "error: sweep toy: 1 of 6 runs failed" in capsys.readouterr().err
    launcher.how, launcher.asked = {}, []
    assert call(monkeypatch, "sweep", "toy.yaml", "workers=1") == 0
    assert launcher.asked == [("frozen", 0, "failed")]


def test_a_dry_run_lists_and_writes_nothing(
    sweep: Sweep,
    launcher: Launcher,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, "sweep", "toy.yaml", "--dry-run", "--seed", "1") == 0
    assert "3 runs: 3 to run" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.yaml"]
    folder = write_run(sweep.runs[0])
    write_run(sweep.runs[3], status="running")
    assert call(monkeypatch, "sweep", "toy.yaml", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "6 runs: 1 done, 4 to run, 1 stopped" in shown
    rows = [line.split() for line in shown.splitlines() if line.startswith("ave/")]
    assert [(row[1], row[2]) for row in rows] == [(run.variant, str(run.seed)) for run in sweep.runs]
    assert rows[0][3:] == ["done", str(folder)]
    assert rows[3][3] == "stopped"
    assert launcher.asked == []
    assert not sweep.folder.exists()


def test_a_table_at_any_time(
    sweep: Sweep, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "sweep", "toy.yaml", "--table") == 0
    assert "0 of 6 runs done" in capsys.readouterr().out
    write_run(sweep.runs[0], 61.5)
    assert call(monkeypatch, "sweep", "toy.yaml", "--table") == 0
    assert "| avmoe | 61.50 | 1 |" in capsys.readouterr().out
    assert json.loads((sweep.folder / "table.json").read_text())["runs"][0]["state"] == "done"
    assert launcher.asked == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toy.yaml", "--method", "er"], "--method is for one configuration"),
        (["embedded", "--dry-run"], "are for a plan; this is one configuration"),
        (["avmoe_ablation"], "did you mean 'sweeps/avmoe_ablations'?"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    sweep: Sweep,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert call(monkeypatch, "sweep", *arguments) == 2
    assert message in capsys.readouterr().err
