"""PHP equals the plain formulation of its whole forward: outputs, every term of the loss, and all gradients."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from avcl_core.ownership import Owners, train_mode

_spec = importlib.util.spec_from_file_location("php_toys", Path(__file__).with_name("php_toys.py"))
toys = importlib.util.module_from_spec(_spec)
sys.modules["php_toys"] = toys
_spec.loader.exec_module(toys)
direct = toys.direct_module()

BOUND = 1e-10
CASES = {
    "tiny": (toys.tiny_towers, {}),
    "shifted": (toys.shifted_towers, {}),
    "shared prompts and context": (toys.shifted_towers, {"prompts": "shared", "context": {"per": "shared"}}),
    "two entries, tied": (toys.shifted_towers, {"deep": {"top_k": 2, "same_key_value": True}}),
    "one entry": (toys.shifted_towers, {"deep": {"pool_size": 1}}),
    "visual prompts only": (toys.shifted_towers, {"deep": {"modalities": ["visual"]}}),
    "no mid": (toys.shifted_towers, {"mid": {"blocks": []}}),
    "no shallow, no deep": (toys.shifted_towers, {"shallow": {"blocks": []}, "deep": {"blocks": []}}),
    "other weights": (
        toys.shifted_towers,
        {
            "text": {"adapter": 0.7},
            "contrast": {"audio_to_visual": 0.5},
            "deep": {"pull": 0.9},
            "context": {"tokens": 2},
        },
    ),
}


def computed(method, batch, how):
    """Named loss terms, outputs, and the gradients of everything that this experience teaches."""
    model = method.model
    patterns = model.active(next(e for e in method.tasks[batch.task].experiences() if e.name == batch.experience))
    owners = Owners(model)
    owners.set_trainable(patterns)
    train_mode(model, patterns)
    if how == "ours":
        ctx = method.context(batch, training=True)
        outputs, aux = model(batch, ctx), ctx.aux
    else:
        outputs, aux = direct.forward(model, batch, training=True)
    terms = {**method.tasks[batch.task].loss(outputs, batch.targets), **aux}
    live = owners.match(patterns)
    gradients = torch.autograd.grad(sum(terms.values()), list(live.values()), allow_unused=True)
    return outputs, terms, dict(zip(live, gradients, strict=True))


@pytest.mark.parametrize("experience", ["spoken0", "labels0"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_terms_and_gradients_equal_the_direct_formulation(case, experience):
    towers, options = CASES[case]
    run = toys.toy("spoken", "labels", towers=towers, **options)
    method, batch = toys.grown(run), toys.samples(run, experience)
    found = {how: computed(method, batch, how) for how in ("ours", "direct")}
    (outputs, terms, gradients), (others, theirs, slopes) = found["ours"], found["direct"]
    for one, two in ((outputs, others), (terms, theirs)):
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=BOUND, atol=BOUND, msg=lambda m, n=name: f"{n}: {m}")
    pulls = set() if case in ("one entry", "no shallow, no deep") else {f"{n} pool pull" for n in modalities(case)}
    contrast = {"audio to visual", "visual to audio"} if experience == "spoken0" else set()
    assert terms.keys() - {"nll"} == pulls | contrast
    largest = max(float(g.abs().max()) for g in slopes.values() if g is not None)
    assert 1e-3 < largest < 1e5
    for name, slope in slopes.items():
        assert (slope is None) == (gradients[name] is None), name
        if slope is not None:
            far = float((slope - gradients[name]).abs().max())
            assert far < BOUND * max(1.0, largest), (name, far, largest)


def modalities(case):
    return ("visual",) if case == "visual prompts only" else ("visual", "audio")


@pytest.mark.parametrize("experience", ["spoken0", "labels0"])
def test_evaluation_equals_the_direct_formulation_and_adds_nothing(experience):
    run = toys.toy("spoken", "labels", towers=toys.shifted_towers)
    method, batch = toys.grown(run), toys.samples(run, experience, 2, "test")
    method.model.eval()
    with torch.no_grad():
        ctx = method.context(batch, training=False)
        ours, other = method.model.features(batch, ctx), direct.features(method.model, batch, training=False)
        kept = method.model.features(batch, method.context(batch, training=False))
    assert ctx.aux == other.aux == {}
    for name in ("visual", "audio"):
        torch.testing.assert_close(ours.final[name], other.features.final[name], rtol=BOUND, atol=BOUND)
        last = ours.stages[name][-1]
        torch.testing.assert_close(last, other.features.stages[name][-1], rtol=BOUND, atol=BOUND)
        assert float((last - ours.final[name]).abs().max()) > 1e-2  # stages are in front of the final norm
    assert (
        ours.similarity.keys()
        == other.features.similarity.keys()
        == ({"visual", "audio"} if experience == "spoken0" else set())
    )
    for name, value in ours.similarity.items():
        torch.testing.assert_close(value, other.features.similarity[name], rtol=BOUND, atol=BOUND)
        assert torch.equal(value, kept.similarity[name])
        assert value.shape == (2, 2, 5)


def test_terms_are_those_of_the_paper():
    """php.md 4.1, from the features alone: weights 2 and 1.5, cosines times 100, the mean over videos."""
    run = toys.toy("spoken", "labels", towers=toys.shifted_towers)
    method, batch = toys.grown(run), toys.samples(run, "spoken0", 4)
    model, ctx = method.model.requires_grad_(False), method.context(batch, training=True)
    found = model.features(batch, ctx)
    towers = model.towers
    v = torch.stack([towers["visual"].net.visual_projection(f[:, 0]) for f in found.final["visual"]]).mean(1)
    a = torch.stack([towers["audio"].net.audio_projection(f.mean(1)) for f in found.final["audio"]])
    a = model.text["contrast"](a).mean(1)
    cosines = torch.stack([torch.stack([torch.cosine_similarity(x, y, dim=0) for y in v]) for x in a])
    rows, columns = 0.0, 0.0
    for i in range(4):
        rows -= float(torch.log(torch.exp(100 * cosines[i]) / torch.exp(100 * cosines[i]).sum())[i]) / 4
        columns -= float(torch.log(torch.exp(100 * cosines[:, i]) / torch.exp(100 * cosines[:, i]).sum())[i]) / 4
    assert float(ctx.aux["audio to visual"]) == pytest.approx(2 * rows, rel=1e-9)
    assert float(ctx.aux["visual to audio"]) == pytest.approx(1.5 * columns, rel=1e-9)
    assert rows != pytest.approx(columns, rel=1e-3)


def test_one_sample_has_no_contrast():
    run = toys.toy("spoken", "labels", towers=toys.shifted_towers)
    method, batch = toys.grown(run), toys.samples(run, "spoken0", 1)
    ctx = method.context(batch, training=True)
    method.model.features(batch, ctx)
    assert float(ctx.aux["audio to visual"]) == float(ctx.aux["visual to audio"]) == 0
