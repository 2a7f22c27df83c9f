"""The AVQA task: keyed questions, negatives of other videos, loss, decoding, scores per type, trivial predictors, report rows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avcl_avqa import plugin
from avcl_avqa.data import Row
from avcl_avqa.dataset import OtherVideos, keyed
from avcl_avqa.metrics import TYPES
from avcl_avqa.task import QuestionAnswering
from avcl_core.errors import ConfigError, DataError
from avcl_core.evaluation.examples import Answer
from avcl_core.features import FeatureSpec, TokenShape
from avcl_core.testing import check_task, toy_towers
from avcl_core.testing.toy_towers import swin


@pytest.fixture(scope="module")
def task(avqa_prepared) -> QuestionAnswering:
    return plugin.build(plugin.options(), avqa_prepared, "clean")


def row(id: int, video: str = "v") -> Row:
    return Row(id, video, TYPES[0], "Is it?", "yes", "Is it?", ("Is", "it"))


def test_keys_are_unique_where_ids_repeat():
    rows = [row(1), row(2), row(1), row(1, "w"), row(1)]
    assert keyed(rows) == dict(zip(["v/1", "v/2", "v/1#2", "w/1", "v/1#3"], rows, strict=True))


def test_inputs_have_the_shapes_of_the_interface(task, avqa_prepared):
    data, key = task.dataset("test"), task.experiences()[0].test[0]
    inputs = data.inputs(key, None)
    assert list(inputs) == ["visual", "audio", "question"]
    assert inputs["visual"].shape == (10, 64, 64, 3)
    assert inputs["visual"].dtype == np.uint8
    assert inputs["audio"].shape == (10, task.audio_rate)
    assert inputs["question"].shape == (14,)
    assert inputs["question"].dtype == np.int64
    words = [task.data.vocabulary.words[i] for i in inputs["question"] if i]
    assert tuple(words) == data.rows[key].words
    assert data.digest(key) == avqa_prepared.sample_digest(key.split("/")[0])


def test_all_questions_of_a_video_share_its_media(task):
    data = task.dataset("train")
    keys = [key for key in task.experiences()[0].train if key.startswith("10000000/")]
    assert len(keys) > 2
    assert len({data.digest(key) for key in keys}) == 1
    assert len({data.inputs(key, None)["question"].tobytes() for key in keys}) == len(keys)


def test_negatives_are_frames_of_other_videos_of_the_split(task, avqa_prepared):
    data, keys = task.dataset("train"), task.experiences()[0].train
    assert data.drawn == {"negative"}
    videos = {key.split("/")[0] for key in keys}
    frames = {video: {f.tobytes(): place for place, f in enumerate(avqa_prepared.frames(video))} for video in videos}
    sources, places = set(), set()
    for number, key in enumerate(keys[:20]):
        own = key.split("/")[0]
        negative = data.inputs(key, np.random.default_rng(number))["negative"]
        assert negative.shape == (10, 64, 64, 3)
        for frame in negative:
            (video,) = [video for video in videos if frame.tobytes() in frames[video]]
            assert video != own
            sources.add(video)
            places.add(frames[video][frame.tobytes()])
    assert sources == videos
    assert places == set(range(10))
    again = [data.inputs(keys[0], np.random.default_rng(seed))["negative"] for seed in (1, 1, 2)]
    assert np.array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])


def test_broken_videos_are_never_drawn_and_one_video_has_no_other(avqa_prepared):
    good, bad, other = avqa_prepared.ids[:3]
    stub = SimpleNamespace(folder="p", quarantined={bad: None}, frames=avqa_prepared.frames)
    assert OtherVideos(stub, [good, bad, other, good]).videos == sorted([good, other])  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="1 readable videos in the split"):
        OtherVideos(stub, [good, bad, good])  # pyright: ignore[reportArgumentType]


def test_targets_are_places_in_the_lists(task):
    data = task.dataset("val")
    for key, asked in data.rows.items():
        found = data.targets(key)
        assert task.labels[int(found["answer"])] == asked.answer
        assert TYPES[int(found["type"])] == asked.type
        assert list(task.data.templates)[int(found["template"])] == asked.template


def test_loss_is_that_of_the_specification(task):
    outputs = {"answer": torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]])}
    truth = {"answer": torch.tensor([0, 2])}
    answer = [np.log(np.exp([1.0, 0.0, -1.0]).sum()) - 1.0, np.log(3)]
    np.testing.assert_allclose(task.nll(outputs, truth).numpy(), answer, rtol=1e-6)
    assert {name: part.item() for name, part in task.loss(outputs, truth).items()} == pytest.approx(
        {"answer": np.mean(answer)}
    )
    logits = torch.zeros(2, 2, 10, 2)
    logits[0, 0, :, 1] = 2.0  # matches that are seen as such
    parts = task.loss(outputs | {"match": logits}, truth)
    match = [(np.log1p(np.exp(-2.0)) + np.log(2)) / 2, np.log(2)]
    assert parts["match"].item() == pytest.approx(0.5 * np.mean(match), rel=1e-6)
    assert parts["answer"].item() == pytest.approx(np.mean(answer))
    assert task.units(truth) == 2


def records(values: dict[str, list[int]]) -> dict[str, dict[str, np.ndarray]]:
    rows = zip(*values.values(), strict=True)
    return {f"k{i}": {n: np.array(v) for n, v in zip(values, row, strict=True)} for i, row in enumerate(rows)}


def test_scores_per_type_leave_out_types_without_questions(task):
    truth = records({"answer": [0, 1, 2, 3], "type": [0, 0, 1, 8], "template": [0, 0, 1, 2]})
    predictions = {key: {"answer": truth[key]["answer"]} for key in truth}
    assert set(task.score(predictions, truth).values()) == {100.0}
    predictions["k1"] = {"answer": np.array(0)}
    found = task.score(dict(reversed(predictions.items())), truth)
    assert found == pytest.approx(
        {
            "accuracy": 75,
            "audio_counting": 50,
            "audio_comparative": 100,
            "audio": 200 / 3,
            "av_temporal": 100,
            "av": 100,
        }
    )
    with pytest.raises(ValueError, match=r"differ in 1 samples.*'k3'"):
        task.score({key: predictions[key] for key in ("k0", "k1", "k2")}, truth)


def test_controls_are_fitted_on_training_answers(task):
    train = records({"answer": [1, 1, 1, 2, 2, 3], "type": [0] * 6, "template": [0, 0, 1, 1, 1, 2]})
    test = records({"answer": [1, 2, 2, 1], "type": [0, 0, 1, 1], "template": [0, 1, 1, 9]})
    frequent, majority = task.controls(train, test).values()
    assert next(iter(task.controls(train, test))) == f"always {task.labels[1]!r}"
    assert frequent["accuracy"] == 50
    assert majority == pytest.approx({"accuracy": 100, "audio_counting": 100, "audio_comparative": 100, "audio": 100})


def test_result_block_has_the_published_order(task):
    metrics = {"accuracy": 50.126, **dict.fromkeys(("av", "av_temporal", "visual", "audio_counting"), 1.0)}
    assert task.table(metrics) == [
        ("Audio Counting", "1.00"), ("Visual", "1.00"), ("AV Temporal", "1.00"), ("AV", "1.00"), ("Overall", "50.13"),
    ]  # fmt: skip


def test_every_question_is_an_example(task):
    dataset, key = task.dataset("test"), task.experiences()[0].test[0]
    truth = {key: dataset.targets(key)}
    (example,) = task.examples({key: {"answer": np.array(1)}}, truth, dataset)
    asked = dataset.rows[key]
    kind = " ".join(asked.type)
    assert example == Answer(key, f"video {asked.video_id}", asked.question, asked.answer, task.labels[1], kind)


def test_both_towers_are_needed(task):
    with pytest.raises(ConfigError, match=r"needs a tower towers\.audio"):
        task.head(FeatureSpec({"visual": TokenShape((2, 2), 8)}, {"visual": ()}), task.experiences()[0])


def test_both_protocols_select_on_validation(task, avqa_prepared):
    paper = plugin.build(plugin.options(), avqa_prepared, "paper")
    assert task.experiences() == paper.experiences()
    assert task.experiences()[0].selection == "val"


def test_task_keeps_the_contract(task):
    check_task(task, {"visual": swin(64), "audio": toy_towers()["audio"]}, samples=2)
