"""Policies for shared tensors, each as it is defined: what learns, with which values old tasks are predicted, resuming."""

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from avcl_core.errors import ConfigError
from avcl_core.methods.finetune import Finetune
from avcl_core.methods.sharing import SHARING, SharingOptions, with_tensors
from avcl_core.ownership import Owners, digest_tensors, own
from avcl_core.testing import check_method

sys.path.insert(0, str(Path(__file__).parent))
from method_toys import Bench, PointModel, PointOptions, points

SHARED = ("shared", "shared:*")


def options(policy, **more):
    return SharingOptions(shared=policy, **more)


def watched(toy, folder):
    """Run and return the trainer, and the owned tensors at the beginning and end of each session's training."""
    trainer, states = toy.trainer(folder), []
    move = trainer._move

    def observe(label="", **change):
        if change.get("phase") in ("train", "evaluate"):
            states.append(Owners(trainer.method.model).state())
        move(label, **change)

    trainer._move = observe
    trainer.run()
    return trainer, list(zip(states[::2], states[1::2], strict=True))


def changed(before, after, prefix):
    names = [name for name in before if name.startswith(prefix)]
    assert names
    return [name for name in names if not torch.equal(before[name], after[name])]


def rows(folder, test):
    """Return the stored predictions of a test set, row by row."""
    return {
        p.parent.name: gzip.decompress(p.read_bytes()) for p in sorted(folder.glob(f"predictions/*/{test}.jsonl.gz"))
    }


# ------------------------------------------------------------------ what learns
def test_latest_learns_everything_and_predicts_with_it(tmp_path):
    trainer, sessions = watched(points(Finetune, value=1, labels=1, lr=0.05, selection="last"), tmp_path)
    assert all(changed(*session, "common") for session in sessions)
    assert changed(*sessions[1], "part")
    assert trainer.method.state() == {}
    assert len(set(rows(tmp_path, "value0").values())) == 2


def test_frozen_after_first_trains_shared_tensors_once(tmp_path):
    toy = points(
        Finetune, options("frozen_after_first"), PointOptions(copies=True), labels=2, classes=1, selection="last"
    )
    trainer, sessions = watched(toy, tmp_path)
    assert changed(*sessions[0], "common")
    assert changed(*sessions[0], "part")
    for number, name in ((1, "labels1"), (2, "classes0")):
        assert not changed(*sessions[number], "common")
        assert not changed(*sessions[number], "part")
        assert changed(*sessions[number], f"copies.slots.{name}")
    method, (first, second, _) = trainer.method, toy.stream.experiences
    assert {"shared", "shared:part"} <= set(method.active(first))
    assert set(method.active(second)) == {"task:labels1", "head:labels"}


# ------------------------------------------------------------------ snapshot
def test_with_snapshots_nothing_is_forgotten_to_the_bit(tmp_path):
    toy = points(
        Finetune, options("snapshot"), PointOptions(copies=True), labels=1, value=1, mask=1, lr=0.05, selection="last"
    )
    trainer, sessions = watched(toy, tmp_path)
    assert all(changed(*session, "common") for session in sessions)
    for test in ("labels0", "value0"):
        found = rows(tmp_path, test)
        assert len(found) == (3 if test == "labels0" else 2)
        assert len(set(found.values())) == 1
    assert set(trainer.method.state()["kept"]["mask0"]) == {"common.weight", "common.bias", "part.weight", "part.bias"}


def test_snapshots_serve_models_that_answer_in_another_way_and_leave_no_trace():
    class Answering(PointModel):
        def answer(self, batch, ctx):
            weight = float(self.common.weight.detach().sum())
            return {name: value + weight for name, value in self(batch, ctx).items()}

    toy = points(Finetune, options("snapshot"), value=1, classes=1)
    bench = Bench(type(toy)(**{**vars(toy), "model": Answering}))
    first, second = bench.toy.stream.experiences
    batch = bench.batch(first, split="test").question(False)
    bench.begin(first)
    bench.end(first)
    before = bench.method.predict(batch)["value"]
    bench.begin(second)
    bench.move(("common", "part"), scale=2.0)
    digest = digest_tensors(dict(bench.model.state_dict()))
    parameters = dict(bench.model.named_parameters())
    bench.model.train()
    assert torch.equal(bench.method.predict(batch)["value"], before)
    assert digest_tensors(dict(bench.model.state_dict())) == digest
    assert all(p is parameters[name] for name, p in bench.model.named_parameters())
    assert bench.model.training
    now = bench.method.sharing
    now.kept = {}
    assert not torch.equal(bench.method.predict(batch)["value"], before)


