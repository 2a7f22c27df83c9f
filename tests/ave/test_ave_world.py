"""World → published files → layout → prepared → samples: the labels that come out are those of the scenes."""

import numpy as np
import pytest

from avcl_ave import EventOptions, plugin
from avcl_ave.world import compose, scene
from avcl_core.errors import ConfigError, DataError
from avcl_core.features import FeatureSpec, TokenShape
from avcl_core.testing import check_task, toy_towers
from avcl_core.world.procedural import ProceduralBank
from avcl_core.world.writer import WorldSize, read_scenes


def test_layout_of_a_world_has_no_problem(ave_root):
    layout = plugin.layout(ave_root)
    assert layout.problems == ()
    assert [clip.id for clip in layout.clips] == [clip.id for clip in read_scenes(ave_root)]
    assert all(len(clip.id) == 11 for clip in layout.clips)


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_labels_are_those_of_the_scenes(ave_root, ave_prepared, protocol):
    task = plugin.build(plugin.options(), ave_prepared, protocol)
    scenes = {clip.id: clip for clip in read_scenes(ave_root)}
    (experience,) = task.experiences()
    assert [len(experience.keys(split)) for split in ("train", "val", "test")] == [10, 2, 2]
    assert task.labels == tuple((ave_root / "categories.txt").read_text().splitlines())
    assert len(task.labels) == 8
    for split in ("train", "val", "test"):
        data = task.dataset(split)
        for key in experience.keys(split):
            targets, clip = data.targets(key), scenes[key.split("#")[0]]
            event = task.labels[int(targets["event"])]
            expected = np.where(clip.both(event), task.labels.index(event), len(task.labels))
            np.testing.assert_array_equal(targets["segments"], expected)
            assert key == f"{clip.id}#{int(targets['event']):02d}"
            # No other class is audible and visible at once: the clip has exactly one audio-visual event.
            assert [cls for cls in clip.classes if clip.both(cls).any()] == [event]


@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_options_reach_the_head(ave_prepared, setting):
    task = plugin.build(EventOptions(setting=setting, width=16), ave_prepared, "clean")
    spec = FeatureSpec({name: TokenShape((2, 2), 12) for name in ("visual", "audio")}, {"visual": (), "audio": ()})
    head = task.head(spec, task.experiences()[0])
    assert type(head).__name__ == {"supervised": "EventHead", "weak": "WeakEventHead"}[setting]
    assert {tuple(p.shape) for n, p in head.named_parameters() if n.endswith("_scores.weight")} == {(8, 16)}


def test_inputs_have_the_shapes_of_the_interface(ave_prepared):
    task = plugin.build(plugin.options(), ave_prepared, "clean")
    data = task.dataset("test")
    key = task.experiences()[0].test[0]
    inputs = data.inputs(key, None)
    assert inputs["visual"].shape == (10, 32, 32, 3)
    assert inputs["visual"].dtype == np.uint8
    assert inputs["audio"].shape == (10, task.audio_rate)
    assert inputs["audio"].dtype == np.float32
    assert data.digest(key) == ave_prepared.sample_digest(key[:11])


def test_weak_training_cannot_see_when_an_event_happens(ave_prepared):
    weak, supervised = (
        plugin.build(EventOptions(setting=name), ave_prepared, "clean") for name in ("weak", "supervised")
    )
    (experience,) = weak.experiences()
    for split in ("train", "val", "test"):
        for key in experience.keys(split):
            seen, whole = weak.dataset(split).targets(key), supervised.dataset(split).targets(key)
            assert list(seen) == (["event"] if split == "train" else ["segments", "event"])
            assert all(np.array_equal(seen[name], whole[name]) for name in seen)
    trivial = weak.controls(
        {key: weak.dataset("train").targets(key) for key in experience.train},
        {key: weak.dataset("test").targets(key) for key in experience.test},
    )
    assert len(trivial) == 3


@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_task_keeps_the_contract(ave_prepared, setting):
    check_task(plugin.build(EventOptions(setting=setting, width=16), ave_prepared, "clean"), toy_towers(), samples=2)


def test_recipe_needs_both_modalities():
    bank = ProceduralBank("task", 8)
    clips = [scene(bank, WorldSize(200, 1, 1), 0, "train", index) for index in range(200)]
    both, seen, heard = (
        np.stack([getattr(clip, name)(clip.sources[0].cls) for clip in clips])
        for name in ("both", "visible", "audible")
    )
    assert 0.6 < both.mean() < 0.75
    assert 0.15 < both.all(1).mean() < 0.4
    assert (seen & ~heard).mean() > 0.05
    assert (heard & ~seen).mean() > 0.05
    assert min(both.sum(1)) == 2
    distractors = [source for clip in clips for source in clip.sources[1:]]
    assert all(bool(source.visible) != bool(source.audible) for source in distractors)
    assert sum(bool(source.visible) for source in distractors) > 100
    assert sum(bool(source.audible) for source in distractors) > 60


def test_scenes_depend_on_seed_split_and_index_alone():
    bank, size = ProceduralBank("task", 8), WorldSize(4, 4, 4)
    assert scene(bank, size, 1, "train", 2) == scene(bank, WorldSize(9, 9, 9), 1, "train", 2)
    others = {
        scene(bank, size, *place).id for place in ((1, "train", 2), (2, "train", 2), (1, "val", 2), (1, "train", 3))
    }
    assert len(others) == 4


@pytest.mark.parametrize(("classes", "seconds", "part"), [(8, 5, "seconds"), (2, 10, "classes")])
def test_impossible_worlds_are_refused(tmp_path, classes, seconds, part):
    with pytest.raises(ConfigError, match=part):
        compose(ProceduralBank("task", classes), WorldSize(1, 1, 1, seconds=seconds), 0, tmp_path / "ave", 1)


def test_prepared_data_of_another_task_are_refused(ave_prepared, monkeypatch):
    monkeypatch.setattr(ave_prepared, "layout", "avvp")
    with pytest.raises(DataError, match=r"layout: found avvp; expected ave"):
        plugin.build(plugin.options(), ave_prepared, "clean")
