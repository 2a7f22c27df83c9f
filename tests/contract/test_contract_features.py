"""Saved features: means of what the walk ends with, in key order, told only where asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys.cross_experts import CrossExperts
from toys.users import tasks

from avcl_core.collective import Collective
from avcl_core.errors import ConfigError, IntegrityError, RunError
from avcl_core.evaluation.saved_features import (
    FeatureMeans,
    SavedFeatures,
    features_file,
    read_features,
    write_features,
)
from avcl_core.methods.base import evaluation_mode
from avcl_core.methods.finetune import Finetune
from avcl_core.running import launch
from avcl_core.running.asked import asked
from avcl_core.running.tested import write_evaluation
from avcl_core.testing.toy_run import SHORT, ToyRun, run_straight
from avcl_core.testing.toy_towers import toy_towers
from avcl_core.trace import Trace

ONE = SHORT.model_copy(update={"epochs": 1})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two tasks and its trainer."""
    toy = ToyRun(toy_towers, CrossExperts, Finetune, tasks(classes=1, labels=1), training=ONE)
    return toy, run_straight(toy, tmp_path_factory.mktemp("features"))[0]


def judge(trained, index: int, features: bool):
    toy, trainer = trained
    experience = toy.stream.experiences[index]
    return trainer.evaluator.evaluate(trainer.method, toy.tasks[experience.task], experience, "test", features)


def test_rows_are_the_means_over_seconds_and_tokens_in_key_order(trained):
    toy, trainer = trained
    experience = toy.stream.experiences[0]
    saved = judge(trained, 0, True).features
    assert saved is not None
    assert list(saved.keys) == list(experience.keys("test"))
    method = trainer.method
    expected: dict[str, list[np.ndarray]] = {"visual": [], "audio": []}
    for batch in trainer.loader.batches(experience, "test", 2):  # other batches than the evaluator's
        with torch.no_grad(), evaluation_mode(method.model):
            final = method.model.features(batch.question(False), method.context(batch, training=False)).final
        for name, value in final.items():
            _, seconds, tokens, _ = value.shape
            expected[name].append((value.sum(2).sum(1) / (seconds * tokens)).numpy())
    assert set(saved.means) == set(expected)
    for name, parts in expected.items():
        assert saved.means[name].dtype == np.float32
        np.testing.assert_allclose(saved.means[name], np.concatenate(parts), rtol=1e-4, atol=1e-6)
        assert np.ptp(saved.means[name], 0).max() > 1e-4, "rows differ, so an order can be wrong"
    targets = trainer.loader.targets(experience, "test")
    assert saved.groups == tuple(f"class {int(targets[key]['class'])}" for key in saved.keys)
    assert len(set(saved.groups)) > 1


def test_a_sample_without_groups_has_an_empty_one(trained):
    saved = judge(trained, 1, True).features
    assert saved is not None
    assert set(saved.groups) == {""}


def test_nothing_else_changes_and_nothing_is_told_unasked(trained, monkeypatch):
    with_features = judge(trained, 0, True)
    traces = []

    def listen(trace, final):
        told(trace, final)
        traces.append(trace)

    told = Trace.tell_features
    monkeypatch.setattr(Trace, "tell_features", listen)
    without = judge(trained, 0, False)
    assert without.features is None
    assert traces
    assert all(trace.features == {} for trace in traces)
    assert without.metrics == with_features.metrics
    assert without.usage == with_features.usage


def test_ranks_do_not_matter(trained):
    toy, trainer = trained
    experience = toy.stream.experiences[0]
    groups = dict.fromkeys(experience.keys("test"), ())
    parts = []
    for rank in range(2):
        part = FeatureMeans(groups)
        for batch in trainer.loader.batches(experience, "test", 2, experience.keys("test")[rank::2]):
            trace = Trace(wants_features=True)
            trainer.method.predict(batch.question(False), trace)
            part.add(trace, batch.keys)
        parts.append(part)

    class Both(Collective):
        def join(self, value):
            return [part.rows for part in parts]

    whole = judge(trained, 0, True).features
    joined = parts[1].joined(experience.keys("test"), Both())
    assert whole is not None
    assert joined.keys == whole.keys
    for name, value in whole.means.items():
        np.testing.assert_allclose(joined.means[name], value, rtol=1e-4, atol=1e-6)


def test_an_evaluation_writes_what_was_asked_and_leaves_nothing_of_an_earlier_one(trained, folder):
    toy, _ = trained
    task, found = toy.tasks["classes"], judge(trained, 0, True)
    written = write_evaluation(folder, "v", {"a b": launch.Tested(task, found, None)}, lambda line: None)
    path = features_file(written, "a b")
    assert path == folder / "evaluations" / "v" / "features" / "a-b.npz"
    with np.load(path, allow_pickle=False) as archive:
        assert set(archive.files) == {"keys", "groups", "visual", "audio"}
    back, first = read_features(path), path.read_bytes()
    assert found.features is not None
    assert (back.keys, back.groups) == (found.features.keys, found.features.groups)
    assert all(np.array_equal(back.means[name], value) for name, value in found.features.means.items())
    write_features(written, "a b", found.features)
    assert path.read_bytes() == first
    write_evaluation(folder, "v", {"a b": launch.Tested(task, judge(trained, 0, False), None)}, lambda line: None)
    assert not list(written.glob("features/*"))


GOOD = SavedFeatures(("a", "b"), ("x", ""), {"audio": np.zeros((2, 3), np.float32)})


def _store(path, **arrays):
    np.savez(path, **({"keys": np.array(["a", "b"]), "groups": np.array(["x", ""])} | arrays))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "no archive|not an archive"),
        (lambda path: path.write_bytes(b""), "not an archive"),
        (lambda path: path.write_text("words"), "not an archive"),
        (lambda path: _store(path), "no array of a modality"),
        (lambda path: _store(path, audio=np.zeros((3, 2), np.float32)), r"audio: found float32 \[3, 2\]"),
        (lambda path: _store(path, audio=np.zeros((2, 2))), "audio: found float64"),
        (lambda path: _store(path, keys=np.array(["a", "a"])), "different keys"),
        (lambda path: _store(path, keys=np.array([1, 2])), "array keys"),
        (lambda path: _store(path, audio=np.array([{}, {}])), "not an archive"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name(folder, damage, said):
    path = write_features(folder, "t", GOOD)
    assert read_features(path).keys == ("a", "b")
    damage(path)
    with pytest.raises(IntegrityError, match=rf"features/t\.npz: .*({said})"):
        read_features(path)


def test_a_model_that_tells_none_is_refused():
    with pytest.raises(RunError, match="tells no features"):
        FeatureMeans({"a": ()}).add(Trace(wants_features=True), ("a",))


def test_features_are_asked_for_by_name():
    assert asked("eval", {"features": "true"}).features
    assert not asked("eval", {"features": "false"}).features
    assert not asked("eval", {}).features
    with pytest.raises(ConfigError, match="features=yes"):
        asked("eval", {"features": "yes"})
    with pytest.raises(ConfigError, match="one evaluation"):
        asked("eval", {"features": "true", "corruptions": "standard"})