def test_a_failing_prediction_puts_everything_back():
    bench = Bench(points(Finetune, classes=1))
    parameters = dict(bench.model.named_parameters())

    def fail():
        assert float(bench.model.common.bias.sum()) == 6
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        with_tensors(bench.model, {"common.bias": torch.full((3,), 2.0)}, fail)
    assert all(p is parameters[name] for name, p in bench.model.named_parameters())


@pytest.mark.parametrize("policy", ["snapshot", "ema"])
def test_old_tensors_need_to_know_the_experience(policy):
    bench = Bench(points(Finetune, options(policy), classes=1))
    batch = bench.batch(bench.toy.stream.experiences[0], split="test")
    with pytest.raises(ConfigError, match=rf"method\.shared={policy} .* stream\.task_id=given"):
        bench.method.predict(batch.question(True))


def test_needs_of_the_policies():
    needs = {policy: Finetune.needs(options(policy)) for policy in SHARING}
    assert {policy for policy, known in needs.items() if known == ("given",)} == {"snapshot", "ema"}
    assert {known for policy, known in needs.items() if policy not in ("snapshot", "ema")} == {("given", "hidden")}


# ------------------------------------------------------------------ moving average
def averaged(folder, selection, decay=0.8):
    """Run ``ema`` and return the trainer, the shared weights after every step of each session, and the average by the formula."""
    toy = points(
        Finetune, options("ema", ema_decay=decay), labels=1, classes=1, value=1, lr=0.05, epochs=4, selection=selection
    )
    trainer = toy.trainer(folder)
    build, steps = trainer.build, {0: [], 1: [], 2: []}

    def spied():
        method = build()
        settle = method.model.settle

        def observe(collective):
            steps[trainer.at.session].append(method.model.common.weight.detach().clone())
            settle(collective)

        method.model.settle = observe
        return method

    trainer.build = spied
    ends, move = [], trainer._move

    def watch(label="", **change):
        if change.get("phase") == "evaluate":
            model = trainer.method.model
            ends.append((model.common.weight.detach().clone(), model.shared_average.values()["common.weight"].clone()))
        move(label, **change)

    trainer._move = watch
    trainer.run()
    return trainer, steps, ends


@pytest.mark.parametrize("selection", ["last", "best"])
def test_the_average_follows_its_formula_and_the_selected_epoch(selection, tmp_path):
    trainer, steps, ends = averaged(tmp_path, selection)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    average = ends[0][0]  # it begins as what the first experience left
    assert torch.equal(ends[0][1], average)
    for session in (1, 2):
        taken = len(steps[session])
        if selection == "best":
            chosen = max(r["epoch"] for r in records if r.get("selected") and r["session"] == session)
            taken = taken // 4 * (chosen + 1)
        for weight in steps[session][:taken]:
            average = 0.8 * average + (1 - 0.8) * weight
        assert torch.equal(ends[session][0], steps[session][taken - 1])
        assert torch.allclose(ends[session][1], average, atol=1e-6)
        assert not torch.allclose(ends[session][1], ends[session][0], atol=1e-4)
    rows = Owners(trainer.method.model).rows
    assert rows["shared_average.common/weight"].owner == "shared:average"
    assert rows["shared_average.common/weight"].kind == "buffer"


def test_at_least_one_selected_epoch_is_not_the_last(tmp_path):
    averaged(tmp_path, "best")
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    chosen = [max(r["epoch"] for r in records if r.get("selected") and r["session"] == s) for s in (1, 2)]
    assert min(chosen) < 3, "the test above would not see whether the average goes back with the epoch"


