"""World → published files → layout → prepared → samples: the labels that come out are those of the scenes."""

import numpy as np
import pytest

from avcl_avvp import plugin
from avcl_avvp.world import compose, scene, task_classes
from avcl_core.errors import ConfigError, DataError
from avcl_core.world.procedural import ProceduralBank
from avcl_core.world.writer import WorldSize, read_scenes


def test_layout_of_a_world_has_no_problem(avvp_root):
    layout = plugin.layout(avvp_root)
    assert layout.problems == ()
    assert [clip.id for clip in layout.clips] == [clip.id for clip in read_scenes(avvp_root)]


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_labels_are_those_of_the_scenes(avvp_root, avvp_prepared, protocol):
    task = plugin.build(plugin.options(), avvp_prepared, protocol)
    scenes = {f"{clip.id}_0_10": clip for clip in read_scenes(avvp_root)}
    (experience,) = task.experiences()
    assert [len(experience.keys(split)) for split in ("train", "val", "test")] == [6, 4, 4]
    assert len(task.labels) == 8
    marked = 0
    for split in ("train", "val", "test"):
        data = task.dataset(split)
        for key in experience.keys(split):
            targets, clip = data.targets(key), scenes[key]
            audible, visible = clip.matrix("audible", task.labels), clip.matrix("visible", task.labels)
            np.testing.assert_array_equal(targets["labels"], (audible | visible).any(1))
            if split == "train":
                assert targets.keys() == {"labels"}
                continue
            np.testing.assert_array_equal(targets["audio"], audible)
            np.testing.assert_array_equal(targets["visual"], visible)
            marked += int((targets["audio"] != targets["visual"]).sum())
    assert marked > 0


def test_inputs_have_the_shapes_of_the_interface(avvp_prepared):
    task = plugin.build(plugin.options(), avvp_prepared, "clean")
    key = task.experiences()[0].test[0]
    inputs = task.dataset("test").inputs(key, None)
    assert inputs["visual"].shape == (10, 32, 32, 3)
    assert inputs["audio"].shape == (10, task.audio_rate)
    assert task.dataset("test").digest(key) == avvp_prepared.sample_digest(key[:11])


def test_recipe_has_events_of_every_kind():
    bank = ProceduralBank("task", 8)
    clips = [scene(bank, WorldSize(200, 1, 1), 0, "train", index) for index in range(200)]
    counts = np.bincount([len(clip.sources) for clip in clips], minlength=4)
    assert counts[0] == 0
    assert all(counts[1:] > 15)
    assert all(len(clip.classes) == len(clip.sources) for clip in clips)
    sources = [source for clip in clips for source in clip.sources]
    kinds = [(bool(source.audible), bool(source.visible)) for source in sources]
    shares = [kinds.count(kind) / len(kinds) for kind in ((True, True), (True, False), (False, True))]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0.2
    assert sum(source.audible != source.visible for source in sources if source.audible and source.visible) > 50


@pytest.mark.parametrize(("count", "first", "last"), [(28, 6, 13), (10, 6, 3), (5, 1, 0)])
def test_classes_go_round_the_bank(count, first, last):
    bank = ProceduralBank("task", count)
    chosen = task_classes(bank)
    assert len(chosen) == len(set(chosen)) == min(8, count)
    assert (chosen[0], chosen[-1]) == (bank.classes[first], bank.classes[last])


@pytest.mark.parametrize(("classes", "seconds", "part"), [(8, 5, "seconds"), (1, 10, "classes")])
def test_impossible_worlds_are_refused(tmp_path, classes, seconds, part):
    with pytest.raises(ConfigError, match=part):
        compose(ProceduralBank("task", classes), WorldSize(20, 1, 1, seconds=seconds), 0, tmp_path / "llp", 1)


def test_prepared_data_of_another_task_are_refused(avvp_prepared, monkeypatch):
    monkeypatch.setattr(avvp_prepared, "layout", "ave")
    with pytest.raises(DataError, match=r"layout: found ave; expected avvp"):
        plugin.build(plugin.options(), avvp_prepared, "clean")
