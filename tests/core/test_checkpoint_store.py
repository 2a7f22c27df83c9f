"""Checkpoints: exact contents, a file per owner that is written once, tags that last, states that JSON can hold."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from avcl_core.errors import IntegrityError
from avcl_core.training.checkpoint import Checkpoint, CheckpointStore
from avcl_core.training.owned_files import owner_file
from avcl_core.training.packing import pack, unpack

OWNERS = {"a": "shared", "n": "shared", "flag": "head:x"}


def example(value=1.0, **method):
    tensors = {"a": torch.full((2, 2), value), "n": torch.tensor(3), "flag": torch.tensor([True])}
    state = {"main": {"a": {"step": torch.tensor(value), "exp_avg": tensors["a"]}}}
    return Checkpoint(tensors, OWNERS, method, state, {}, {"x": value})


def owned(owners, selected=(), size=50):
    """A checkpoint with one tensor per owner, whose value is given; ``selected``: owners of the best epoch's tensors."""
    tensors = {owner: torch.full((size,), float(value)) for owner, value in owners.items()}
    best = {owner: tensors[owner] for owner in selected}
    return Checkpoint(tensors, {owner: owner for owner in owners}, {}, {}, best, {"of": dict(owners)})


def inode(store, tag, name):
    return (store.folder / tag / name).stat().st_ino


def test_a_commit_comes_back_as_it_was(tmp_path):
    store = CheckpointStore(tmp_path)
    saved = example(memory=[{"key": "k", "stored": {"z": torch.rand(3, 2).T}}], count=3, none=None, name="x", yes=True)
    store.commit(saved)
    found = store.load()
    assert found.trained.keys() == saved.trained.keys()
    assert all(torch.equal(value, found.trained[name]) for name, value in saved.trained.items())
    assert found.trained["flag"].dtype == torch.bool
    assert found.owners == OWNERS
    assert torch.equal(found.method["memory"][0]["stored"]["z"], saved.method["memory"][0]["stored"]["z"])
    assert {n: found.method[n] for n in ("count", "none", "name", "yes")} == {
        "count": 3,
        "none": None,
        "name": "x",
        "yes": True,
    }
    assert torch.equal(found.optimizer["main"]["a"]["step"], torch.tensor(1.0))
    assert (found.selected, found.state) == ({}, {"x": 1.0})


def test_each_owner_has_a_file_that_names_it(tmp_path):
    store = CheckpointStore(tmp_path)
    tag = store.commit(owned({"shared": 0, "task:ave": 1, "head:ave": 2}, selected=("task:ave",)))
    files = json.loads((tmp_path / tag / "manifest.json").read_text())["files"]
    expected = {
        "trained/shared.safetensors": "shared",
        "trained/task-ave.safetensors": "task:ave",
        "trained/head-ave.safetensors": "head:ave",
        "selected/task-ave.safetensors": "task:ave",
    }
    assert {name: entry["owner"] for name, entry in files.items() if "/" in name} == expected
    on_disk = {str(path.relative_to(tmp_path / tag)) for path in (tmp_path / tag).rglob("*") if path.is_file()}
    assert on_disk == files.keys() | {"manifest.json"}
    for name, owner in expected.items():
        with safe_open(tmp_path / tag / name, "pt") as opened:
            assert opened.metadata() == {"owner": owner}
            assert list(opened.keys()) == [owner]
        assert files[name]["bytes"] == (tmp_path / tag / name).stat().st_size
    assert list(store.load().selected) == ["task:ave"]


ODD = [
    "task:a/b",
    "task:a-b",
    "task:../../etc",
    "task:A",
    "task:a",
    "task:äöü 日本",
    "task:.",
    "task-a",
    "task:" + "x" * 300,
    "task:" + "x" * 299,
    "head:a",
    "shared:a",
    "task:a~b",
    "task:a:b",
    "",
]


