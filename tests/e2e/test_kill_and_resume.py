"""A run that is killed at any write, or asked to stop, ends in the same bytes as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from avcl_core.errors import IntegrityError
from avcl_core.running import launch
from avcl_core.training import checkpoint

from .conftest import Child, content, newest, run_folders, start


def syncs(run: Path) -> int:
    """At least how many files a run like ``run`` makes durable: eight for a commit that links all tensors, more for others."""
    return 8 * int((run / "checkpoints" / "LATEST").read_text().split("-")[0])


def killed(last: int, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start a run in a process that dies at its write number ``last``; return its folder."""
    before = set(run_folders(overrides))
    plain, seen = checkpoint.sync, 0

    def deadly(path: Path) -> None:
        nonlocal seen
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(path)

    monkeypatch.setattr(checkpoint, "sync", deadly)
    child = Child(lambda: start(overrides))
    monkeypatch.setattr(checkpoint, "sync", plain)
    assert child.wait() == -signal.SIGKILL
    return newest(overrides, before)


@pytest.mark.parametrize("moment", [0.02, 0.31, 0.5, 0.77, 0.96])
def test_kill_at_a_write_then_resume_equals_the_straight_run(
    moment: float, straight: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed(int(moment * syncs(straight)) + 1, overrides, monkeypatch)
    resumed = Child(lambda: launch.resume(run, ["workers=2"] if moment == 0.5 else [], launch.Console()))
    assert resumed.wait() == 0
    assert content(run) == content(straight)
    assert json.loads((run / "run.json").read_text())["status"] == "done"


def test_a_stream_of_all_four_tasks_resumes_to_the_same_bytes(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it learns segmentation (batch-norm statistics), and again while it learns to answer questions."""
    four = [text for text in overrides if not text.startswith(("stream.tasks", "training.epochs", "training.check"))]
    four += ["training.epochs=1", "training.tasks.avqa.epochs=1", "training.checkpoint_every=4"]
    plain, writes = checkpoint.sync, []
    monkeypatch.setattr(checkpoint, "sync", lambda path: writes.append(path) or plain(path))
    straight = start(four)
    monkeypatch.setattr(checkpoint, "sync", plain)
    for moment, session in ((0.55, 2), (0.9, 3)):
        run = killed(int(moment * len(writes)), four, monkeypatch)
        latest = (run / "checkpoints" / "LATEST").read_text().strip()
        state = json.loads((run / "checkpoints" / latest / "state.json").read_text())
        assert state["position"]["session"] == session
        launch.resume(run, [], launch.Console())
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
    launch.resume(run, [], launch.Console())
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
