"""What of PHP learns and what stays (php.md 9.2): parameters, texts, and what a task owns once it is learnt."""

import importlib.util
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from avcl_core.features import FeatureSpec
from avcl_core.methods.base import Method
from avcl_core.ownership import Owners, train_mode
from avcl_core.testing.rules import fingerprint

_spec = importlib.util.spec_from_file_location("php_toys", Path(__file__).with_name("php_toys.py"))
toys = importlib.util.module_from_spec(_spec)
sys.modules["php_toys"] = toys
_spec.loader.exec_module(toys)
replace = toys.replace

BOTH = toys.BOTH


# ------------------------------------------------------------------ 9.2-5, what learns
@BOTH
@pytest.mark.parametrize("experience", ["spoken0", "labels0", "mask0"])
def test_with_gates_at_a_tenth_every_parameter_learns_and_nothing_else_does(towers, experience):
    run = toys.toy("spoken", "labels", "mask", towers=towers)
    method = toys.grown(run, 0.0, gates=0.1)
    if experience == "mask0":
        method.model.heads["mask"] = toys.own(LastTokens(method.model.spec()).double(), "head:mask")
    known = run.stream.experience(experience)
    patterns = method.active(known)
    owners = Owners(method.model)
    owners.set_trainable(patterns)
    train_mode(method.model, patterns)
    totals = {}
    batch = toys.samples(run, known, 6)
    spread_keys(method, batch)
    sum(method.losses(batch).values()).backward()
    for name, parameter in owners.match(patterns).items():
        assert parameter.grad is not None, name
        totals[name] = float(parameter.grad.abs().max())
        if name.endswith("keys"):
            assert bool((parameter.grad != 0).any(1).all()), name
        if ".rows." in name:  # [keys and values, entries, rows, channels]: every entry was chosen by somebody
            assert bool((parameter.grad != 0).flatten(2).any(2).all()), name
    dead = [name for name, size in totals.items() if not size > 0]
    assert not dead
    others = [p for p in method.model.parameters() if not any(p is q for q in owners.match(patterns).values())]
    assert all(p.grad is None for p in others)
    owned = {row.owner for row in owners.rows.values() if row.name in totals}
    text = {"task:spoken", "shared:text"} if experience == "spoken0" else {f"head:{known.task}"}
    assert owned == {"shared", f"task:{experience}"} | text


class LastTokens(nn.Module):
    """Reads what PHP's heads read: the last tokens before the final norms."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(spec.stages[n][-1].width, 64) for n in ("visual", "audio"))

    def forward(self, features, batch):
        parts = [
            layer(features.stages[n][-1].mean(2)) for layer, n in zip(self.layers, ("visual", "audio"), strict=True)
        ]
        return {"mask": sum(parts).unflatten(2, (8, 8))}


def spread_keys(method, batch):
    """Keys at the samples' own queries, so that every entry of a pool is chosen by somebody."""
    ctx = method.context(batch, False)
    with torch.no_grad():
        method.model.features(batch, ctx)
        reads = {"visual": ctx.memo["embedded visual"], "audio": toys.pooled(method, ctx)}
        for name, read in reads.items():
            pool = method.model.pools[name].slots[batch.experience]
            queries = read.unflatten(0, (len(batch), -1)).mean((1, 2))
            pool.keys.copy_(queries[: len(pool.keys)] * 1.1)


def test_keys_learn_from_the_pull_alone():
    run = toys.toy(deep={"pull": 0.0})
    method, batch = toys.grown(run), toys.samples(run, "spoken0", 4)
    sum(method.losses(batch).values()).backward()
    for name in ("visual", "audio"):
        assert method.model.pools[name].slots["spoken0"].keys.grad is None
    assert not [n for n in method.losses(batch) if "pull" in n]