def test_file_names_are_safe_and_differ_even_without_capitals(tmp_path):
    names = [owner_file(owner) for owner in ODD]
    assert len({name.lower() for name in names}) == len(ODD)
    assert all(Path(name).name == name and len(name.encode()) < 200 and name.isascii() for name in names)
    store = CheckpointStore(tmp_path)
    store.commit(owned({owner: index for index, owner in enumerate(ODD)}))
    found = store.load()
    assert {owner: int(found.trained[owner][0]) for owner in ODD} == {owner: i for i, owner in enumerate(ODD)}
    assert found.owners == {owner: owner for owner in ODD}


def test_what_did_not_change_is_linked_and_outlives_the_commit_it_came_from(tmp_path):
    store = CheckpointStore(tmp_path)
    first = store.commit(owned({"shared": 0, "task:a": 1}))
    second = store.commit(owned({"shared": 5, "task:a": 1}))
    assert inode(store, first, "trained/task-a.safetensors") == inode(store, second, "trained/task-a.safetensors")
    assert inode(store, first, "trained/shared.safetensors") != inode(store, second, "trained/shared.safetensors")
    assert store.load(first).trained["shared"][0] == 0
    for value in range(6, 10):
        store.commit(owned({"shared": value, "task:a": 1}))
    assert first not in store.tags()
    assert store.load().trained["task:a"].tolist() == [1.0] * 50


def test_a_stream_writes_each_task_once(tmp_path, monkeypatch):
    """Ten tasks, of which each is learnt over three commits and best in the second of them."""
    written = []
    plain = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: written.append(path.name) or plain(path, data))
    store = CheckpointStore(tmp_path)
    known = {}
    for task in range(10):
        for step in range(3):
            known = {**known, "shared": 10 * task + step, f"task:{task}": 100 * task + min(step, 1)}
            tag = store.commit(owned(known, known if step else ()), f"after-{task}" if step == 2 else "")
        assert store.load(tag).state == {"of": known}
    assert {name: written.count(name) for name in set(written) if name.startswith("task")} == {
        f"task-{task}.safetensors": 2 for task in range(10)
    }
    for task in range(10):
        then = store.load(next(tag for tag in store.tags() if tag.endswith(f"after-{task}")))
        assert torch.equal(then.trained[f"task:{task}"], store.load().trained[f"task:{task}"])
        assert then.trained["shared"][0] == 10 * task + 2


def test_a_file_system_without_links_gets_the_same_bytes(tmp_path, monkeypatch):
    linked, copied = CheckpointStore(tmp_path / "linked"), CheckpointStore(tmp_path / "copied")
    refused = []

    def refuse(source, target, **more):
        refused.append(target)
        raise OSError(95, "Operation not supported")

    for store in (linked, copied):
        if store is copied:
            monkeypatch.setattr(os, "link", refuse)
        for value in (1, 2):
            store.commit(owned({"shared": value, "task:a": 7}))
    assert refused
    assert inode(copied, "000001", "trained/task-a.safetensors") != inode(
        copied, "000002", "trained/task-a.safetensors"
    )
    for path in (linked.folder / "000002").rglob("*.*"):
        assert path.read_bytes() == (copied.folder / path.relative_to(linked.folder)).read_bytes()
    assert copied.load().state == {"of": {"shared": 2, "task:a": 7}}


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "manifest"])
def test_damage_of_one_commit_does_not_spread_to_the_next(damage, tmp_path):
    store = CheckpointStore(tmp_path)
    tag = store.commit(owned({"task:a": 1}))
    path = tmp_path / tag / ("manifest.json" if damage == "manifest" else "trained/task-a.safetensors")
    content = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(IntegrityError):
        store.load(tag)
    store.commit(owned({"task:a": 1}))
    assert store.load().trained["task:a"].tolist() == [1.0] * 50


