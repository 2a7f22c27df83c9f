"""Deliberately broken plug-ins: each check must say which rule they break."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from avcl_core.methods.base import Method, Update
from avcl_core.methods.er import ExperienceReplay, ReplayOptions
from avcl_core.methods.finetune import Finetune
from avcl_core.models.base import Model
from avcl_core.models.residual_adapters import ResidualAdapters
from avcl_core.ownership import Owners, own
from avcl_core.testing import (
    ToyRun,
    check_method,
    check_model,
    check_ownership,
    check_pieces,
    check_state,
    check_task,
    check_tower,
    toy_task,
    toy_towers,
)
from avcl_core.testing.toy_data import RATE
from avcl_core.testing.toy_tasks import ToyAnswers, ToyClasses, ToyLabels
from avcl_core.testing.toy_towers import clip, resnet, swin


def towers():
    return {"visual": clip()}


def tasks(count=2):
    return {"classes": ToyClasses("classes", count)}


# ---------------------------------------------------------------- towers
def lies_about_width(tower):
    from dataclasses import replace as change

    tower.subs = (change(tower.subs[0], width=99), *tower.subs[1:])


def wakes_up(tower):
    tower.train = lambda mode=True: nn.Module.train(tower, mode)


def takes_gradients(tower):
    tower.net.requires_grad_(True)


def mixes_samples(tower):
    final = tower.final
    tower.final = lambda tokens: final(tokens) + tokens.mean()


def adds_twice(tower):
    encode = tower.encode
    tower.encode = lambda x: encode(x) + 1e-3


def ignores_prefix(tower):
    run = tower.run
    tower.run = lambda sub, tokens, aux, prefix=None, swap=None: run(sub, tokens, aux, None, swap)


def swaps_behind_the_norm(tower):
    run = tower.run
    tower.run = lambda sub, tokens, aux, prefix=None, swap=None: (
        run(sub, tokens, aux, prefix) if swap is None else swap(tokens)
    )


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lies_about_width, "attn of block 0 declares"),
        (wakes_up, "must leave it in eval mode"),
        (takes_gradients, "take gradients"),
        (mixes_samples, "must not depend on its batch"),
        (adds_twice, "a walk without sites must equal encode"),
        (ignores_prefix, "a prefix on the attention of block 0 has no effect"),
        (swaps_behind_the_norm, "swapping the MLP of block 0 by itself must change nothing"),
    ],
)
def test_towers(harm, sentence):
    tower = swin()
    check_tower(tower)
    harm(tower)
    with pytest.raises(AssertionError, match=f"tower swin_v2: .*{sentence}"):
        check_tower(tower)


def test_a_tower_whose_statistics_move():
    tower = resnet()
    tower.eval = lambda: tower
    tower.net.train()
    tower.train = lambda mode=True: tower
    with pytest.raises(AssertionError, match="must leave it in eval mode"):
        check_tower(tower)


# ---------------------------------------------------------------- tasks
class CountsSamples(ToyAnswers):
    def loss(self, outputs, targets):
        return {"nll": self.nll(outputs, targets).mean()}  # per sample, while units counts supervised tokens


class MeanNll(ToyClasses):
    def nll(self, outputs, targets):
        return functional.cross_entropy(outputs["logits"], targets["class"])


class CentredNll(ToyClasses):
    def nll(self, outputs, targets):
        found = super().nll(outputs, targets)
        return found - found.mean()


class NoPrimary(ToyClasses):
    primary = "accuracy"


class OrderedScore(ToyClasses):
    def score(self, predictions, targets):
        return {"score": float(next(iter(targets))[-1])}


class PeekingHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, features, batch):
        hint = batch.targets["class"] if batch.targets else torch.zeros(len(batch))
        return {"logits": torch.ones(len(batch), 4) * self.weight + hint[:, None]}


class Peeks(ToyClasses):
    def head(self, spec, experience):
        return PeekingHead()


class Leaks(ToyClasses):
    def experiences(self):
        return tuple(replace(e, test=e.train[:2]) for e in super().experiences())


class RandomInputs(ToyLabels):
    def dataset(self, split):
        made = super().dataset(split)
        made.inputs = lambda key, rng: {"visual": np.random.default_rng().integers(0, 9, (2, 32, 32, 3), np.uint8)}
        return made


class RelativeDecode(ToyClasses):
    def decode(self, outputs):
        return {"class": (outputs["logits"] - outputs["logits"].mean(0)).argmax(-1)}


class NoJson(ToyClasses):
    def pack(self, prediction):
        return dict(prediction)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (CountsSamples, "are no means over units"),
        (MeanNll, "nll must be one number per sample"),
        (CentredNll, "nll must not depend on the other samples"),
        (NoPrimary, "score must include the primary metric 'accuracy'"),
        (OrderedScore, "must not depend on the order"),
        (Peeks, "the head must not read targets"),
        (Leaks, "trains on validation or test samples"),
        (RandomInputs, "inputs must be a function of key and rng alone"),
        (RelativeDecode, "decode must treat samples independently"),
        (NoJson, "pack must return what JSON can hold"),
    ],
)
def test_tasks(kind, sentence):
    assert kind.audio_rate == RATE
    with pytest.raises(AssertionError, match=f"task broken: .*{sentence}"):
        check_task(kind("broken", samples=(6, 3, 4)), towers())


def test_the_input_that_a_head_reads_must_be_declared():
    task = toy_task("tokens")
    task.needs = ()
    with pytest.raises(AssertionError, match="the head reads the input 'question'; name it in needs"):
        check_task(task, toy_towers())


# ---------------------------------------------------------------- models
class Orphan(ResidualAdapters):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.extra = nn.Linear(2, 2)


class GrowsFromTheClock(ResidualAdapters):
    def grow(self, experience):
        super().grow(experience)
        with torch.no_grad():
            self.heads[experience.task].pool.linear.bias.copy_(torch.from_numpy(np.random.default_rng().random(4)))


class GrowsTwice(ResidualAdapters):
    def grow(self, experience):
        super().grow(experience)
        self.place("visual", "0.mlp", "add", own(type(next(iter(self.parts.values())))(16, 2), "shared"))


class ResetsOld(ResidualAdapters):
    def grow(self, experience):
        super().grow(experience)
        nn.init.normal_(next(iter(self.parts.values())).down.weight)


class NormalisesTheBatch(ResidualAdapters):
    def read(self, features, batch, ctx):
        outputs = super().read(features, batch, ctx)
        return {name: value - value.mean(0) for name, value in outputs.items()}


class Remembers(ResidualAdapters):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.counter = own(nn.Module(), "shared")
        self.counter.register_buffer("calls", torch.zeros(()))

    def forward(self, batch, ctx):
        self.counter.calls += 1
        return super().forward(batch, ctx)


class Detached(ResidualAdapters):
    def read(self, features, batch, ctx):
        return {
            name: value.detach() + 0 * torch.ones((), requires_grad=True)
            for name, value in super().read(features, batch, ctx).items()
        }


class NobodyLearns(ResidualAdapters):
    def active(self, experience):
        return ("task:nobody",)


class ShakesTheTower(ResidualAdapters):
    def forward(self, batch, ctx):
        if ctx.training:
            with torch.no_grad():
                next(self.towers["visual"].parameters()).add_(1e-3)
        return super().forward(batch, ctx)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Orphan, "every trainable tensor needs an owner: .*extra"),
        (GrowsFromTheClock, "must follow from the seed alone|must be like growing it once|changed values"),
        (GrowsTwice, "must be like growing it once"),
        (ResetsOld, "changed values that were there before"),
        (NormalisesTheBatch, "the size of a batch must not change predictions"),
        (Remembers, "prediction must change no state"),
        (Detached, "no gradient reaches what learns"),
        (NobodyLearns, "no tensor learns during"),
        (ShakesTheTower, "a training pass changed frozen tensors"),
    ],
)
def test_models(kind, sentence):
    check_model(ResidualAdapters, towers, tasks())
    with pytest.raises(AssertionError, match=f"model {kind.__name__}: .*({sentence})"):
        check_model(kind, towers, tasks())


def test_a_site_that_nothing_runs_is_refused():
    class Lost(Model):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.place("visual", self.where[0], self.where[1], own(nn.Linear(16, 16), "shared"))

    for where, message in (
        (("9.attn", "add"), "no such step"),
        (("0.mlp", "prefix"), "runs \\['mlp'\\] of this tower, so nothing acts here"),
        (("0.attn", "swap"), "runs \\['attn'\\] of this tower"),
    ):
        Lost.where = where
        with pytest.raises(ValueError, match=message):
            Lost(towers(), tasks(), Lost.Config())


# ---------------------------------------------------------------- methods
class ForgetsMemory(ExperienceReplay):
    def state(self):
        return {}

    def load(self, state):
        pass


class HalfLoads(ExperienceReplay):
    def load(self, state):
        pass


class DrawsFreely(Method):
    draws = np.random.default_rng(0)

    def step(self, current, replayed):
        yield Update({name: value * self.draws.random() for name, value in self.losses(current).items()})


class NoShare(Method):
    def objective(self, outputs, batch, ctx, prefix=""):
        return {name: value / batch.share for name, value in super().objective(outputs, batch, ctx, prefix).items()}


class TouchesOthers(Method):
    def active(self, experience):
        return ("shared", f"head:{experience.task}")

    def after(self, experience, data):
        with torch.no_grad():
            for row in Owners(self.model).match(("head:labels",)).values():
                row.add_(1)


class KeepsObjects(Method):
    def state(self):
        return {"when": object()}


class NumberKeys(Method):
    def state(self):
        return {"counts": {3: 1}}


RUN = ToyRun(towers, ResidualAdapters, Finetune, {"labels": ToyLabels("labels"), "classes": ToyClasses("classes")})
SMALL = ReplayOptions(memory=4, replay_batch=2)


def test_a_method_that_forgets_its_memory(folder):
    with pytest.raises(AssertionError, match=r"method ForgetsMemory: stopped in phase .* ends differently"):
        check_method(replace(RUN, method=ForgetsMemory, method_options=SMALL), folder, stops=2)


def test_a_method_that_does_not_load_what_it_saves(folder):
    toy = replace(RUN, method=HalfLoads, method_options=SMALL)
    toy.trainer(folder).run()
    with pytest.raises(AssertionError, match="method HalfLoads: load\\(state\\(\\)\\) in a new object must restore"):
        check_state(toy, folder)


def test_a_method_with_a_generator_of_its_own(folder):
    with pytest.raises(AssertionError, match="method DrawsFreely: stopped in phase"):
        check_method(replace(RUN, method=DrawsFreely), folder, stops=1)


def test_a_method_that_leaves_out_the_share(folder):
    check_pieces(RUN, folder / "right")
    with pytest.raises(AssertionError, match="method NoShare: micro-batches do not add up"):
        check_pieces(replace(RUN, method=NoShare), folder / "wrong")


def test_a_method_that_changes_what_is_not_its_own(folder):
    check_ownership(RUN, folder / "right")
    with pytest.raises(
        AssertionError, match=r"method TouchesOthers: classes0: after\(\).*heads\.labels.*\(head:labels\)"
    ):
        check_ownership(replace(RUN, method=TouchesOthers), folder / "wrong")


@pytest.mark.parametrize(
    ("kind", "message"), [(KeepsObjects, "holds a object"), (NumberKeys, "has the key 3; use strings")]
)
def test_states_that_would_not_come_back(kind, message, folder):
    with pytest.raises(TypeError, match=message):
        replace(RUN, method=kind).trainer(folder).run()
