"""Anchors: exact means for any division into batches, modalities that are absent, and the choice by each score."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avcl_core.errors import RunError
from avcl_core.moe.anchors import Anchors, Pooled
from avcl_core.moe.scores import Discriminant, MeanCosine, NearestCentre
from avcl_core.ownership import Owners


def clouds(slots, count=40, width=6, spread=0.3):
    """Slot → features of both modalities around a mean of its own, behind an offset that all share."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return {
        slot: Pooled({name: 3 + draw(width) + spread * draw(count, width) for name in ("visual", "audio")})
        for slot in slots
    }


def fitted(known, score=None, **options):
    anchors = Anchors({"visual": 6, "audio": 6}, score or MeanCosine(), **options)
    for slot, pooled in known.items():
        anchors.grow(slot)
        anchors.fit(slot, [pooled])
    return anchors


def cut(pooled, sizes):
    """The same samples in batches of the given sizes, the last one with what is left."""
    start, parts = 0, []
    for size in [*sizes, len(pooled)]:
        if start < len(pooled):
            rows = slice(start, start + size)
            parts.append(
                Pooled({n: v[rows] for n, v in pooled.vectors.items()}, {n: v[rows] for n, v in pooled.present.items()})
            )
            start += size
    return parts


@settings(deadline=None)
@given(st.lists(st.integers(1, 15), max_size=8))
def test_no_division_into_batches_changes_an_anchor(sizes):
    (pooled,) = clouds(["a"]).values()
    one, other = (Anchors({"visual": 6, "audio": 6}, MeanCosine(), centres=3, scatter=True) for _ in range(2))
    for anchors, parts in ((one, [pooled]), (other, cut(pooled, sizes))):
        anchors.grow("a")
        anchors.fit("a", parts)
    assert all(torch.equal(one.state_dict()[name], value) for name, value in other.state_dict().items())


def test_an_anchor_is_the_mean_of_the_samples_that_have_the_modality():
    (pooled,) = clouds(["a"]).values()
    having = torch.arange(40) % 3 == 0
    spoilt = torch.where(having.unsqueeze(1), pooled.vectors["audio"], torch.nan)
    anchors = fitted({"a": Pooled({**pooled.vectors, "audio": spoilt}, {"audio": having})}, scatter=True)
    audio = anchors.slots["a"].audio
    chosen = pooled.vectors["audio"][having].double()
    assert int(audio.count) == 14
    torch.testing.assert_close(audio.mean.double(), chosen.mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(audio.spread.double(), chosen.var(0, unbiased=False), atol=1e-6, rtol=0)
    torch.testing.assert_close(audio.scatter.double(), 14 * torch.cov(chosen.T, correction=0), atol=1e-4, rtol=0)


def test_every_score_finds_the_samples_own_experience():
    known = clouds(["a", "b", "c"])
    for score in (MeanCosine(), MeanCosine(centre=True), NearestCentre(), Discriminant()):
        anchors = fitted(known, score, centres=2, scatter=True)
        for slot, pooled in known.items():
            found = anchors.choose(anchors.scores(pooled))
            assert found.count(slot) >= 38, score


def test_cosines_do_not_change_with_the_length_of_an_anchor():
    known = clouds(["a", "b"])
    anchors = fitted(known)
    before = anchors.scores(known["a"])
    anchors.slots["b"].audio.mean.mul_(7)
    torch.testing.assert_close(anchors.scores(known["a"]), before)


def test_scores_are_a_mean_over_the_modalities_that_a_sample_has():
    """The golden routing of avqacl_moe.md 6.4: text .9/.8, audio .1/.3, no video → .5/.55 and the second expert."""
    told = {"text": [0.9, 0.8], "audio": [0.1, 0.3], "video": [9.0, 0.0]}

    class Told:
        def __call__(self, vectors, known):
            return vectors[:, : len(known)]

    anchors = Anchors(dict.fromkeys(told, 2), Told())
    everything = Pooled({name: torch.tensor([row, row]) for name, row in told.items()})
    for slot in ("first", "second"):
        anchors.grow(slot)
        anchors.fit(slot, [everything])
    question = Pooled(everything.vectors, {"video": torch.tensor([False, True])})
    scores = anchors.scores(question)
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.55], [10 / 3, 1.1 / 3]]))
    assert anchors.choose(scores) == ("second", "first")
    assert anchors.choose(anchors.scores(question, ("text",))) == ("first", "first")
    weighted = Anchors(dict.fromkeys(told, 2), Told(), weights={"text": 4})
    for slot in ("first", "second"):
        weighted.grow(slot)
        weighted.fit(slot, [everything])
    torch.testing.assert_close(weighted.scores(question)[0], torch.tensor([3.7 / 5, 3.5 / 5]))