def test_a_damaged_owner_is_named_with_the_commits_that_are_whole(tmp_path):
    store = CheckpointStore(tmp_path)
    store.commit(owned({"shared": 0, "task:a": 0}), "after-a")
    store.commit(owned({"shared": 1, "task:a": 1}))
    tag = store.commit(owned({"shared": 2, "task:a": 1}))
    damaged = tmp_path / tag / "trained/task-a.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")  # in place: the commit before shares the file
    with pytest.raises(
        IntegrityError, match=r"000003/trained/task-a\.safetensors: has sha256 .*\(000001-after-a\) into"
    ):
        store.load()
    damaged.unlink()
    with pytest.raises(IntegrityError, match=r"task-a\.safetensors: is missing, .*restore the file"):
        store.load()
    (tmp_path / "000001-after-a" / "state.json").unlink()
    with pytest.raises(IntegrityError, match="start the run again: no other commit is whole"):
        store.load()


def test_single_owners_are_read_whatever_the_other_files_are_like(tmp_path):
    store = CheckpointStore(tmp_path)
    tag = store.commit(owned({"shared": 0, "head:a": 1, "head:b": 2}, selected=("head:a",)))
    for name in ("trained/shared.safetensors", "selected/head-a.safetensors", "optimizer.pt"):
        (tmp_path / tag / name).unlink()
    found = store.trained(tag, ("head:*",))
    assert {owner: int(part[owner][0]) for owner, part in found.items()} == {"head:a": 1, "head:b": 2}
    assert list(store.trained(owners=("head:b",))) == ["head:b"]
    with pytest.raises(IntegrityError, match=r"trained/shared\.safetensors: is missing"):
        store.trained(tag)


def test_order_of_dictionaries_survives(tmp_path):
    store = CheckpointStore(tmp_path)
    store.commit(example(groups={"b": [1], "a": [2]}))
    assert list(store.load().method["groups"]) == ["b", "a"]


def test_at_least_two_commits_stay_and_named_ones_last(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    for number in range(5):
        store.commit(example(float(number)), "after-some/thing: odd" if number == 1 else "")
    assert store.tags() == ["000002-after-some-thing-odd", "000004", "000005"]
    assert store.latest() == "000005"
    assert store.load("000002-after-some-thing-odd").state == {"x": 1.0}


def test_what_a_crash_left_behind_is_ignored_and_removed(tmp_path):
    store = CheckpointStore(tmp_path)
    store.commit(example(1.0))
    (tmp_path / ".staging-000002").mkdir()
    (tmp_path / ".staging-000002" / "state.json").write_text("{")
    (tmp_path / "000002").mkdir()  # renamed without a manifest: not complete
    assert store.tags() == ["000001"]
    assert store.commit(example(2.0)) == "000002"
    assert not list(tmp_path.glob(".staging-*"))
    assert store.load().state == {"x": 2.0}


def test_nothing_and_an_unknown_tag_are_refused(tmp_path):
    store = CheckpointStore(tmp_path / "none")
    with pytest.raises(IntegrityError, match="no checkpoint was committed"):
        store.load()
    store.commit(example())
    with pytest.raises(IntegrityError, match=r"000009: manifest\.json is missing.*complete ones: 000001"):
        store.load("000009")


def test_another_format_is_refused(tmp_path):
    store = CheckpointStore(tmp_path)
    tag = store.commit(example())
    manifest = tmp_path / tag / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(IntegrityError, match="field format is 1, this version reads 2"):
        store.load()


@pytest.mark.parametrize("value", [{1: "a"}, object(), {"x": {1, 2}}, torch.nn.Linear(1, 1)])
def test_states_that_would_not_come_back_are_refused(value):
    with pytest.raises(TypeError, match="method state"):
        pack({"state": value})


def test_packing_copies_tensors():
    tensor = torch.zeros(2)
    tensors, structure = pack([tensor, {"t": tensor}])
    tensor.add_(1)
    found = unpack(tensors, structure)
    assert torch.equal(found[0], torch.zeros(2))
    assert torch.equal(found[1]["t"], torch.zeros(2))
