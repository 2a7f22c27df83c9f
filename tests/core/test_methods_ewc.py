"""EWC against a computation by hand: Fisher information of a linear model, the penalty, what it is kept for, ranks, resuming."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avcl_core.collective import Collective
from avcl_core.errors import RunError
from avcl_core.methods.ewc import EWC, EWCOptions
from avcl_core.ownership import Owners
from avcl_core.seeding import ordered
from avcl_core.testing import check_method, check_pieces
from avcl_core.training.loader import Request

sys.path.insert(0, str(Path(__file__).parent))
from method_toys import Bench, PointOptions, points


def by_hand(bench, experience, keys):
    """Fisher information of ``common`` and of the head's linear map, from the chain rule, sample by sample."""
    model, head = bench.model, bench.model.heads["classes"].linear
    batch = bench.loader.load(Request(experience, "train", tuple(keys)))
    total = {"common.weight": 0, "common.bias": 0, "heads.classes.linear.weight": 0, "heads.classes.linear.bias": 0}
    with torch.no_grad():
        for row in range(len(keys)):
            x, y = batch.inputs["point"][row], int(batch.targets["class"][row])
            inner = model.common.weight @ x + model.common.bias
            curved = torch.tanh(model.part.weight @ inner + model.part.bias)
            feature = inner + curved
            error = (head.weight @ feature + head.bias).softmax(0)
            error[y] -= 1
            back = head.weight.T @ error
            back = back + model.part.weight.T @ ((1 - curved**2) * back)
            found = [torch.outer(back, x), back, torch.outer(error, feature), error]
            for name, gradient in zip(total, found, strict=True):
                total[name] = total[name] + gradient**2
    return {name: value / len(keys) for name, value in total.items()}


@pytest.mark.parametrize("samples", [None, 3])
def test_fisher_information_is_that_of_a_computation_by_hand(samples):
    bench = Bench(points(EWC, EWCOptions(samples=samples), classes=2))
    first = bench.toy.stream.experiences[0]
    bench.begin(first)
    bench.end(first)
    keys = list(first.train) if samples is None else ordered(first.train, 0, "fisher", first.name)[:samples]
    expected = by_hand(bench, first, keys)
    (entry,) = bench.method.past
    assert entry["fisher"].keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(entry["fisher"][name], value, rtol=1e-4, atol=1e-7), name
        assert torch.equal(entry["values"][name], bench.model.get_parameter(name))
    assert not any(p.grad is not None for p in bench.model.parameters())


def test_the_penalty_is_half_lambda_times_the_weighted_squared_way():
    bench = Bench(points(EWC, EWCOptions(strength=7.0), classes=2))
    first, second = bench.toy.stream.experiences
    bench.begin(first)
    bench.end(first)
    bench.begin(second)
    batch = bench.batch(second)
    assert float(bench.method.penalties(batch)["ewc:classes0"]) == 0
    (entry,) = bench.method.past
    bench.move(("common", "heads"))
    expected = sum(
        3.5 * (f * (bench.model.get_parameter(n) - entry["values"][n]) ** 2).sum() for n, f in entry["fisher"].items()
    )
    found = bench.method.penalties(batch)["ewc:classes0"]
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert float(found) > 0
    part = bench.method.penalties(replace(batch, share=0.9, row_share=0.25))["ewc:classes0"]
    assert float(part) == pytest.approx(float(expected) / 4, rel=1e-5)
    (update,) = bench.method.step(batch, ())
    assert float(update.parts["ewc:classes0"]) == pytest.approx(float(expected), rel=1e-5)
    found.backward()
    name = "common.weight"
    way = bench.model.get_parameter(name) - entry["values"][name]
    assert torch.allclose(bench.model.common.weight.grad, 7 * entry["fisher"][name] * way.detach(), rtol=1e-4)


def test_what_no_experience_to_come_trains_is_not_kept_and_what_rests_is_not_held():
    bench = Bench(points(EWC, model_options=PointOptions(copies=True), labels=1, classes=1, tokens=1))
    labels, classes, tokens = bench.toy.stream.experiences
    bench.begin(labels)
    bench.end(labels)
    (entry,) = bench.method.past
    # Its head and copies belong to the past; the part that only tasks with labels train would not learn again either.
    assert {name.split(".")[0] for name in entry["fisher"]} == {"common"}
    bench.begin(classes)
    bench.end(classes)
    assert [e["experience"] for e in bench.method.past] == ["labels0", "classes0"]
    bench.begin(tokens)
    bench.model.common.weight.requires_grad_(False)
    bench.move(("common.weight",))
    assert float(bench.method.penalties(bench.batch(tokens))["ewc:labels0"]) == 0  # it rests, so nothing holds it
    bench.end(tokens)
    assert len(bench.method.past) == 2  # nothing comes after: nothing is computed


