"""Faults of the machine: a full disk leaves the last commit whole, and the run says what happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avcl_core.errors import RunError
from avcl_core.running.folder import RunFolder
from avcl_core.running.launch import _status
from avcl_core.training import checkpoint
from avcl_core.training.checkpoint import Checkpoint, CheckpointStore


def state(value: float) -> Checkpoint:
    tensors = {"w": torch.full((3,), value), "old": torch.zeros(3)}
    return Checkpoint(tensors, {"w": "shared", "old": "task:old"}, {"memory": {}}, {}, {}, {"step": value})


@pytest.mark.parametrize(
    ("where", "write"),
    [(Path, "write_bytes"), (torch, "save"), (Path, "write_text"), (checkpoint, "sync"), (checkpoint, "replace_text")],
)
def test_full_disk_during_a_commit_leaves_the_last_one(
    where: object, write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.commit(state(1.0))

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(where, write, full)
    with pytest.raises(OSError, match="No space left"):
        store.commit(state(2.0))
    monkeypatch.undo()
    assert store.load().state == {"step": 1.0}
    store.commit(state(3.0))
    assert store.load().state == {"step": 3.0}
    assert not list(tmp_path.glob(".staging-*"))


def test_a_failed_run_keeps_its_traceback_and_status(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("run.json", {"status": "new"})
    with pytest.raises(RunError, match=r"OSError: .*No space left"), _status(folder):
        raise OSError(28, "No space left on device")
    assert folder.read_json("run.json")["status"] == "failed"
    assert "Traceback" in (tmp_path / "events.jsonl").read_text()