def test_equal_scores_go_to_the_first_and_nothing_to_none():
    anchors = fitted(clouds(["a", "b"]))
    nan = torch.nan
    assert anchors.choose(torch.tensor([[0.5, 0.5], [0.1, 0.2], [nan, nan]])) == ("a", "b", None)


def test_a_sample_without_any_modality_has_no_score():
    known = clouds(["a", "b"])
    lost = torch.tensor([True, False])
    pooled = Pooled({n: v[:2] for n, v in known["a"].vectors.items()}, {"visual": lost, "audio": lost})
    scores = fitted(known).scores(pooled)
    assert scores.isnan().all(1).tolist() == [False, True]


def test_anchors_of_one_experience_do_not_depend_on_others_and_are_owned_by_its_expert():
    known = clouds(["a", "b"])
    alone, both = fitted({"a": known["a"]}), fitted(dict(reversed(known.items())))
    for name, value in alone.state_dict().items():
        assert torch.equal(both.state_dict()[name], value), name
    owners = Owners(nn.ModuleDict({"anchors": both}))
    assert {row.owner for row in owners.rows.values()} == {"expert:a", "expert:b"}


def test_what_cannot_be_compared_is_refused():
    known = clouds(["a", "b"])
    anchors = Anchors({"visual": 6, "audio": 6}, MeanCosine())
    with pytest.raises(RunError, match="no anchors are known"):
        anchors.scores(known["a"])
    anchors.grow("a")
    with pytest.raises(RunError, match=r"anchors of a: no training sample has one of \['audio', 'visual'\]"):
        anchors.fit("a", [])
    anchors.fit("a", [Pooled({"visual": known["a"].vectors["visual"]})])
    with pytest.raises(RunError, match=r"samples have audio, of which the anchors of \['a'\] know nothing"):
        anchors.scores(known["a"])
    with pytest.raises(RunError, match="features of visual have 5 channels, the anchors 6"):
        fitted(known).scores(Pooled({"visual": torch.zeros(1, 5)}))


def test_the_discriminant_ignores_what_varies_within_experiences():
    """A direction of large variance misleads cosines; the shared covariance takes it out."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(400, 1, generator=generator) * torch.tensor([20.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    small = 0.1 * torch.randn(400, 6, generator=generator)
    means = {"a": torch.tensor([2.0, 1, 0, 0, 0, 0]), "b": torch.tensor([-2.0, 0, 1, 0, 0, 0])}
    known = {slot: Pooled({"visual": mean + noise + small}) for slot, mean in means.items()}
    right = {}
    for name, score in (("cosine", MeanCosine()), ("lda", Discriminant())):
        anchors = Anchors({"visual": 6}, score, scatter=True)
        for slot, pooled in known.items():
            anchors.grow(slot)
            anchors.fit(slot, [pooled])
        right[name] = sum(anchors.choose(anchors.scores(pooled)).count(slot) for slot, pooled in known.items()) / 800
    assert right["lda"] > 0.99 > 0.9 > right["cosine"]
