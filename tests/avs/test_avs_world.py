"""World → published files → layout → prepared → samples: the masks that come out are what is seen and heard in the scenes."""

import json

import numpy as np
import pytest

from avcl_avs import plugin
from avcl_avs.world import SCENES, clips_of, compose, multiple_sources, single_source, task_classes
from avcl_avs.world_files import TIMES, sounding_masks
from avcl_core.data.verify import verify_source
from avcl_core.errors import ConfigError, DataError
from avcl_core.world.digits import digits
from avcl_core.world.procedural import ProceduralBank
from avcl_core.world.render import frames, masks
from avcl_core.world.writer import RECORD, WorldSize, read_scenes

SIZE = WorldSize(train=5, val=2, test=2, seconds=5, size=56, fps=2)


def bank_of(classes: int = 10):
    bank = ProceduralBank("task", classes)
    return bank.subset(task_classes(bank))


def test_a_world_has_no_problem_and_both_settings(avs_root):
    layout = plugin.layout(avs_root)
    assert verify_source(layout, "full") == []
    scenes = [scene.id for scene in read_scenes(avs_root)]
    assert [clip.id.split("/")[1] for clip in layout.clips] == scenes
    assert [clip.id.split("/")[0] for clip in layout.clips] == ["s4"] * 9 + ["ms3"] * 9
    assert (avs_root / "Single-source/categories.txt").read_text().splitlines() == list(bank_of().classes)


def test_classes_begin_elsewhere_and_go_round():
    names = ProceduralBank("task", 10).classes
    assert task_classes(ProceduralBank("task", 10)) == (*names[2:], names[0])[:8]
    assert len(task_classes(ProceduralBank("task", 28))) == 8


@pytest.mark.parametrize("setting", ["s4", "ms3"])
def test_masks_are_those_of_the_scenes(avs_root, avs_prepared, setting):
    task = plugin.build(plugin.options(setting=setting), avs_prepared, "clean")
    scenes = {f"{setting}/{scene.id}": scene for scene in read_scenes(avs_root)}
    (experience,) = task.experiences()
    assert [len(experience.keys(split)) for split in ("train", "val", "test")] == [5, 2, 2]
    some = 0
    for split in ("train", "val", "test"):
        data = task.dataset(split)
        for key in experience.keys(split):
            targets, scene = data.targets(key), scenes[key]
            first = setting == "s4" and split == "train"
            assert targets["annotated"].tolist() == [True] + [not first] * 4
            shown = masks(scene, bank_of(), times=TIMES)
            expected = np.zeros((5, 56, 56), bool)
            for source, seen in zip(scene.sources, shown, strict=True):
                for second in range(1 if first else 5):
                    if any(on <= second < off for on, off in source.audible):
                        expected[second] |= seen[second]
            np.testing.assert_array_equal(targets["mask"], expected.repeat(4, 1).repeat(4, 2))
            some += int(expected.sum())
            if setting == "s4":
                (sounding,) = [source.cls for source in scene.sources if source.audible]
                assert task.data.rows[key].category == sounding
    assert some > 1000


def test_frames_are_taken_near_the_end_of_each_second(avs_root, avs_prepared):
    assert TIMES.tolist() == [second + 15.5 / 16 for second in range(5)]
    data = plugin.build(plugin.options(), avs_prepared, "clean").dataset("val")
    key = next(iter(data.rows))
    scene = next(scene for scene in read_scenes(avs_root) if key.endswith(scene.id))
    shots = frames(scene, bank_of(), times=TIMES).astype(float)
    seen = data.inputs(key, None)["visual"].astype(float)
    assert seen.shape == (5, 64, 64, 3)
    # Thirds of the picture keep their brightness through the resizing from 56 to 224 to 64 pixels, and tell the frames apart.
    here, there = (np.stack([part.mean((1, 2)) for part in np.array_split(s, 3, axis=2)], 1) for s in (shots, seen))
    distance = np.abs(here[:, None] - there[None]).mean((2, 3))
    np.testing.assert_array_equal(distance.argmin(1), range(5))


def test_single_source_needs_both_modalities():
    bank = bank_of()
    clips = [single_source(bank, WorldSize(300, 1, 1, seconds=5), 0, "train", index) for index in range(300)]
    order = []
    silent_count = dict.fromkeys(bank.classes, 0)
    for clip in clips:
        heard = [source for source in clip.sources if source.audible]
        assert len(heard) == 1
        assert heard[0].audible == ((0, 5),)
        assert all(source.visible == ((0, 5),) for source in clip.sources)
        assert len(clip.classes) == len(clip.sources) >= 2
        order.append(clip.sources.index(heard[0]) / (len(clip.sources) - 1))
        for source in clip.sources:
            silent_count[source.cls] += not source.audible
    # Neither the order of painting nor the class tells which object sounds.
    assert 0.4 < np.mean(order) < 0.6
    assert min(silent_count.values()) > 0.7 * np.mean(list(silent_count.values()))
    scales = {
        heard: np.mean([s.scale for c in clips for s in c.sources if bool(s.audible) == heard])
        for heard in (True, False)
    }
    assert abs(scales[True] - scales[False]) < 0.01


