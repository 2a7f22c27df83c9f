"""Closed experts: they begin as the frozen towers, learn alone, and heads are those of the task that is asked."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from avcl_core.collective import Collective
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError
from avcl_core.evaluation.predicting import SlotBySlot
from avcl_core.methods.base import Method
from avcl_core.models.closed_experts import ClosedExperts, ClosedExpertsOptions
from avcl_core.ownership import Owners, train_mode
from avcl_core.routing import BASE
from avcl_core.seeding import seed_step
from avcl_core.testing import toy_task, toy_towers
from avcl_core.testing.toy_data import CLASSES
from avcl_core.testing.toy_heads import Pool
from avcl_core.testing.toy_tasks import TOY_TASKS
from avcl_core.testing.toy_towers import resnet
from avcl_core.training.inputs import make_inputs
from avcl_core.training.loader import Loader
from avcl_core.training.session_data import SessionData

TOWERS = toy_towers()
"""Frozen, so all tests can share them."""


class FusedHead(nn.Module):
    """Classes behind a layer that experts copy."""

    fusion = ("fuse",)

    def __init__(self, spec):
        super().__init__()
        self.pool, self.fuse, self.out = Pool(spec, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)

    def forward(self, features, batch):
        return {"logits": self.out(torch.tanh(self.fuse(self.pool(features).mean(1))))}


class Fused(TOY_TASKS["classes"]):
    def head(self, spec, experience):
        return FusedHead(spec)


def build(tasks, **expert):
    tasks = {task.name: task for task in tasks}
    seed_step(0, "model")
    model = ClosedExperts(TOWERS, tasks, ClosedExpertsOptions.model_validate({"expert": expert}))
    return Method(model, tasks, Options(), 0)


def experiences(method):
    return {e.name: e for task in method.tasks.values() for e in task.experiences()}


def loader(method):
    return Loader(method.tasks, make_inputs(TOWERS, {}, 8000, None), torch.device("cpu"), 0)


def learn(method, name, steps=2):
    """Grow, calibrate and train one experience, as a trainer does."""
    experience = experiences(method)[name]
    seed_step(0, "grow", name)
    method.model.grow(experience)
    data = SessionData(loader(method), experience, 3, lambda: None)
    method.model.eval()
    method.model.calibrate(experience, data, True)
    owners, patterns = Owners(method.model), method.active(experience)
    owners.set_trainable(patterns)
    train_mode(method.model, patterns)
    optimizer = torch.optim.AdamW(list(owners.match(patterns).values()), lr=1e-2)
    for given in list(data.batches())[:steps]:
        optimizer.zero_grad()
        torch.stack(list(method.losses(given).values())).sum().backward()
        optimizer.step()
    owners.set_trainable(())
    method.model.eval()
    return method


def asked(method, name, count=4):
    found = experiences(method)[name]
    return next(iter(loader(method).batches(found, "test", count, found.test[:count]))).question(True)


def logits(method, given, *slots):
    slots = slots if len(slots) == len(given) else slots * len(given)
    with torch.no_grad():
        return method.model(given, method.context(given, False, slots))["logits"]


def state(method, pattern):
    return Owners(method.model).state((pattern,))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def two(kind="classes"):
    return [toy_task("labels"), toy_task(kind)]


@pytest.mark.parametrize("rank", [None, 2], ids=["whole", "low rank"])
def test_a_new_expert_is_the_frozen_towers_in_every_even_block(rank):
    method = build([toy_task("labels")], rank=rank)
    method.model.grow(experiences(method)["labels0"])
    method.model.eval()
    blocks = {(tower, step) for tower, step, _ in method.model.sites}
    assert blocks == {(name, f"{block}.mlp") for name in ("visual", "audio") for block in (0, 2)}
    given = asked(method, "labels0")
    torch.testing.assert_close(logits(method, given, "labels0"), logits(method, given, BASE), atol=0, rtol=0)
    found = method.model.features(given, method.context(given, False, (BASE,) * 4)).final
    for name, tower in TOWERS.items():
        tokens, aux = tower.embed(given.inputs[name].flatten(0, 1))
        for sub in tower.subs:
            tokens = tower.join(sub, tokens, tower.run(sub, tokens, aux))
        torch.testing.assert_close(found[name].flatten(0, 1), tower.final(tokens))


@pytest.mark.parametrize("head", ["task", "fusion", "experience"])
def test_an_experience_teaches_its_own_expert_alone(head):
    method = learn(build([toy_task("labels"), Fused("classes", 2)], head=head), "classes0")
    before, frozen = state(method, "expert:classes0"), Owners(method.model).frozen_digests()
    untaught = asked(method, "classes0")
    answers, features = logits(method, untaught, "classes0"), logits(method, untaught, BASE)
    learn(method, "labels0")
    assert same(before, state(method, "expert:classes0"))
    assert Owners(method.model).frozen_digests() == frozen
    # Every anchor and, of another task, every answer too: nothing is forgotten where the experience is told.
    assert any("anchors" in name for name in before)
    assert torch.equal(answers, logits(method, untaught, "classes0"))
    assert torch.equal(features, logits(method, untaught, BASE))
    assert not torch.equal(answers, logits(method, untaught, "labels0"))
    # Of the same task only where experts share nothing of its head.
    learn(method, "classes1")
    assert same(before, state(method, "expert:classes0"))
    assert torch.equal(answers, logits(method, untaught, "classes0")) == (head == "experience")


def test_the_order_of_experiences_changes_no_bit_of_an_expert():
    def run(*order):
        method = build([toy_task("labels"), Fused("classes", 2)], head="experience", rank=2)
        for name in order:
            learn(method, name)
        return method

    one, other = run("labels0", "classes0", "classes1"), run("classes1", "labels0", "classes0")
    for name in ("labels0", "classes0", "classes1"):
        assert len(state(one, f"expert:{name}")) > 8
        assert same(state(one, f"expert:{name}"), state(other, f"expert:{name}")), name


def test_a_missing_modality_leaves_the_mean_and_seconds_leave_theirs():
    method = build(two())
    for name in experiences(method):
        learn(method, name, 0)
    given = asked(method, "labels0")
    whole = method.routes(given)
    assert whole is not None
    assert whole.candidates == ("labels0", "classes0")
    torch.testing.assert_close(whole.scores["all"], (whole.scores["visual"] + whole.scores["audio"]) / 2)
    there = torch.tensor([True, False, True, True])
    part = method.routes(replace(given, present={"visual": there}))
    assert part is not None
    torch.testing.assert_close(part.scores["all"][1], whole.scores["audio"][1])
    torch.testing.assert_close(part.scores["all"][there], whole.scores["all"][there])
    assert part.scores["visual"][1].isnan().all()
    seconds = torch.tensor([[True, False]] * 4)
    first = replace(given, inputs={**given.inputs, "visual": given.inputs["visual"][:, :1]})
    torch.testing.assert_close(
        method.model.pooled(replace(given, present={"visual": seconds})).vectors["visual"],
        method.model.pooled(first).vectors["visual"],
    )


@pytest.mark.parametrize("head", ["task", "fusion", "experience"])
def test_rows_of_a_batch_go_to_their_own_experts(head):
    method = build([toy_task("labels"), Fused("classes", 2)], head=head)
    for name in experiences(method):
        learn(method, name, 1)
    given = asked(method, "classes1")
    slots = ("classes1", "labels0", BASE, "classes0")
    mixed = logits(method, given, *slots)
    for row, slot in enumerate(slots):
        torch.testing.assert_close(
            mixed[row : row + 1], logits(method, given.select([row]), slot), atol=1e-5, rtol=1e-4
        )
    # Questions about one clip are one pass only where one expert answers them.
    shared = replace(given.select([0, 0]), media=("clip", "clip"))
    apart = logits(method, shared, "classes0", "classes1")
    torch.testing.assert_close(apart[1:], logits(method, given.select([0]), "classes1"), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits(method, shared, "classes1")[:1], apart[1:], atol=1e-5, rtol=1e-4)


def test_a_known_prediction_is_forgotten_when_the_head_learns():
    method = learn(learn(build(two()), "labels0"), "classes0")
    load, experience = loader(method), experiences(method)["classes0"]
    by = SlotBySlot(lambda e, split, keys: load.batches(e, split, 4, keys), True, Collective(), lambda: None)
    sent = dict.fromkeys(experience.test, "labels0")
    first = by.of_slots(method, experience, "test", sent)
    with torch.no_grad():
        weight = method.model.heads["classes"].pool.linear
        weight.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1e3]))
    again = by.of_slots(method, experience, "test", sent)
    assert {int(found["class"]) for found in again.values()} == {3}
    assert any(int(found["class"]) != 3 for found in first.values())


def test_what_cannot_be_is_refused_or_told():
    assert ClosedExpertsOptions.model_validate({"anchors": {"score": "lda"}}).anchors.reads == ("visual", "audio")
    several = {"classes": toy_task("classes", 2)}
    with pytest.raises(ConfigError, match=r"model\.anchors\.reads names \['text'\]"):
        ClosedExperts(TOWERS, several, ClosedExpertsOptions.model_validate({"anchors": {"reads": ["text"]}}))
    with pytest.raises(ConfigError, match=r"towers\.visual learns"):
        ClosedExperts({"visual": toy_towers()["visual"].set_trainable(True)}, several, ClosedExpertsOptions())
    assert "mlp" not in {sub.kind for sub in resnet().subs}
    assert ClosedExperts.requires.kinds == ("mlp",)
    (note,) = ClosedExperts.remarks(ClosedExpertsOptions(), several, {"classes": 4})
    assert "classes: several experiences train one head" in note
    own = ClosedExpertsOptions.model_validate({"expert": {"head": "experience"}})
    assert ClosedExperts.remarks(own, several, {"classes": 4}) == ()