def test_old_experiences_are_predicted_with_the_average_and_the_current_one_with_the_latest():
    bench = Bench(points(Finetune, options("ema", ema_decay=0.5), value=1, classes=1))
    first, second = bench.toy.stream.experiences
    assert bench.method.sharing.averages.decay == 0.5
    bench.begin(first)
    bench.model.settle(bench.method.collective)
    bench.move(("common",), seed=1)
    bench.end(first)
    assert bench.method.sharing.tensors("value0") == {}
    at_end = bench.model.common.weight.detach().clone()
    bench.begin(second)
    bench.move(("common",), seed=2)
    bench.model.settle(bench.method.collective)
    average = (at_end + bench.model.common.weight.detach()) / 2
    old = bench.method.sharing.tensors("value0")
    assert torch.allclose(old["common.weight"], average)
    assert set(old) == set(Owners(bench.model).match(("shared", "shared:part")))
    assert bench.method.sharing.tensors("classes0") == {}
    batch = bench.batch(first, split="test").question(False)
    found = bench.method.predict(batch)["value"]
    with torch.no_grad():
        for name, value in old.items():
            bench.model.get_parameter(name).copy_(value)
    bench.method.sharing.learnt = []
    assert torch.equal(bench.method.predict(batch)["value"], found)


def test_defaults_of_the_policies_are_the_published_ones():
    assert Bench(points(Finetune, options("ema"), classes=1)).method.sharing.averages.decay == 0.999
    assert Bench(points(Finetune, options("l2sp"), classes=1)).method.sharing.weight == 1e-2


def test_shared_tensors_made_in_growing_have_no_average_and_are_refused():
    class Growing(PointModel):
        def grow(self, experience):
            super().grow(experience)
            self.late = own(torch.nn.Linear(2, 2), "shared")

    toy = points(Finetune, options("ema"), classes=1)
    bench = Bench(type(toy)(**{**vars(toy), "model": Growing}))
    with pytest.raises(ConfigError, match=r"method\.shared=ema: late\.bias was created after the model was built"):
        bench.begin(bench.toy.stream.experiences[0])


# ------------------------------------------------------------------ L2-SP
def test_the_penalty_is_lambda_times_the_squared_way_from_the_experience_before():
    bench = Bench(points(Finetune, options("l2sp", l2sp_weight=0.5), value=1, classes=1, labels=1))
    value, classes, labels = bench.toy.stream.experiences
    bench.begin(value)
    assert bench.method.sharing.parts(bench.batch(value)) == {}
    bench.end(value)
    bench.begin(classes)
    start = bench.model.common.weight.detach().clone()
    bench.move(("common.weight",))
    bench.move(("part", "heads"))
    way = float((bench.model.common.weight - start).square().sum())
    (update,) = bench.method.step(bench.batch(classes), ())
    assert float(update.parts["l2sp"]) == pytest.approx(
        0.5 * way, rel=1e-5
    )  # the part rests: only tasks with labels train it
    piece = replace(bench.batch(classes), share=0.9, row_share=0.25)
    assert float(bench.method.sharing.parts(piece)["l2sp"]) == pytest.approx(0.125 * way, rel=1e-5)
    bench.end(classes)
    bench.begin(labels)
    assert float(bench.method.sharing.parts(bench.batch(labels))["l2sp"]) == 0
    bench.move(("part.weight",))
    assert float(bench.method.sharing.parts(bench.batch(labels))["l2sp"]) > 0


# ------------------------------------------------------------------ options and the contract
@pytest.mark.parametrize(("key", "value"), [("ema_decay", 0.9), ("l2sp_weight", 0.1)])
def test_an_option_without_effect_is_refused(key, value):
    with pytest.raises(ValidationError, match=f"{key} has no effect with shared: snapshot"):
        SharingOptions(shared="snapshot", **{key: value})
    assert SharingOptions(**SharingOptions().model_dump()) == SharingOptions()


@pytest.mark.parametrize("policy", SHARING)
def test_a_run_keeps_the_contract(policy, tmp_path):
    toy = points(Finetune, options(policy), PointOptions(copies=True), labels=2, mask=1, epochs=3, lr=0.05)
    check_method(toy, tmp_path, stops=6)