def test_multiple_sources_sound_at_different_times():
    bank = bank_of()
    clips = [multiple_sources(bank, WorldSize(300, 1, 1, seconds=5), 0, "train", index) for index in range(300)]
    heard = [np.array([[any(a <= t < b for a, b in s.audible) for t in range(5)] for s in c.sources]) for c in clips]
    assert {len(c.sources) for c in clips} == {2, 3}
    assert np.mean([(h.any(1).sum() > 1) for h in heard]) > 0.5
    # The set of sounding objects changes within most clips, and few frames are empty.
    assert np.mean([bool((h != h[:, :1]).any()) for h in heard]) > 0.7
    assert 0.02 < np.mean([~h.any(0) for h in heard]) < 0.25
    # An object that is seen is heard about half of the time: sight alone cannot tell which pixels belong to the mask.
    assert 0.4 < np.mean([h.mean() for h in heard]) < 0.6
    assert np.mean([h.all(0) for h in heard]) < 0.3


def test_scenes_depend_on_seed_setting_split_and_index_alone():
    bank = bank_of()
    for scene in SCENES.values():
        assert scene(bank, SIZE, 1, "train", 2) == scene(
            bank, WorldSize(9, 9, 9, seconds=5, size=56, fps=2), 1, "train", 2
        )
    places = [(1, "train", 2), (2, "train", 2), (1, "val", 2), (1, "train", 3)]
    assert len({scene(bank, SIZE, *place).id for place in places for scene in SCENES.values()}) == 8


def test_composing_again_changes_nothing_and_another_world_is_refused(avs_root, tmp_path):
    before = (avs_root / RECORD).stat().st_mtime_ns
    compose(ProceduralBank("task", 10), SIZE, 3, avs_root, 1)
    assert (avs_root / RECORD).stat().st_mtime_ns == before
    with pytest.raises(DataError, match="another world"):
        compose(ProceduralBank("task", 10), SIZE, 4, avs_root, 1)
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(DataError, match="not a generated world"):
        compose(ProceduralBank("task", 10), SIZE, 3, tmp_path, 1)


def test_worlds_do_not_depend_on_workers_or_interruptions(tmp_path):
    bank, size = ProceduralBank("task", 10), WorldSize(1, 1, 1, seconds=5, size=56, fps=2)
    compose(bank, size, 5, tmp_path / "one", 1)
    interrupted = tmp_path / "two"
    interrupted.mkdir()
    (interrupted / ".world-unfinished").touch()
    (interrupted / ".left.png.1.tmp").touch()
    calls = []
    compose(bank, size, 5, interrupted, 2, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (6, 6)
    assert not (interrupted / ".left.png.1.tmp").exists()
    records = [json.loads((tmp_path / name / RECORD).read_text()) for name in ("one", "two")]
    assert records[0] == records[1]
    assert records[0]["media_files"] == 3 * (5 + 1) + 1 + 5 + 5 + 3 * (5 + 5 + 1)


@pytest.mark.parametrize(("classes", "seconds", "part"), [(8, 10, "seconds"), (2, 5, "classes")])
def test_impossible_worlds_are_refused(tmp_path, classes, seconds, part):
    with pytest.raises(ConfigError, match=part):
        compose(ProceduralBank("task", classes), WorldSize(3, 3, 3, seconds=seconds), 0, tmp_path / "avs", 1)


@pytest.mark.realdata
def test_digits_have_true_pixel_masks(real_data):
    bank = digits(real_data / "mnist", real_data / "fsdd.tar.xz")
    bank = bank.subset(task_classes(bank))
    scene, _ = clips_of(bank, SIZE, 0)[0]
    (sounding,) = [i for i, source in enumerate(scene.sources) if source.audible]
    mask = sounding_masks(scene, bank)
    np.testing.assert_array_equal(mask, masks(scene, bank, times=TIMES)[sounding])
    # A handwritten digit fills only part of its bounding box.
    rows, columns = (np.flatnonzero(mask[0].any(axis)) for axis in (1, 0))
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert 0.1 < mask[0].sum() / box < 0.75
