"""Anchor experts: nothing but the routing can forget, experts know nothing of each other, and each pair is predicted once."""

import gzip
import json
import sys
from pathlib import Path

import pytest
import torch

from avcl_core.errors import ConfigError, RunError
from avcl_core.ownership import Owners
from avcl_core.routing import BASE, Routing
from avcl_core.running.asked import asked
from avcl_core.testing.toy_run import differences, run_interrupted, run_straight

sys.path.insert(0, str(Path(__file__).parent))
from anchor_toys import SHORT, talk_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A hidden run of two experiences, its trainer, folder and the places where it could have stopped."""
    folder = tmp_path_factory.mktemp("talks")
    toy = talk_run()
    trainer, places = run_straight(toy, folder)
    return toy, trainer, folder, places


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def tensors(trainer, slot):
    return Owners(trainer.method.model).state((f"expert:{slot}",))


def test_an_expert_does_not_depend_on_the_order(finished, tmp_path):
    _, first, _, _ = finished
    other = talk_run(order=("talks1", "talks0")).trainer(tmp_path)
    other.run()
    for slot in ("talks0", "talks1"):
        one, two = tensors(first, slot), tensors(other, slot)
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_later_experiences_leave_experts_and_anchors_alone(tmp_path):
    toy = talk_run(experiences=3)
    trainer = toy.trainer(tmp_path)
    kept = {}
    after = trainer._after

    def spy(session, method):
        after(session, method)
        kept[session.row] = Owners(method.model).state()

    trainer._after = spy
    trainer.run()
    last = kept["talks2"]
    for row in ("talks0", "talks1"):
        mine = {name: value for name, value in kept[row].items() if name in tensors(trainer, row)}
        assert mine
        assert all(torch.equal(value, last[name]) for name, value in mine.items())
    assert {row.owner for row in Owners(trainer.method.model).rows.values()} == {f"expert:talks{i}" for i in range(3)}


def test_with_the_experience_given_nothing_is_forgotten(finished):
    _, _, folder, _ = finished
    given = {(line["row"], line["test"]): line["ablations"]["experience given"]["score"] for line in lines(folder)}
    assert given["talks1", "talks0"] == given["talks0", "talks0"]
    assert set(given) == {("talks0", "talks0"), ("talks1", "talks0"), ("talks1", "talks1")}


def test_every_expert_alone_and_none_beside_the_last_row(finished):
    _, _, folder, _ = finished
    first, *last = lines(folder)
    assert set(first["ablations"]) == {"experience given"}
    for line in last:
        assert set(line["ablations"]) == {"experience given", "talks0 for all", "talks1 for all", "without experts"}
        own = line["ablations"][f"{line['test']} for all"]
        assert own == line["ablations"]["experience given"]


def test_predictions_say_who_answered_and_why(finished):
    _, _trainer, folder, _ = finished
    rows = [
        json.loads(row)
        for row in gzip.decompress((folder / "predictions/talks1/talks0.jsonl.gz").read_bytes()).splitlines()
    ]
    assert len(rows) == 4
    for row in rows:
        scores = row["scores"]["all"]
        assert set(row["scores"]) == {"all", "visual", "audio", "text"}
        assert row["expert"] == max(scores, key=scores.get)
        assert scores["talks0"] == pytest.approx(
            sum(row["scores"][n]["talks0"] for n in ("visual", "audio", "text")) / 3
        )
    share = sum(row["expert"] == "talks0" for row in rows) / 4
    line = next(line for line in lines(folder) if (line["row"], line["test"]) == ("talks1", "talks0"))
    assert line["metrics"]["routing_accuracy"] == 100 * share
    usage = json.loads((folder / "results/expert_usage.json").read_text())["talks1"]["talks0"]["routing"]
    assert usage["own"] == "talks0"
    assert sum(part["samples"] for part in usage["experts"].values()) == 4
    assert usage["right"]["samples"] == 4 * share
    assert sum(usage["gap"]["right"]) + sum(usage["gap"]["wrong"]) == 4


def test_each_pair_of_sample_and_expert_is_predicted_once(finished, tmp_path):
    toy, *_ = finished
    trainer = toy.trainer(tmp_path)
    asked = []
    build = trainer.build

    def spying():
        method = build()
        predict = method.predict

        def spy(batch, trace=None, without=frozenset(), slots=None):
            asked.extend((key, slot) for key, slot in zip(batch.keys, slots, strict=True))
            return predict(batch, trace, without, slots)

        method.predict = spy
        return method

    trainer.build = spying
    trainer.run()
    tested = [pair for pair in asked if "-test" in pair[0]]
    assert len(tested) == len(set(tested))
    assert {slot for _, slot in tested} == {"talks0", "talks1", BASE}


def test_a_trained_expert_is_predicted_anew(finished):
    _, trainer, _, _ = finished
    evaluator, method = trainer.evaluator, trainer.method
    one = trainer.stream.experience("talks0")
    slots = dict.fromkeys(one.test, "talks0")
    before = evaluator.by_slot.of_slots(method, one, "test", slots)
    bank = next(module for (_, _, place), (module,) in method.model.sites.items() if place == "swap")
    kept = {name: value.clone() for name, value in bank.slots["talks0"].state_dict().items()}
    with torch.no_grad():
        for parameter in bank.slots["talks0"].parameters():
            parameter.add_(torch.randn_like(parameter))
    after = evaluator.by_slot.of_slots(method, one, "test", slots)
    bank.slots["talks0"].load_state_dict(kept)
    assert any((before[key]["text"].tobytes() != after[key]["text"].tobytes()) for key in one.test)
    again = evaluator.by_slot.of_slots(method, one, "test", slots)
    assert all(before[key]["text"].tobytes() == again[key]["text"].tobytes() for key in one.test)


def test_batches_of_any_size_answer_alike(finished):
    _toy, trainer, _, _ = finished
    one = trainer.stream.experience("talks1")
    single = [
        trainer.method.predict(batch.question(True), slots=("talks1",))["text"]
        for batch in trainer.loader.batches(one, "test", 1)
    ]
    (batch,) = trainer.loader.batches(one, "test", 4)
    together = trainer.method.predict(batch.question(True), slots=("talks1",) * 4)["text"]
    for row, alone in zip(together, single, strict=True):
        assert bytes(row.numpy()).rstrip(b"\0") == bytes(alone[0].numpy()).rstrip(b"\0")


@pytest.mark.parametrize(
    ("routing", "expert"),
    [(Routing("talks1"), "talks1"), (Routing(BASE), BASE), (Routing("given"), "talks0")],
)
def test_an_evaluation_can_say_who_answers(finished, routing, expert):
    _, trainer, _, _ = finished
    evaluator, one = trainer.evaluator, trainer.stream.experience("talks0")
    evaluator.routing = routing
    try:
        found = evaluator.evaluate(trainer.method, trainer.tasks["talks"], one, "test")
    finally:
        evaluator.routing = Routing()
    assert {choice.slot for choice in found.choices.values()} == {expert}
    expected = evaluator.by_slot.of_slots(trainer.method, one, "test", dict.fromkeys(one.test, expert))
    assert all((found.predictions[k]["text"] == expected[k]["text"]).all() for k in one.test)


def test_an_evaluation_can_say_what_is_compared(finished):
    _, trainer, _, _ = finished
    evaluator, one = trainer.evaluator, trainer.stream.experience("talks1")
    for routing in (Routing(reads=("text",)), Routing(reads=("visual", "audio"))):
        evaluator.routing = routing
        found = evaluator.evaluate(trainer.method, trainer.tasks["talks"], one, "test")
        evaluator.routing = Routing()
        assert {tuple(sorted(c.scores)) for c in found.choices.values()} == {tuple(sorted(("all", *routing.reads)))}
    # The questions of an experience have one form, so words alone find it every time.
    evaluator.routing = Routing(reads=("text",))
    found = evaluator.evaluate(trainer.method, trainer.tasks["talks"], one, "test")
    evaluator.routing = Routing()
    assert found.metrics["routing_accuracy"] == 100


def test_a_model_that_tells_no_features_says_so(finished):
    _, trainer, _, _ = finished
    with pytest.raises(RunError, match="tells no features"):
        trainer.evaluator.evaluate(
            trainer.method, trainer.tasks["talks"], trainer.stream.experience("talks0"), "test", features=True
        )


@pytest.mark.parametrize("key", ["to=talks1", "reads=text"])
def test_corruptions_go_where_the_model_sends_them(key):
    name, _, value = key.partition("=")
    with pytest.raises(ConfigError, match="leave out to= and reads="):
        asked("eval", {"corruptions": "standard", name: value})


@pytest.mark.parametrize(
    ("routing", "message"), [(Routing("talks7"), "to=talks7: unknown"), (Routing(reads=("smell",)), "reads=smell")]
)
def test_an_unknown_route_is_refused(finished, routing, message):
    _, trainer, _, _ = finished
    trainer.evaluator.routing = routing
    try:
        with pytest.raises(ConfigError, match=message):
            trainer.evaluator.predict(trainer.method, trainer.stream.experience("talks0"), "test")
    finally:
        trainer.evaluator.routing = Routing()


def test_a_stop_in_the_middle_of_an_experience_changes_nothing(finished, tmp_path):
    toy, straight, folder, places = finished
    middle = [p for p in places if p.session == 1 and p.phase == "train"]
    other = run_interrupted(toy, tmp_path, middle[len(middle) // 2])
    assert differences(straight, other, folder, tmp_path) == []


def test_one_expert_for_all_is_sequential_fine_tuning(tmp_path):
    trainer = talk_run(expert={"per": "all"}).trainer(tmp_path)
    trainer.run()
    assert trainer.method.model.slots == ["all"]
    assert {row.owner for row in Owners(trainer.method.model).rows.values()} == {"expert:all"}
    assert all("routing_accuracy" not in line["metrics"] for line in lines(tmp_path))


def test_the_loss_reads_the_answer_alone(finished):
    _, trainer, _, _ = finished
    one = trainer.stream.experience("talks0")
    (batch,) = trainer.loader.batches(one, "train", 2, one.train[:2])
    method = trainer.method
    outputs = method.model(batch, method.context(batch, training=False))["answer"]
    assert outputs.shape[:2] == batch.targets["language"].shape
    task = trainer.tasks["talks"]
    alone = []
    for key in one.train[:2]:
        (single,) = trainer.loader.batches(one, "train", 1, (key,))
        alone.append(task.nll(method.model(single, method.context(single, training=False)), single.targets))
    torch.testing.assert_close(task.nll(outputs={"answer": outputs}, targets=batch.targets), torch.cat(alone))


@pytest.mark.parametrize("score", ["centres", "lda"])
def test_other_scores_route_too(score, tmp_path):
    anchors = {"score": score, "count": 2, "restarts": 2}
    trainer = talk_run(anchors=anchors, training=SHORT.model_copy(update={"epochs": 1})).trainer(tmp_path)
    trainer.run()
    assert lines(tmp_path)[-1]["metrics"]["routing_accuracy"] >= 75
