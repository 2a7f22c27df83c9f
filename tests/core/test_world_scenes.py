"""Scenes: what the labels say is what is painted and played, and everything follows from the seed."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avcl_core.errors import ConfigError
from avcl_core.world import (
    Difficulty,
    Scene,
    SceneBuilder,
    Source,
    clip_id,
    draw_span,
    frame_times,
    frames,
    mask_of,
    masks,
    other_classes,
    procedural,
    rng_for,
    sound_track,
    spans_of,
)

BANK = procedural()
RATE = 32000


def build(index=0, **more):
    rng = rng_for(7, "test", index)
    builder = SceneBuilder(BANK, "train", rng, **more)
    first, second, third = other_classes(rng, BANK.classes, 3)
    builder.add(first, visible=[(0, 4), (6, 8)], audible=[(2, 6)])
    builder.add(second, visible=[(3, 10)])
    builder.add(third, audible=[(5, 9)])
    return builder.scene(clip_id(7, "test", index))


def without(scene, index, field):
    sources = list(scene.sources)
    sources[index] = dataclasses.replace(sources[index], **{field: ()})
    return dataclasses.replace(scene, sources=tuple(sources))


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_spans_and_masks_are_inverse(covered):
    spans = spans_of(np.array(covered))
    assert mask_of(spans, len(covered)).tolist() == covered
    assert all(a < b for a, b in spans)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(spans))


def test_label_queries():
    scene = build()
    first, second, third = scene.classes
    assert spans_of(scene.visible(first)) == ((0, 4), (6, 8))
    assert spans_of(scene.both(first)) == ((2, 4),)
    assert not scene.audible(second).any()
    assert scene.matrix("audible", scene.classes).sum(axis=1).tolist() == [4, 0, 4]
    twice = dataclasses.replace(
        scene, sources=(*scene.sources, Source(first, "train-000", "train-000", audible=((8, 10),)))
    )
    assert spans_of(twice.audible(first)) == ((2, 6), (8, 10))
    assert third not in Scene("x", 3, (), 0).classes


def test_spans_outside_the_clip_are_refused():
    for span in ((0, 11), (4, 4), (-1, 2)):
        with pytest.raises(ConfigError, match=r"visible span"):
            Scene("x", 10, (Source("a", "s", "s", visible=(span,)),), 0)


def test_scene_survives_json():
    scene = build(3)
    assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


def test_everything_follows_from_the_seed():
    assert build(1) == build(1)
    assert build(1) != build(2)
    assert np.array_equal(frames(build(1), BANK), frames(build(1), BANK))
    assert np.array_equal(sound_track(build(1), BANK), sound_track(build(1), BANK))
    assert rng_for(1, "a").integers(1 << 60) != rng_for(1, "b").integers(1 << 60)


def test_clip_ids_look_like_video_ids():
    ids = {clip_id(0, "x", k) for k in range(3000)}
    assert len(ids) == 3000
    assert all(len(id) == 11 and id[0] not in "-_" for id in ids)
    assert any("-" in id for id in ids)


@pytest.mark.parametrize("index", range(4))
def test_pixels_change_exactly_where_a_source_is_visible(index):
    scene = build(index)
    shown = frames(scene, BANK).astype(int)
    times = frame_times(scene)
    truth = masks(scene, BANK)
    for which, source in enumerate(scene.sources):
        changed = np.abs(shown - frames(without(scene, which, "visible"), BANK).astype(int)).max(axis=3)
        visible = mask_of(source.visible, 10)[times.astype(int)]
        assert not changed[~visible].any()
        assert not truth[which][~visible].any()
        for number in np.flatnonzero(visible):
            mask = truth[which, number]
            if mask.sum() < 60:  # hidden by another object
                continue
            assert (changed[number][mask] > 12).mean() > 0.6  # the object can be seen
            grown = mask.copy()
            for shift in (-1, 1):
                for axis in (0, 1):
                    grown |= np.roll(mask, shift, axis)
            others = np.delete(truth[:, number], which, axis=0).any(axis=0)
            assert (changed[number][~grown & ~others] > 8).mean() < 0.02  # and nothing else is touched


def test_masks_are_the_alpha_of_the_sprite_and_later_sources_hide_earlier_ones():
    still = Source("", "train-000", "train-000", visible=((0, 1),), scale=0.5)
    ring = next(c for c in BANK.classes if c.endswith("-ring"))
    ball = next(c for c in BANK.classes if c.endswith("-ball"))
    scene = Scene(
        "x", 1, (dataclasses.replace(still, cls=ball), dataclasses.replace(still, cls=ring)), seed=1, size=128
    )
    under, over = masks(scene, BANK, times=[0.0])[:, 0]
    alpha = BANK.sprite(ring, "train-000")[..., 3] > 127
    rows, columns = np.flatnonzero(over.any(axis=1)), np.flatnonzero(over.any(axis=0))
    assert over.sum() == pytest.approx(alpha.sum(), rel=0.05)
    assert (rows[-1] - rows[0], columns[-1] - columns[0]) == pytest.approx(
        tuple(np.ptp(np.flatnonzero(alpha.any(axis=k))) for k in (1, 0)), abs=2
    )
    assert not (under & over).any()
    centre = tuple(int((edges[0] + edges[-1]) / 2) for edges in (rows, columns))
    assert under[centre]  # the ball shows through the hole of the ring
    assert not over[centre]


@pytest.mark.parametrize("index", range(3))
def test_sound_is_added_exactly_where_a_source_is_audible(index):
    scene = build(index)
    mix = sound_track(scene, BANK)
    assert mix.shape == (10 * RATE,)
    assert mix.dtype == np.float32
    assert np.abs(mix).max() <= 1
    for which, source in enumerate(scene.sources):
        if not source.audible:
            continue
        alone = (mix - sound_track(without(scene, which, "audible"), BANK)).reshape(10, RATE)
        energy = np.sqrt((alone**2).mean(axis=1))
        audible = mask_of(source.audible, 10)
        assert (energy[audible] > 0.015).all()
        assert (energy[~audible] < 1e-6).all()


def test_a_short_word_is_heard_whole_in_every_audible_second():
    word = np.sin(np.arange(8000) * 0.3).astype(np.float32)

    class Words:
        classes = ("hello",)

        def sound(self, cls, id, rate):
            return word

    scene = Scene("x", 6, (Source("hello", "s", "s", audible=((1, 4),)),), seed=5, snr_db=80)
    seconds = sound_track(scene, Words()).reshape(6, RATE)
    heard = [np.flatnonzero(np.abs(second) > 0.004) for second in seconds]
    assert [len(h) > 0 for h in heard] == [False, True, True, True, False, False]
    assert all(7900 < np.ptp(h) < 8100 for h in heard[1:4])


def test_background_noise_has_the_level_of_the_scene():
    levels = [sound_track(Scene("x", 4, (), seed=3, snr_db=snr), BANK).std() for snr in (0, 20)]
    assert levels[0] == pytest.approx(0.08, rel=0.01)
    assert levels[1] == pytest.approx(0.008, rel=0.01)


def test_frames_at_another_size_show_the_same_scene():
    scene = build(2)
    small, large = frames(scene, BANK, size=96, times=[3.5]), frames(scene, BANK, size=224, times=[3.5])
    assert large.shape == (1, 224, 224, 3)
    truth = masks(scene, BANK, size=224, times=[3.5])
    assert truth.shape == (3, 1, 224, 224)
    assert abs(small.mean() - large.mean()) < 12


def test_objects_in_view_together_keep_apart_where_there_is_room():
    hidden = []
    for index in range(40):
        rng = rng_for("apart", index)
        builder = SceneBuilder(BANK, "train", rng, difficulty=Difficulty(scale=(0.34, 0.4)))
        for cls in other_classes(rng, BANK.classes, 2):
            builder.add(cls, visible=[(0, 10)])
        scene = builder.scene("x")
        whole = masks(without(scene, 1, "visible"), BANK, times=[5.0])[0, 0].sum()
        hidden.append(1 - masks(scene, BANK, times=[5.0])[0, 0].sum() / whole)
    assert np.mean(hidden) < 0.03


def test_composer_helpers():
    rng = rng_for("helpers")
    spans = [draw_span(rng, 10, 2, 5) for _ in range(300)]
    assert {b - a for a, b in spans} == {2, 3, 4, 5}
    assert {a for a, _ in spans} == set(range(9))
    assert set(other_classes(rng, "abc", 2, without="a")) == {"b", "c"}
    with pytest.raises(ConfigError, match="further classes"):
        other_classes(rng, "abc", 3, without="a")
    with pytest.raises(ConfigError, match="span"):
        draw_span(rng, 10, 11)
    with pytest.raises(ConfigError, match="split"):
        SceneBuilder(BANK, "dev", rng)
    fixed = SceneBuilder(BANK, "test", rng)
    fixed.add(BANK.classes[0], visible=[(0, 1)], start=(0.2, 0.8))
    assert fixed.sources[0].start == fixed.sources[0].end == (0.2, 0.8)
    assert fixed.sources[0].sprite.startswith("test-")
