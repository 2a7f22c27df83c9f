"""A run that is killed at any write, or asked to stop, ends in the same bytes as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from avcl_core.errors import IntegrityError
from avcl_core.running import launch
from avcl_core.training import checkpoint

from .conftest import Child, content, newest, run_folders, start, without


def session(run: Path) -> int:
    """The number of the session in which the latest commit was made."""
    latest = (run / "checkpoints" / "LATEST").read_text().strip()
    return json.loads((run / "checkpoints" / latest / "state.json").read_text())["position"]["session"]


def syncs(run: Path) -> int:
    """At least how many files a run like ``run`` makes durable: eight for a commit that links all tensors, more for others."""
    return 8 * int((run / "checkpoints" / "LATEST").read_text().split("-")[0])


def killed(last: int, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do ``work`` in a process that dies at its write number ``last``."""
    plain, seen = checkpoint.sync, 0

    def deadly(path: Path) -> None:
        nonlocal seen
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(path)

    monkeypatch.setattr(checkpoint, "sync", deadly)
    child = Child(work)
    monkeypatch.setattr(checkpoint, "sync", plain)
    assert child.wait() == -signal.SIGKILL


def resume(run: Path, *overrides: str) -> None:
    launch.resume(run, overrides, launch.Console())


def test_killed_at_a_write_again_and_again_then_resumed_equals_the_straight_run(
    straight: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, writes = set(run_folders(overrides)), syncs(straight)
    moments = (0.02, 0.31, 0.5, 0.77, 0.96)  # of all writes of a run
    killed(int(moments[0] * writes) + 1, lambda: start(overrides), monkeypatch)
    run = newest(overrides, before)
    for one, two in pairwise(moments):
        killed(int((two - one) * writes), lambda: resume(run), monkeypatch)
    assert Child(lambda: resume(run)).wait() == 0
    assert content(run) == content(straight)
    assert json.loads((run / "run.json").read_text())["status"] == "done"


def test_a_stream_of_all_four_tasks_resumes_to_the_same_bytes(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it learns segmentation (batch-norm statistics), and again while it learns to answer questions."""
    four = without(overrides, "stream.tasks", "training.epochs", "training.check")
    four += ["training.epochs=1", "training.tasks.avqa.epochs=1", "training.checkpoint_every=4"]
    plain, writes = checkpoint.sync, []
    monkeypatch.setattr(checkpoint, "sync", lambda path: writes.append(path) or plain(path))
    straight = start(four)
    monkeypatch.setattr(checkpoint, "sync", plain)
    before = set(run_folders(overrides))
    killed(int(0.55 * len(writes)), lambda: start(four), monkeypatch)
    run = newest(overrides, before)
    assert session(run) == 2
    killed(int(0.35 * len(writes)), lambda: resume(run), monkeypatch)
    assert session(run) == 3
    resume(run)
    assert content(run) == content(straight)
    shown = {path.stem for path in (run / "results" / "examples").glob("*.jsonl")}
    assert shown == {"ave", "avvp", "avs", "avqa"}
    page = (run / "report.html").read_text()
    assert "Question" in page
    assert "data:image/jpeg;base64" in page


def test_sigterm_commits_exits_75_and_resumes(straight: Path, overrides: list[str]) -> None:
    before = set(run_folders(overrides))
    child = Child(lambda: start(overrides))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        made = [path for path in run_folders(overrides) if path not in before]
        if made and (made[0] / "metrics.jsonl").exists() and (made[0] / "metrics.jsonl").stat().st_size:
            break
        time.sleep(0.02)
    child.stop(signal.SIGTERM)
    assert child.wait() == 75
    run = newest(overrides, before)
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert Child(lambda: resume(run, "workers=2")).wait() == 0
    assert content(run) == content(straight)


def test_resume_refuses_another_configuration_and_names_it(straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for path in straight.rglob("*"):
        target = run / path.relative_to(straight)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(path.read_bytes())
    text = (run / "config.yaml").read_text()
    assert "bottleneck: 16" in text
    (run / "config.yaml").write_text(text.replace("bottleneck: 16", "bottleneck: 8"))
    with pytest.raises(IntegrityError, match="configuration changed since the commit"):
        launch.resume(run, [], launch.Console())


def test_evaluating_a_finished_run_gives_what_it_stored(straight: Path) -> None:
    found = launch.evaluate(straight, None, launch.Console())
    assert set(found) == {"ave", "avvp"}
    for tested in found.values():
        assert tested.stored is not None
        assert tested.agrees