def test_online_consolidation_decays_the_past_and_follows_the_latest_values():
    runs = [Bench(points(EWC, EWCOptions(decay=decay), classes=3)) for decay in (None, 0.5)]
    for bench in runs:
        for experience in bench.toy.stream.experiences[:2]:
            bench.begin(experience)
            bench.end(experience)
            bench.move(("common",))
    first, second = runs[0].method.past
    (entry,) = runs[1].method.past
    assert entry["experience"] == "classes1"
    for name, value in entry["fisher"].items():
        assert torch.allclose(value, 0.5 * first["fisher"][name] + second["fisher"][name])
        assert torch.equal(entry["values"][name], second["values"][name])


def test_online_consolidation_keeps_what_rested_meanwhile():
    bench = Bench(points(EWC, EWCOptions(decay=0.5), labels=2, classes=1))
    order = [bench.toy.stream.experience(name) for name in ("labels0", "classes0")]
    for experience in order:
        bench.begin(experience)
        bench.end(experience)
        held = {n: v.clone() for n, v in bench.method.past[0]["fisher"].items() if n.startswith("part")}
        if experience.name == "labels0":
            before = held
    assert before.keys() == held.keys() == {"part.weight", "part.bias"}
    assert all(torch.allclose(held[name], 0.5 * value) for name, value in before.items())


def test_a_widened_tensor_is_held_where_it_was():
    bench = Bench(points(EWC, EWCOptions(strength=2.0), classes=2))
    first, second = bench.toy.stream.experiences
    bench.begin(first)
    bench.end(first)
    name, (entry,) = "heads.classes.linear.weight", bench.method.past
    head = bench.model.heads["classes"].linear
    fisher = entry["fisher"][name]
    head.weight = torch.nn.Parameter(torch.cat([head.weight.detach() + 1, torch.full((2, 3), 5.0)]))
    bench.begin(second)
    parts = bench.method.penalties(bench.batch(second))
    assert float(parts["ewc:classes0"]) == pytest.approx(float(fisher.sum()), rel=1e-5)


def test_ranks_add_up_their_samples():
    class Rank(Collective):
        def __init__(self, rank):
            self.rank, self.world = rank, 2

    def fisher(collective):
        bench = Bench(points(EWC, classes=2))
        bench.method.collective = collective
        first = bench.toy.stream.experiences[0]
        bench.begin(first)
        bench.end(first)
        return bench.method.past[0]["fisher"]["common.weight"]

    whole, one, two = fisher(Collective()), fisher(Rank(0)), fisher(Rank(1))
    assert torch.allclose(one + two, whole)
    assert not torch.allclose(one, whole)


def test_dropout_and_the_gradient_of_others_do_not_enter_and_no_mode_changes():
    bench = Bench(points(EWC, labels=2))
    first = bench.toy.stream.experiences[0]
    bench.begin(first)
    bench.model.train()
    bench.end(first)
    again = Bench(points(EWC, labels=2))
    again.begin(first)
    again.end(first)
    assert all(torch.equal(v, again.method.past[0]["fisher"][n]) for n, v in bench.method.past[0]["fisher"].items())
    assert bench.model.heads["labels"].drop.training


def test_fisher_information_that_is_not_finite_stops():
    bench = Bench(points(EWC, classes=2))
    first = bench.toy.stream.experiences[0]
    bench.begin(first)
    with torch.no_grad():
        bench.model.common.weight.fill_(float("nan"))
    with pytest.raises(RunError, match=r"classes0: the Fisher information of \S+ is not finite"):
        bench.end(first)


def test_the_penalty_holds_the_shared_map_back(tmp_path):
    ways = []
    for number, strength in enumerate((1e-6, 1e3)):
        trainer = points(EWC, EWCOptions(strength=strength), None, 12, "last", 0.02, labels=1, classes=1).trainer(
            tmp_path / str(number)
        )
        trainer.run()
        values = trainer.method.past[0]["values"]
        now = Owners(trainer.method.model).match(("shared",))
        ways.append(sum(float((now[name] - value).square().sum()) for name, value in values.items()))
    assert ways[1] < 0.6 * ways[0], ways


@pytest.mark.parametrize("options", [EWCOptions(), EWCOptions(decay=0.9, samples=4)], ids=["ewc", "online"])
def test_a_run_keeps_the_contract(options, tmp_path):
    check_method(points(EWC, options, PointOptions(copies=True), labels=1, classes=2, value=1), tmp_path, stops=5)


def test_micro_batches_add_up(tmp_path):
    check_pieces(points(EWC, classes=1, tokens=1), tmp_path)
