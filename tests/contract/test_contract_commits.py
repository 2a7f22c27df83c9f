"""Commits: drift and damage are refused by name, and a process killed anywhere in a commit leaves a loadable state."""

import os
import signal
import warnings
from dataclasses import replace

import pytest
import torch
from toys.users import USERS

from avcl_core.errors import IntegrityError, Stopped
from avcl_core.ownership import Owners
from avcl_core.testing.toy_run import Countdown
from avcl_core.training import checkpoint as module
from avcl_core.training.checkpoint import Checkpoint, CheckpointStore

FILES = [
    "trained/shared.safetensors",
    "trained/task-a.safetensors",
    "method.safetensors",
    "selected/task-a.safetensors",
    "optimizer.pt",
    "state.json",
    "manifest.json",
]


def test_drift_of_a_digest_is_refused_and_named(folder):
    toy = USERS["joint"]
    with pytest.raises(Stopped):
        toy.trainer(folder, Countdown(3), digests={"configuration": "a" * 64, "data of classes": "b" * 64}).run()
    for changed, message in (
        (
            {"configuration": "a" * 64, "data of classes": "c" * 64},
            r"data of classes changed since the commit \(was bbb.*is ccc",
        ),
        ({"configuration": "a" * 64}, "data of classes changed since the commit .*is none"),
    ):
        with pytest.raises(IntegrityError, match=message):
            toy.trainer(folder, digests=changed).resume()
    toy.trainer(folder, digests={"configuration": "a" * 64, "data of classes": "b" * 64}).resume()


def test_a_model_with_other_tensors_is_refused_and_named(folder):
    toy = USERS["joint"]
    with pytest.raises(Stopped):
        toy.trainer(folder, Countdown(3)).run()
    wider = replace(toy, model_options=toy.model.Config(bottleneck=3))
    with pytest.raises(
        IntegrityError,
        match=r"checkpoints/0\d+/trained: owned tensor parts\.audio_0_mlp_add\.down\.bias: shape \(16,\), expected \(3,\)",
    ):
        wider.trainer(folder).resume()


def example(value, **kept):
    """Two owners whose tensors have this value, and one of what is ``kept`` from commit to commit."""
    tensors = {"weight": torch.full((50, 20), float(value)), "bias": torch.full((3,), float(value))}
    owned = {**tensors, **{name: torch.full((9,), float(of)) for name, of in kept.items()}}
    owners = {"weight": "shared", "bias": "task:a", **dict.fromkeys(kept, "task:kept")}
    memory = {"memory": [{"key": "k", "stored": tensors}]}
    selected = {name: -1 - tensor for name, tensor in owned.items()}
    return Checkpoint(owned, owners, memory, {"main": {"weight": tensors}}, selected, {"value": value})


DAMAGES = [(name, damage) for name in FILES for damage in ("truncated", "flipped", "missing", "empty")]
DAMAGES.remove(("manifest.json", "flipped"))  # a manifest does not vouch for itself, only for the other files


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_file_is_refused_and_named(name, damage, folder):
    store = CheckpointStore(folder / "checkpoints")
    store.commit(example(1))
    tag = store.commit(example(2))
    path = store.folder / tag / name
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 0x41]) + content[middle + 1 :])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(IntegrityError, match=name):
        store.load()
    assert store.load("000001").state == {"value": 1}


def test_a_manifest_that_forgets_a_file_is_refused(folder):
    store = CheckpointStore(folder)
    tag = store.commit(example(1))
    path = folder / tag / "manifest.json"
    path.write_text(path.read_text().replace('"optimizer.pt"', '"other.pt"'))
    with pytest.raises(IntegrityError, match=r"manifest\.json: field files lacks \['optimizer\.pt'\]"):
        store.load()


class Killer:
    """Kills this process at the n-th change of the disk, before it happens."""

    def __init__(self, at):
        self.at, self.count = at, 0

    def wrap(self, function):
        def call(*arguments, **named):
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
            return function(*arguments, **named)

        return call


