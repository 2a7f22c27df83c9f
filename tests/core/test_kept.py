"""Kept features: one bit pattern per content whoever asks with whom, no more memory than allowed, nothing dropped."""

import pytest
import torch

from avcl_core.models.kept import Kept, _contents
from avcl_core.testing.check_towers import walk_plain
from avcl_core.testing.toy_towers import clip, htsat, resnet, stir, swin
from avcl_core.walk import DualStream
from shared_backbones.registry import build


def pvt():
    return stir(build("pvt_v2", "tiny", {}, 0))


def vggish():
    return stir(build("vggish", "tiny", {}, 0))


TOWERS = {
    "swin_v2": swin,
    "htsat": htsat,
    "clip_vit": clip,
    "resnet18": resnet,
    "pvt_v2": pvt,
    "vggish": vggish,
}
MIB = 2**20


def inputs(tower, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if tower.info.modality == "visual":
        return torch.randn(count, 3, tower.info.image_size, tower.info.image_size, generator=generator)
    return tower.frontend(0.3 * torch.randn(count, tower.info.sample_rate, generator=generator))


def solo(tower, **options):
    return DualStream.solo("tower", tower, **options)


def counting(tower, monkeypatch):
    """Rows that the tower embeds, call by call."""
    calls, embed = [], tower.embed
    monkeypatch.setattr(tower, "embed", lambda value: calls.append(len(value)) or embed(value))
    return calls


@pytest.mark.parametrize("name", TOWERS)
def test_the_bits_of_a_feature_do_not_depend_on_its_company(name):
    """Alone, at any place of a batch, among others that are kept already: every way gives the first one's bits."""
    tower = TOWERS[name]()
    walk, values = solo(tower), inputs(tower, 11)
    alone = [Kept(0).features(walk, values[i : i + 1]) for i in range(11)]

    def same(kept, rows):
        found = kept.features(walk, values[rows])
        for at, row in enumerate(rows):
            assert torch.equal(found.final["tower"][at], alone[row].final["tower"][0])
            for maps, expected in zip(found.stages["tower"], alone[row].stages["tower"], strict=True):
                assert torch.equal(maps[at], expected[0])

    generator = torch.Generator().manual_seed(1)
    kept = Kept(64 * MIB)
    for memory in (kept, Kept(0), kept):
        same(memory, torch.randperm(11, generator=generator).tolist())
    same(Kept(64 * MIB), [3, 3, 0, 3, 10, 0])
    some = Kept(64 * MIB)
    for rows in ([5], [2, 5, 7], [*range(11)]):
        same(some, rows)


@pytest.mark.parametrize("name", TOWERS)
def test_features_are_those_of_the_plain_walk(name):
    tower = TOWERS[name]()
    values = inputs(tower, 3)
    found = Kept(MIB).features(solo(tower), values)
    with torch.no_grad():
        expected = walk_plain(tower, values)
    torch.testing.assert_close(found.final["tower"], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert not found.final["tower"].requires_grad


def test_misses_share_batches_of_one_size(monkeypatch):
    tower = clip()
    values, calls = inputs(tower, 20), counting(tower, monkeypatch)
    kept = Kept(64 * MIB, rows=4)
    kept.features(solo(tower), values[:6])
    assert calls == [4, 4]
    kept.features(solo(tower), values[:6])
    assert calls == [4, 4]
    kept.features(solo(tower), values[3:12])
    assert calls == [4, 4, 4, 4], "six were missing"
    kept.features(solo(tower), values[[15, 15, 15, 15, 15]])
    assert calls == [4] * 5, "the same content is computed once"
    assert len(kept) == 13


def test_memory_is_bounded_and_nothing_is_dropped(monkeypatch):
    tower = clip()
    values = inputs(tower, 6)
    one = Kept(MIB)
    one.features(solo(tower), values[:1])
    size = MIB - one.left
    assert size == sum(16 * 4 * t.tokens for t in _tokens(tower))
    kept, calls = Kept(3 * size + size // 2, rows=2), counting(tower, monkeypatch)
    kept.features(solo(tower), values)
    assert (len(kept), kept.left, len(calls)) == (3, size // 2, 3)
    again = kept.features(solo(tower), values)
    assert len(calls) == 5, "three rows did not fit"
    assert torch.equal(again.final["tower"], Kept(0, rows=2).features(solo(tower), values).final["tower"])
    held = [part.untyped_storage().nbytes() for parts in kept._entries.values() for part in parts]
    assert sum(held) == 3 * size, "an entry holds its own bytes, not those of the batch that it came from"


def _tokens(tower):
    spec = solo(tower).spec()
    return [spec.final["tower"], *spec.stages["tower"]]


def test_entries_know_what_was_asked_for():
    tower = swin()
    values, kept = inputs(tower, 2), Kept(64 * MIB)
    lean = kept.features(solo(tower), values, stages=False)
    assert lean.stages["tower"] == ()
    whole = kept.features(solo(tower), values)
    assert [tuple(m.shape) for m in whole.stages["tower"]] == [(2, 64, 8), (2, 16, 16)]
    bare = kept.features(solo(tower, unnormed=("tower",)), values)
    assert torch.equal(lean.final["tower"], whole.final["tower"])
    assert torch.equal(bare.final["tower"], whole.stages["tower"][-1])
    assert not torch.equal(bare.final["tower"], whole.final["tower"])
    other = kept.features(DualStream.solo("other", swin(seed=1)), values)
    assert not torch.equal(other.final["other"], whole.final["tower"])


def test_content_is_more_than_its_bytes():
    zeros = torch.zeros(2, 8)
    (first, second), kinds = _contents(zeros), [zeros.view(2, 2, 4), zeros.view(2, 4, 2), zeros.int()]
    assert first == second
    assert len({first, *(_contents(kind)[0] for kind in kinds)}) == 4
    strided = torch.arange(16.0).view(2, 8)
    assert _contents(strided.T.contiguous().T) == _contents(strided) != _contents(-strided)


def test_what_is_kept_does_not_depend_on_the_precision_of_a_step():
    tower = clip()
    values, kept = inputs(tower, 2), Kept(64 * MIB)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = kept.features(solo(tower), values).final["tower"]
    assert low.dtype == torch.float32
    assert torch.equal(low, Kept(0).features(solo(tower), values).final["tower"])


def test_a_tower_that_learns_is_computed_every_time():
    tower = clip()
    values, kept = inputs(tower, 2), Kept(64 * MIB)
    before = kept.features(solo(tower), values[:1]).final["tower"]
    tower.set_trainable(True)
    stir(tower, 5)
    after = kept.features(solo(tower), values).final["tower"]
    assert not torch.allclose(before, after[:1], atol=1e-3)
    assert not after.requires_grad
    assert len(kept) == 1, "nor kept for later"
