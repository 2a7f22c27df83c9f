"""Samples with the same media share one pass: the same features, gradients and usage as one by one, for fewer rows."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avcl_core.models.l2p import L2P
from avcl_core.models.s_prompts import SPrompts
from avcl_core.ownership import Owners
from avcl_core.trace import Trace
from avcl_core.walk import DualStream

_spec = importlib.util.spec_from_file_location("aligned_toys", Path(__file__).with_name("aligned_toys.py"))
assert _spec is not None
assert _spec.loader is not None
toys = sys.modules["aligned_toys"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toys)
batch, calibrated, grown, stirred = toys.batch, toys.calibrated, toys.grown, toys.stirred


def repeated(method, task):
    """Four samples, of which the first and the third have the same media, and the same without saying so."""
    given = batch(method, task, 3).select([0, 1, 0, 2])
    media = tuple(given.media[row] for row in range(4))
    assert media[0] == media[2]
    assert len(set(media)) == 3
    return given, replace(given, media=())


@pytest.mark.parametrize("model", [L2P, SPrompts])
def test_features_and_gradients_are_those_of_separate_passes(model, monkeypatch):
    method = calibrated(stirred(grown(model)))
    rows, walk = [], DualStream.walk
    monkeypatch.setattr(
        DualStream,
        "walk",
        lambda self, tokens, *rest: (rows.append(len(tokens["visual"])), walk(self, tokens, *rest))[1],
    )
    found = []
    for given in repeated(method, "labels"):
        features = method.model.features(given, method.context(given, False))
        parts = [
            *features.final.values(),
            *(v for maps in features.stages.values() for v in maps),
            *features.similarity.values(),
        ]
        assert all(len(part) == 4 for part in parts)
        live = [p for p in Owners(method.model).match().values() if p.requires_grad]
        weights = [torch.linspace(-1, 1, part.numel()).view_as(part) for part in parts]
        loss = torch.stack([(part * weight).mean() for part, weight in zip(parts, weights, strict=True)]).sum()
        found.append((parts, torch.autograd.grad(loss, live, allow_unused=True)))
    frames = batch(method, "labels", 1).inputs["visual"].shape[1]
    assert [count for count in rows if count in (3 * frames, 4 * frames)][-2:] == [3 * frames, 4 * frames]
    for one, other in zip(*(parts for parts, _ in found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(*(grads for _, grads in found), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_terms_of_the_model_are_means_over_samples_however_they_are_divided():
    method = stirred(grown(L2P))
    given, apart = repeated(method, "labels")
    found = []
    for part in (given, apart, given.select([0, 1]), given.select([2, 3])):
        ctx = method.context(part, True)
        method.model.features(part, ctx)
        found.append(ctx.aux["visual pool pull"])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], (found[2] + found[3]) / 2)


def test_a_task_with_texts_shares_nothing_since_its_samples_are_compared():
    method = stirred(grown(L2P))
    given, apart = repeated(method, "texts")
    found = []
    for part in (given, apart):
        ctx = method.context(part, True)
        method.model.features(part, ctx)
        found.append(ctx.aux["audio to visual"])
    assert torch.equal(*found)


def test_what_modules_tell_counts_for_every_sample():
    method = stirred(grown(L2P))
    told = []
    for given in repeated(method, "labels"):
        trace = Trace(True)
        method.predict(given.question(False), trace)
        told.append(trace)
    one, other = told
    assert one.frames == other.frames
    assert one.observed.keys() == other.observed.keys()
    for site, values in one.observed.items():
        for name, value in values.items():
            torch.testing.assert_close(value, other.observed[site][name], rtol=1e-4, atol=1e-5)
    for name, value in one.features.items():
        torch.testing.assert_close(value, other.features[name], rtol=1e-4, atol=1e-5)


def test_a_batch_names_its_distinct_media():
    given = batch(grown(L2P), "labels", 3)
    assert given.distinct() is None
    assert given.select([2, 0, 2, 1, 0]).distinct() == ([0, 1, 3], [0, 1, 0, 2, 1])
    assert replace(given, media=()).distinct() is None
