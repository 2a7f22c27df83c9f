"""LwF: no gradient from an equal teacher, distances by hand, old slots, heads that cannot read, statistics that do not move."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avcl_core.methods.distances import distance
from avcl_core.methods.lwf import LwF, LwFOptions, posed
from avcl_core.ownership import Owners, evaluation_mode
from avcl_core.testing import check_method, check_pieces
from avcl_core.testing.toy_tasks import TOY_TASKS

sys.path.insert(0, str(Path(__file__).parent))
from method_toys import Bench, PointOptions, points

OUTPUT = {"mask": "mask", "value": "score"}


def taught(options=None, model_options=None, **kinds):
    """A bench on which all experiences but the last are learnt and the last one has begun."""
    bench = Bench(points(LwF, options, model_options, **kinds))
    *past, last = bench.toy.stream.experiences
    for experience in past:
        bench.begin(experience)
        bench.end(experience)
    bench.begin(last)
    return bench, last


@pytest.mark.parametrize("kind", TOY_TASKS)
def test_there_is_no_gradient_while_the_model_is_its_own_teacher(kind):
    bench, last = taught(
        **{kind: 1, **({"tokens": 2} if kind == "tokens" else {"value" if kind == "classes" else "classes": 1})}
    )
    bench.model.train()
    batch = bench.batch(last)
    name = f"{kind}0" if kind != "tokens" else "tokens0"
    parts = bench.method.distances({"experience": name, "task": kind}, batch)
    (value,) = parts.values()
    assert list(parts) == [f"lwf:{name}:{OUTPUT.get(kind, 'logits')}"]
    assert float(value) == pytest.approx(0, abs=1e-6)
    value.backward()
    gradients = [p.grad for p in bench.model.parameters() if p.grad is not None]
    assert gradients
    assert max(float(g.abs().max()) for g in gradients) < 1e-6


def test_the_distance_is_that_of_the_old_outputs_by_hand():
    bench, last = taught(LwFOptions(strength=3.0, temperature=4.0), labels=1, classes=1, value=1)
    batch = bench.batch(last)
    before = {}
    with torch.no_grad(), evaluation_mode(bench.model):
        for past in ("labels", "classes"):
            asked = posed(batch, past, f"{past}0")
            before[past] = bench.model(asked, bench.method.context(asked, training=False))["logits"]
    bench.move(("common", "heads"))
    (update,) = bench.method.step(replace(batch, row_share=0.5), ())
    for past, temperature in (("labels", 1.0), ("classes", 4.0)):
        asked = posed(batch, past, f"{past}0")
        with torch.no_grad(), evaluation_mode(bench.model):
            now = bench.model(asked, bench.method.context(asked, training=False))["logits"]
        expected = 1.5 * distance(past, now, before[past], temperature).mean()
        assert float(expected) > 1e-3
        assert float(update.parts[f"lwf:{past}0:logits"]) == pytest.approx(float(expected), rel=1e-4)


def test_a_head_that_reads_media_alone_answers_once_for_all_questions_about_a_video():
    bench, last = taught(labels=1, classes=1)
    batch = bench.batch(last)
    batch = batch.select([0, 0, 1, 0])
    bench.move(("common", "heads"))
    past = {"experience": "labels0", "task": "labels"}
    (plain,) = bench.method.distances(past, batch).values()
    heard = []
    bench.model.register_forward_hook(lambda model, given, outputs: heard.append(given[0].keys))
    known = replace(batch, media=("a", "a", "b", "a"))
    (once,) = bench.method.distances(past, known).values()
    assert float(once) == pytest.approx(float(plain), rel=1e-5)
    assert float(plain) > 1e-3
    assert [len(keys) for keys in heard] == [2, 2], "the teacher and the model"
    bench.method.tasks["labels"].needs = ("question",)
    heard.clear()
    bench.method.distances(past, known)
    assert [len(keys) for keys in heard] == [4, 4], "a question may change the answer"


def test_a_head_that_cannot_read_is_left_out_aloud():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        bench, last = taught(tokens=1, classes=1, labels=1)
    said = [str(w.message) for w in heard if "lwf" in str(w.message)]
    assert said == [
        f"lwf: while learning {name}, nothing holds the head of tokens0: its head needs question"
        for name in ("classes0", "labels0")
    ]
    (update,) = bench.method.step(bench.batch(last), ())
    assert [name for name in update.parts if name.startswith("lwf")] == ["lwf:classes0:logits"]
    assert bench.method.state()["left_out"]["labels0"] == {"tokens0": "its head needs question"}


def test_other_ranks_do_not_repeat_the_warning():
    bench = Bench(points(LwF, tokens=1, classes=1))
    bench.method.collective.rank = 1
    first, second = bench.toy.stream.experiences
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bench.begin(first)
        bench.end(first)
        bench.begin(second)
    assert bench.method.left_out["classes0"]


def test_a_task_may_refuse_shapes_too():
    bench = Bench(points(LwF, classes=1, labels=1))
    first, second = bench.toy.stream.experiences
    bench.begin(first)
    bench.end(first)
    asked = []
    task = bench.method.tasks["classes"]
    task.unreadable = lambda inputs: asked.append(inputs["point"].shape[1:]) or "made for five frames"
    with pytest.warns(UserWarning, match="nothing holds the head of classes0: made for five frames"):
        bench.begin(second)
    assert asked == [(3,)]
    assert bench.method.asked["labels0"] == []


def test_the_same_task_always_reads_and_answers_with_what_it_was_given():
    bench, last = taught(tokens=2)
    batch = bench.batch(last)
    assert posed(batch, "tokens", "tokens0").targets.keys() == {"ids"}
    assert posed(replace(batch, stored={"x": torch.zeros(4)}), "classes", "c").targets == {}
    assert posed(replace(batch, stored={"x": torch.zeros(4)}), "classes", "c").stored == {}
    assert bench.method.asked["tokens1"] == [{"experience": "tokens0", "task": "tokens", "slot": "tokens0"}]


def test_one_question_per_task_or_one_for_each_copy():
    common, _ = taught(classes=3)
    assert [p["experience"] for p in common.method.asked["classes2"]] == ["classes1"]
    apart, last = taught(model_options=PointOptions(copies=True), classes=3)
    assert [p["experience"] for p in apart.method.asked["classes2"]] == ["classes0", "classes1"]
    batch = apart.batch(last)
    quiet = {n: float(v) for p in apart.method.asked["classes2"] for n, v in apart.method.distances(p, batch).items()}
    apart.move(("copies.slots.classes2",), scale=3.0)
    same = {n: float(v) for p in apart.method.asked["classes2"] for n, v in apart.method.distances(p, batch).items()}
    assert quiet == same  # the old copies answer, not the new one
    apart.move(("copies.slots.classes1",), scale=3.0)
    (_, one) = (dict(apart.method.distances(p, batch)) for p in apart.method.asked["classes2"])
    assert "copies.slots.classes1.shift" not in apart.method.teacher  # frozen, so the model's own stands for it
    assert float(one["lwf:classes1:logits"]) == pytest.approx(quiet["lwf:classes1:logits"], abs=1e-6)


def test_the_snapshot_holds_what_may_still_change_and_its_buffers():
    bench = Bench(points(LwF, model_options=PointOptions(copies=True), mask=1, classes=1))
    first, second = bench.toy.stream.experiences
    bench.begin(first)
    bench.end(first)
    names = set(bench.method.teacher)
    assert {"common.weight", "heads.mask.norm.running_mean", "heads.mask.linear.weight"} <= names
    assert not [name for name in names if "copies.slots.mask0" in name]
    bench.begin(second)
    bench.end(second)
    assert bench.method.teacher == {}


def test_old_statistics_do_not_move_and_old_heads_learn_unless_frozen(tmp_path):
    heads = {}
    for choice in ("trained", "frozen"):
        toy = points(LwF, LwFOptions(old_heads=choice), mask=1, classes=1, lr=0.05)
        trainer = toy.trainer(tmp_path / choice)
        move, states = trainer._move, []

        def observe(label="", trainer=trainer, move=move, states=states, **change):
            if change.get("phase") == "train":
                states.append(Owners(trainer.method.model).state(("head:mask",)))
            move(label, **change)

        trainer._move = observe
        trainer.run()
        heads[choice] = (states[1], Owners(trainer.method.model).state(("head:mask",)))
    for before, after in heads.values():
        assert torch.equal(before["heads.mask.norm.running_mean"], after["heads.mask.norm.running_mean"])
        assert torch.equal(before["heads.mask.norm.num_batches_tracked"], after["heads.mask.norm.num_batches_tracked"])
    weight = "heads.mask.linear.weight"
    assert not torch.equal(*(state[weight] for state in heads["trained"]))
    assert torch.equal(*(state[weight] for state in heads["frozen"]))


@pytest.mark.filterwarnings("ignore:lwf")
@pytest.mark.parametrize("copies", [False, True])
def test_a_run_keeps_the_contract(copies, tmp_path):
    toy = points(LwF, None, PointOptions(copies=copies), labels=1, tokens=2, value=1, mask=1)
    check_method(toy, tmp_path, stops=5)


def test_micro_batches_add_up(tmp_path):
    check_pieces(points(LwF, classes=2, tokens=1), tmp_path)
