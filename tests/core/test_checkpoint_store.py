"""Checkpoints: exact contents, tags that last, states that JSON can hold."""

import pytest
import torch

from avcl_core.errors import IntegrityError
from avcl_core.training.checkpoint import Checkpoint, CheckpointStore, pack, unpack


def example(value=1.0, **method):
    tensors = {"a": torch.full((2, 2), value), "n": torch.tensor(3), "flag": torch.tensor([True])}
    return Checkpoint(
        tensors, method, {"main": {"a": {"step": torch.tensor(value), "exp_avg": tensors["a"]}}}, {}, {"x": value}
    )


def test_a_commit_comes_back_as_it_was(tmp_path):
    store = CheckpointStore(tmp_path)
    saved = example(memory=[{"key": "k", "stored": {"z": torch.rand(3, 2).T}}], count=3, none=None, name="x", yes=True)
    store.commit(saved)
    found = store.load()
    assert all(torch.equal(value, found.trained[name]) for name, value in saved.trained.items())
    assert found.trained["flag"].dtype == torch.bool
    assert torch.equal(found.method["memory"][0]["stored"]["z"], saved.method["memory"][0]["stored"]["z"])
    assert {n: found.method[n] for n in ("count", "none", "name", "yes")} == {
        "count": 3,
        "none": None,
        "name": "x",
        "yes": True,
    }
    assert torch.equal(found.optimizer["main"]["a"]["step"], torch.tensor(1.0))
    assert (found.selected, found.state) == ({}, {"x": 1.0})


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
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(IntegrityError, match="field format is 7, this version reads 1"):
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