def arm(killer, patch):
    """Count every operation of a commit that changes the disk."""
    from pathlib import Path

    for name in ("rename", "replace", "write_text", "write_bytes", "mkdir"):
        patch.setattr(Path, name, killer.wrap(getattr(Path, name)))
    patch.setattr(module, "sync", killer.wrap(module.sync))
    patch.setattr(module.torch, "save", killer.wrap(module.torch.save))
    patch.setattr(module.shutil, "rmtree", killer.wrap(module.shutil.rmtree))
    patch.setattr(os, "unlink", killer.wrap(os.unlink))
    patch.setattr(os, "link", killer.wrap(os.link))


def test_a_kill_anywhere_in_a_commit_leaves_a_loadable_state(folder, monkeypatch):
    def begin(place):
        store = CheckpointStore(place)
        for value in (1, 2, 3):
            store.commit(example(value, one=0), "after-x" if value == 2 else "")
        return store

    with monkeypatch.context() as patch:
        counter = Killer(-1)
        store = begin(folder / "count")
        arm(counter, patch)
        store.commit(example(4, one=0))
    assert counter.count > 30
    assert len({(path / "trained/task-kept.safetensors").stat().st_ino for path in store.folder.glob("0*")}) == 1
    seen = set()
    for at in range(counter.count):
        store = begin(folder / f"at{at}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # forking a process with threads: the child touches none of them
            child = os.fork()
        if child == 0:
            with pytest.MonkeyPatch.context() as patch:
                arm(Killer(at), patch)
                store.commit(example(4, one=0))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), at
        loaded = CheckpointStore(store.folder).load()
        value = loaded.state["value"]
        assert value in (3, 4)
        assert loaded.trained["weight"][0, 0] == value
        assert all(store.load(tag).trained["one"].tolist() == [0.0] * 9 for tag in store.tags())
        seen.add(value)
        assert CheckpointStore(store.folder).commit(example(5, one=0)) == store.latest()
        assert store.load().state == {"value": 5}
        assert store.load().trained["one"].tolist() == [0.0] * 9
        assert store.load("000002-after-x").state == {"value": 2}
    assert seen == {3, 4}


def test_a_past_task_comes_back_exactly_and_its_file_is_written_once(folder):
    """Prompts per experience, a head per task: what no later session trains is one file in all commits after it."""
    trainer = USERS["prompts"].trainer(folder)
    trainer.run()
    store, latest = trainer.store, trainer.store.load()
    commits = {tag.partition("-after-")[2]: tag for tag in store.tags() if "-after-" in tag}
    assert list(commits) == ["classes0", "labels0", "classes1"]
    for name, own in (("classes0", "task:classes0"), ("labels0", "task:labels0"), ("labels0", "head:labels")):
        then = store.trained(commits[name], (own,))[own]
        assert then
        assert all(torch.equal(tensor, latest.trained[key]) for key, tensor in then.items())
        later = [store.folder / commits[row] for row in list(commits)[list(commits).index(name) :]]
        file = f"trained/{own.replace(':', '-')}.safetensors"
        assert len({(path / file).stat().st_ino for path in (*later, store.folder / store.latest())}) == 1
    shared = [store.trained(tag, ("shared",))["shared"] for tag in commits.values()]
    assert any(not torch.equal(tensor, shared[-1][key]) for key, tensor in shared[0].items())
    again = USERS["prompts"].trainer(folder)
    again.restore(commits["classes0"])
    old = store.load(commits["classes0"]).trained
    assert all(torch.equal(row.tensor, old[name]) for name, row in Owners(again.method.model).rows.items())


def test_a_killed_run_resumes_from_its_last_commit(folder):
    """A run that dies without a commit of its own (here: an error in the middle of an epoch) continues from the last one."""
    from avcl_core.testing.toy_run import differences, run_straight

    toy = USERS["er"]
    straight, _ = run_straight(toy, folder / "straight")

    class Dies(toy.method):
        left = 4  # the third step is on record and not committed

        def after_backward(self, update):
            Dies.left -= 1
            if Dies.left == 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(toy, method=Dies).trainer(folder / "killed").run()
    trainer = toy.trainer(folder / "killed")
    trainer.resume()
    trainer.run()
    assert differences(straight, trainer, folder / "straight", folder / "killed") == []