# ------------------------------------------------------------------ 9.2-6, evaluation
@pytest.mark.parametrize("experience", ["spoken0", "mask0"])
def test_evaluating_twice_is_equal_and_changes_nothing(experience):
    run = toys.toy()
    method, batch = toys.grown(run, double=False), toys.samples(run, experience, 4, "test", double=False)
    method.model.train()
    before, state = fingerprint(method.model), torch.get_rng_state()
    one, two = method.predict(batch), method.predict(batch)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), state)
    after = fingerprint(method.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_towers_stay_in_eval_mode_while_all_else_trains():
    method = toys.grown(toys.toy())
    train_mode(method.model, ["*"])
    for tower in method.model.towers.values():
        assert not any(module.training for module in tower.modules())
        assert not any(p.requires_grad for p in tower.parameters())
    assert method.model.text["visual"].training


# ------------------------------------------------------------------ class texts
def test_texts_are_encoded_again_exactly_when_their_context_changed(monkeypatch):
    run = toys.toy()
    method, batch = toys.grown(run), toys.samples(run, "spoken0", 2, "test")
    prompts, counted = method.model.prompts["spoken"], []
    encode = prompts.encode
    monkeypatch.setattr(prompts, "encode", lambda context: counted.append(1) or encode(context))
    one = toys.features(method, batch).similarity["visual"]
    assert torch.equal(toys.features(method, batch).similarity["visual"], one)
    assert len(counted) == 1
    with torch.no_grad():
        method.model.contexts["spoken"].vectors.mul_(-1.5)
    two = toys.features(method, batch).similarity["visual"]
    assert len(counted) == 2
    assert float((one - two).abs().max()) > 1e-3
    with torch.no_grad():
        method.model.text["names"][0].weight.add_(0.5)  # behind what is kept
    three = toys.features(method, batch).similarity["visual"]
    assert len(counted) == 2
    assert float((three - two).abs().max()) > 1e-3
    for _ in range(2):  # a step that learns encodes anew, with a gradient
        assert toys.features(method, batch, training=True, grad=True).similarity["visual"].requires_grad
    assert len(counted) == 4


def test_texts_follow_a_snapshot_of_the_context():
    from avcl_core.ownership import Snapshot

    run = toys.toy()
    method, batch = toys.grown(run), toys.samples(run, "spoken0", 2, "test")
    state = Owners(method.model).state()
    ctx = partial(method.context, batch, False)
    with torch.no_grad():
        before = method.model.eval()(batch, ctx())["logits"]
        method.model.contexts["spoken"].vectors.mul_(-2)
        after = method.model(batch, ctx())["logits"]
    teacher = Snapshot(state).call(method.model, batch, ctx())["logits"]
    with torch.no_grad():
        again = method.model(batch, ctx())["logits"]
    torch.testing.assert_close(teacher, before, rtol=0, atol=1e-10)
    assert torch.equal(again, after)
    assert float((after - before).abs().max()) > 1e-3


def test_blanks_stand_for_underscores_and_the_context_stands_in_front_of_the_name():
    method = toys.grown(toys.toy())
    text, prompts = method.model.towers["visual"].text, method.model.prompts["spoken"]
    ids = text.tokenize(["baby cry."])
    assert torch.equal(prompts.ids[1, 5 : 5 + 10], ids[0, 1:11])
    assert int(prompts.ids[1, 0]) == int(ids[0, 0])
    assert prompts.ids.shape[1] == 1 + 4 + len("church bell, big.") + 1


# ------------------------------------------------------------------ 9.2-7, 4.4: the life of parameters
class Watch(Method):
    """Remembers the owned tensors after every experience."""

    states: ClassVar[dict] = {}

    def after(self, experience, data):
        super().after(experience, data)
        Watch.states[experience.name] = Owners(self.model).state()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two tasks with texts and one without, trained one after the other."""
    run = toys.toy("spoken", "spoken more", "labels")
    run = replace(run, method=Watch, training=run.training.model_copy(update={"epochs": 1}))
    Watch.states = {}
    trainer = run.trainer(tmp_path_factory.mktemp("run"))
    trainer.run()
    return run, trainer, Watch.states


ORDER = ("spoken0", "spoken more0", "labels0")


def test_what_a_task_owns_never_changes_after_it(trained):
    run, trainer, states = trained
    owners = {row.name: row.owner for row in Owners(trainer.method.model).rows.values()}
    for number, name in enumerate(ORDER[:-1]):
        task = run.stream.experience(name).task
        mine = [n for n, owner in owners.items() if owner in (f"task:{name}", f"task:{task}", f"head:{task}")]
        assert len(mine) > 10
        for later in ORDER[number + 1 :]:
            assert not [n for n in mine if not torch.equal(states[name][n], states[later][n])]
    text = [n for n, owner in owners.items() if owner == "shared:text"]
    shared = [n for n, owner in owners.items() if owner == "shared"]
    assert all(not torch.equal(states["spoken0"][n], states["spoken more0"][n]) for n in text)
    assert all(torch.equal(states["spoken more0"][n], states["labels0"][n]) for n in text)
    for one, two in pairwise(ORDER):
        moved = [n for n in shared if not torch.equal(states[one][n], states[two][n])]
        assert len(moved) > 0.9 * len(shared)


def test_forgetting_comes_from_what_is_shared_alone(trained):
    run, trainer, states = trained
    method, owners = trainer.method, Owners(trainer.method.model)
    batch = toys.samples(run, "spoken0", 4, "test", double=False)
    method.model.eval()

    def answers():
        with torch.no_grad():
            return method.model(batch, method.context(batch, False))["logits"]

    owners.set_trainable(())  # products of matrices are ordered by it
    latest, now = answers(), owners.state()
    then = {n: states["spoken0"].get(n, v) for n, v in now.items()}
    rows = owners.rows
    owners.load({n: then[n] if rows[n].owner.startswith("shared") else v for n, v in now.items()})
    restored = answers()
    fresh = run.build()
    for experience in run.stream.experiences:
        fresh.model.grow(experience)
    Owners(fresh.model).load(then | {n: v for n, v in now.items() if n not in states["spoken0"]})
    Owners(fresh.model).set_trainable(())
    fresh.model.eval()
    with torch.no_grad():
        at_its_time = fresh.model(batch, fresh.context(batch, False))["logits"]
    owners.load(now)
    assert torch.equal(restored, at_its_time)
    assert float((latest - restored).abs().max()) > 1e-4


@pytest.mark.parametrize("init", ["warm", "fresh"])
def test_prompts_of_a_new_task_start_from_the_last_ones_or_anew(init):
    run = toys.toy("spoken", "labels", "classes", task_init=init)
    model = run.build().model
    for experience in run.stream.experiences:
        model.grow(experience)
        with torch.no_grad():  # as training moves what was copied
            before = {n: p.clone() for n, p in Owners(model).match().items()}
            for parameter in Owners(model).match().values():
                parameter.add_(0.1 * torch.randn_like(parameter))
    for bank in (model.mid_prompts, *model.pools.values()):
        _, last, new = (dict(bank.slots[name].named_parameters()) for name in ("spoken0", "labels0", "classes0"))
        names = {id(p): n for n, p in model.named_parameters()}
        same = [torch.equal(before[names[id(last[n])]], before[names[id(new[n])]]) for n in new]
        assert all(same) if init == "warm" else not any(same)
        assert not any(p is q for p in last.values() for q in new.values())


def test_a_context_is_of_its_task_and_starts_anew():
    run = toys.toy("spoken", "spoken more", "labels")
    model = toys.grown(run, 0.0).model
    assert list(model.contexts) == ["spoken", "spoken more"]
    one, two = (model.contexts[n].vectors for n in model.contexts)
    assert not torch.equal(one, two)
    assert one.shape == (4, 32)
    drawn = torch.cat([one, two]).std()
    assert 0.015 < float(drawn.detach()) < 0.025
    shared = toys.grown(toys.toy("spoken", "labels", context={"per": "shared"})).model
    assert not len(shared.contexts)
    assert "text.context.vectors" in Owners(shared).match(["shared:text"])
