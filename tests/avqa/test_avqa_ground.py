"""The grounding stage: moments of real training videos, held-out videos, pairs that do not change in evaluation, match accuracy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avcl_avqa import ground_plugin, plugin
from avcl_avqa.ground import GroundingStage
from avcl_core.errors import DataError
from avcl_core.testing import check_task, toy_towers
from avcl_core.testing.toy_towers import swin


@pytest.fixture(scope="module")
def stage(avqa_prepared) -> GroundingStage:
    return ground_plugin.build(ground_plugin.options(), avqa_prepared, "clean")


def stub(videos: list[str], test: list[str] | None = None) -> GroundingStage:
    rows = {"train": videos, "test": test or []}
    made = {split: {v: SimpleNamespace(video_id=v) for v in part} for split, part in rows.items()}
    data = SimpleNamespace(rows=made.get, prepared=SimpleNamespace(folder="p"), note="")
    return GroundingStage(data)  # pyright: ignore[reportArgumentType]


def test_it_shares_the_data_of_the_task():
    assert ground_plugin.dataset == plugin.dataset == "avqa"
    assert ground_plugin.name == "avqa_ground"


def test_five_per_cent_of_the_real_training_videos_are_held_out():
    real = [f"{i:08d}" for i in range(200)]
    synthetic = [f"{prefix}{i:08d}" for prefix in ("sa", "va", "vv", "esa", "eva", "evv") for i in range(20)]
    found = stub([*synthetic, *real])
    assert len(found.videos["val"]) == 10
    assert found.videos["val"] == found.videos["test"]
    assert sorted(found.videos["train"] + found.videos["val"]) == real
    assert stub([*reversed(real)]).videos["val"] == tuple(reversed(found.videos["val"]))
    assert not set(found.videos["val"]) <= set(real[:20])
    (experience,) = found.experiences()
    assert len(experience.train) == 1900
    assert len(experience.val) == 100
    assert experience.val == experience.test
    assert (
        "190 real training videos; 10 more are held out and judge the stage (validation is test)" in found.splits_note
    )


def test_too_few_videos_are_refused():
    with pytest.raises(DataError, match="3 of 4 that are not synthetic"):
        stub(["00000001", "00000002", "00000003", "sa00000004"])


def test_an_item_is_one_moment_and_a_frame_of_another_video(stage, avqa_prepared):
    data = stage.dataset("train")
    video = data.videos[0]
    seen = []
    for place in (0, 9):
        key = f"{video}/{place}"
        inputs = data.inputs(key, np.random.default_rng(place))
        assert np.array_equal(inputs["visual"][0], avqa_prepared.frames(video)[place])
        assert np.array_equal(inputs["audio"][0], avqa_prepared.wave(video)[place])
        assert inputs["negative"].shape == inputs["visual"].shape == (1, 64, 64, 3)
        assert not any(np.array_equal(inputs["negative"][0], frame) for frame in avqa_prepared.frames(video))
        seen.append(data.digest(key))
    assert len(set(seen)) == 2


def test_evaluation_always_judges_the_same_pairs(stage):
    data = stage.dataset("val")
    negatives = [data.inputs(key, None)["negative"] for key in data.keys]
    again = [stage.dataset("val").inputs(key, None)["negative"] for key in reversed(data.keys)]
    assert all(np.array_equal(a, b) for a, b in zip(negatives, reversed(again), strict=True))
    assert len({n.tobytes() for n in negatives}) > len(data.keys) / 2
    drawn = [data.inputs(data.keys[0], np.random.default_rng(i))["negative"] for i in range(5)]
    assert len({n.tobytes() for n in drawn}) > 1


def test_match_accuracy_counts_both_halves(stage):
    logits = torch.zeros(2, 2, 1, 2)
    logits[0, 0, 0, 1] = logits[1, 0, 0, 1] = logits[1, 1, 0, 1] = 1.0
    decoded = stage.decode({"match": logits})["match"]
    assert decoded.tolist() == [[1, 0], [1, 1]]
    predictions = {name: {"match": decoded[i].numpy()} for i, name in enumerate("ab")}
    truth = {name: stage.dataset("val").targets(stage.dataset("val").keys[0]) for name in "ab"}
    assert stage.score(predictions, truth) == {"accuracy": 75, "accuracy/same": 100, "accuracy/different": 50}
    (chance,) = stage.controls(truth, truth).values()
    assert chance["accuracy"] == 50
    with pytest.raises(ValueError, match=r"differ in 1 samples"):
        stage.score({"a": predictions["a"]}, truth)


def test_stage_keeps_the_contract(stage):
    check_task(stage, {"visual": swin(64), "audio": toy_towers()["audio"]}, samples=2)
