"""AVVP at video level: the scores of a parser, and the paper's protocol with its items, its target and its degenerate metric."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avcl_avvp import ParsingOptions, plugin
from avcl_avvp.data import LLP_CLASSES
from avcl_avvp.dataset import ParsingData
from avcl_avvp.items import VideoItems, video_of
from avcl_avvp.task import VideoParsing
from avcl_avvp.video_level import VideoClassification
from avcl_avvp.video_metrics import mean_average_precision, video_scores
from avcl_core.batch import Batch
from avcl_core.collective import Collective
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError, DataError
from avcl_core.evaluation.evaluator import Evaluator
from avcl_core.evaluation.examples import Answer
from avcl_core.features import Features, FeatureSpec, TokenShape
from avcl_core.methods.finetune import Finetune
from avcl_core.testing import toy_towers
from avcl_core.training.inputs import make_inputs
from avcl_core.training.loader import Loader

LABELS = ("Speech", "Car", "Dog")
SHAPES = {"visual": TokenShape((2, 2), 4, 1), "audio": TokenShape((2, 2), 6)}
BOTH = FeatureSpec(SHAPES, {}, ("visual", "audio"))
VIDEO = ParsingOptions(head="text", evaluation="video_level")
FILES = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}


@pytest.fixture
def task() -> VideoClassification:
    keys = {"train": ("a#0", "b#0", "b#1"), "val": ("c#0",), "test": ("d#0",)}
    data = SimpleNamespace(classes=LABELS, note="", keys=keys.get, split=None)
    return VideoClassification(data)  # pyright: ignore[reportArgumentType]


def written(folder, rows: dict[str, list[str]]):
    """Prepared label files of LLP without media; the dense ones are not there at all."""
    for split, name in FILES.items():
        (folder / name).write_text("".join(f"{row}\n" for row in ["filename\tevent_labels", *rows[split]]))

    def annotation(name: str):
        return folder / FILES[name]

    return SimpleNamespace(layout="avvp", folder=folder, extras=(), annotation=annotation)


ROWS = {
    "train": ["aaaaaaaaaaa_0_10\tDog,Speech", "-b_bbbbbbbb_101.8_111.8\tClapping"],
    "val": ["ccccccccccc_0_10\tCar,Cat,Dog"],
    "test": ["ddddddddddd_0_10\tClapping,Clapping", "eeeeeeeeeee_0_10\tCello,Car"],
}


# ---------------------------------------------------------------- items
def test_items_are_listed_once_per_label_with_keys_of_their_own(tmp_path):
    data = VideoItems(written(tmp_path, ROWS))
    assert data.keys("train") == ("aaaaaaaaaaa_0_10#0", "aaaaaaaaaaa_0_10#1", "-b_bbbbbbbb_101.8_111.8#0")
    # A label that is listed twice is two items (php.md 5.3).
    assert data.keys("test") == tuple(f"{v * 11}_0_10#{place}" for v in "de" for place in (0, 1))
    assert [video_of(key) for key in data.keys("train")][1:] == ["aaaaaaaaaaa_0_10", "-b_bbbbbbbb_101.8_111.8"]
    assert data.note.endswith("(train 2 as 3, val 1 as 3, test 2 as 4), judged by weak labels")


def test_targets_are_the_same_unnormalised_multi_hot_for_all_items_of_a_video(tmp_path):
    data = VideoItems(written(tmp_path, ROWS))
    for split, keys in {"train": ("aaaaaaaaaaa_0_10#0", "aaaaaaaaaaa_0_10#1"), "test": ("ddddddddddd_0_10#1",)}.items():
        for key in keys:
            targets = data.split(split).targets(key)
            assert list(targets) == ["labels"]
            assert (targets["labels"].dtype, targets["labels"].shape) == (np.float32, (25,))
            expected = [0, 3] if split == "train" else [24]
            assert np.flatnonzero(targets["labels"]).tolist() == expected
            assert targets["labels"].sum() == len(expected)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ("ddddddddddd_0_10\tDogg", r"AVVP_test_pd\.csv \[line 3\].*event_labels.*'Dogg'.*did you mean 'Dog'"),
        ("ddddddddddd_0_10", r"AVVP_test_pd\.csv \[line 3\].*fields: found 1"),
        ("aaaaaaaaaaa_5_15\tDog", r"AVVP_test_pd\.csv \[line 3\].*aaaaaaaaaaa_5_15; its id is also in line 2"),
    ],
)
def test_malformed_rows_are_named(tmp_path, row, part):
    with pytest.raises(DataError, match=part):
        VideoItems(written(tmp_path, {**ROWS, "test": [ROWS["test"][1], row]}))


def test_another_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="layout: found ave"):
        VideoItems(SimpleNamespace(layout="ave", folder=tmp_path))


# ---------------------------------------------------------------- head and loss
def test_logits_are_the_mean_over_seconds_of_twice_sight_plus_twice_sound(task):
    head = task.head(BOTH, task.experiences()[0])
    assert list(head.state_dict()) == []
    visual = torch.tensor([[[1.0, 0.0, 2.0], [3.0, 0.0, -2.0]]])
    audio = torch.tensor([[[0.5, 4.0, 1.0], [0.5, -2.0, 1.0]]])
    outputs = head(Features({}, {}, similarity={"audio": audio, "visual": visual}), Batch("avvp", ("a",), {}))
    assert {name: value.tolist() for name, value in outputs.items()} == {"logits": [[5.0, 2.0, 2.0]]}
    assert outputs.keys() == task.fields.keys()
    assert task.fields == {"logits": "classes"}
    assert task.texts == LABELS  # no background
    narrow = {"audio": audio.bfloat16(), "visual": visual.bfloat16()}
    assert head(Features({}, {}, similarity=narrow), Batch("avvp", ("a",), {}))["logits"].dtype == torch.float32


@pytest.mark.parametrize("has", [(), ("visual",), ("audio",)])
def test_a_model_without_texts_is_refused(task, has):
    with pytest.raises(ConfigError, match=r"tasks\.avvp\.head=text needs .*\(avcl list models\)"):
        task.head(FeatureSpec(SHAPES, {}, has), task.experiences()[0])


def test_loss_is_five_times_the_cross_entropy_with_the_mass_of_all_labels(task):
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], requires_grad=True)
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    log_p = logits.detach().double().log_softmax(1).numpy()
    expected = [-(log_p[0, 0] + log_p[0, 1]), -log_p[1, 2]]
    nll = task.nll({"logits": logits}, {"labels": labels})
    assert nll.tolist() == pytest.approx(expected)
    loss = task.loss({"logits": logits}, {"labels": labels})
    assert {name: value.item() for name, value in loss.items()} == pytest.approx({"video": 5 * np.mean(expected)})
    assert (nll.dtype, task.units({"labels": labels})) == (torch.float32, 2)
    loss["video"].backward()
    # (mass · softmax − labels) · 5 / 2
    p = np.exp(log_p)
    np.testing.assert_allclose(logits.grad.numpy(), 2.5 * (np.array([[2], [1]]) * p - labels.numpy()), rtol=1e-5)


# ---------------------------------------------------------------- the score
def records(*items: tuple[str, list[int], int]):
    """Predictions and targets of (key, labels, predicted class)."""
    targets = {key: {"labels": np.isin(np.arange(6), labels).astype(np.float32)} for key, labels, _ in items}
    return {key: {"event": np.array(event)} for key, _, event in items}, targets


def test_only_the_lowest_label_is_right(task):
    assert task.primary == "video_accuracy"
    for event, right, hit in ((5, 0, 100), (1, 100, 100), (0, 0, 0)):
        scores = task.score(*records(("a#0", [1, 5], event), ("a#1", [1, 5], event)))
        assert scores == {"video_accuracy": right, "video_accuracy_once": right, "video_hit": hit}


def test_items_weigh_by_labels_and_videos_once(task):
    items = [("a#0", [0, 1, 2], 0), ("a#1", [0, 1, 2], 0), ("a#2", [0, 1, 2], 0), ("b#0", [3], 2), ("c#0", [2, 4], 4)]
    items.append(("c#1", [2, 4], 4))
    scores = task.score(*records(*items))
    assert scores == pytest.approx({"video_accuracy": 50, "video_accuracy_once": 100 / 3, "video_hit": 200 / 3})
    predictions, targets = records(*reversed(items))
    assert task.score(predictions, targets) == scores


def test_equal_logits_are_the_lowest_index(task):
    assert task.decode({"logits": torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]])})["event"].tolist() == [1, 0]


def test_what_cannot_be_scored_is_refused(task):
    predictions, targets = records(("a#0", [1], 1), ("b#0", [0], 0))
    with pytest.raises(ValueError, match=r"differ in 1 items.*'b#0'"):
        task.score({"a#0": predictions["a#0"]}, targets)
    targets["b#0"]["labels"][:] = 0
    with pytest.raises(ValueError, match=r"'b#0' has no label"):
        task.score(predictions, targets)


def test_controls_table_groups_and_examples(task):
    _, train = records(("a#0", [1, 2], 0), ("a#1", [1, 2], 0), ("b#0", [0], 0))
    train = {key: {"labels": value["labels"][:3]} for key, value in train.items()}
    _, test = records(("c#0", [1], 0), ("d#0", [0, 2], 0), ("d#1", [0, 2], 0))
    test = {key: {"labels": value["labels"][:3]} for key, value in test.items()}
    controls = task.controls(train, test)
    assert {name: values["video_accuracy"] for name, values in controls.items()} == pytest.approx(
        {"always Speech (class 0)": 200 / 3, "always Car (most frequent target)": 100 / 3}
    )
    assert not task.oracles & controls.keys()
    assert task.table(controls["always Speech (class 0)"]) == [
        ("Video accuracy, items (lowest label)", "66.67"),
        ("Video accuracy, videos (lowest label)", "50.00"),
        ("Video accuracy, videos (any label)", "50.00"),
    ]
    assert task.groups("d#1", test["d#1"]) == ("Speech", "Dog")
    (shown,) = task.examples({"d#1": {"event": np.array(2)}}, test, None)
    question = "Which event is in this video?"
    assert shown == Answer("d#1", "video d", question, "Speech, Dog", "Dog", "video level")


# ---------------------------------------------------------------- where it may be asked for
def test_a_clean_stream_refuses_it(avvp_prepared):
    with pytest.raises(ConfigError, match=r"tasks\.avvp\.evaluation: video_level.*stream\.protocol=paper") as error:
        plugin.build(VIDEO, avvp_prepared, "clean")
    assert "\n" not in str(error.value)
    assert isinstance(plugin.build(VIDEO, avvp_prepared, "paper"), VideoClassification)


def test_its_test_set_is_no_column_of_parsing(avvp_prepared):
    (video,) = plugin.build(VIDEO, avvp_prepared, "paper").experiences()
    (parsing,) = plugin.build(ParsingOptions(head="text"), avvp_prepared, "paper").experiences()
    assert (video.name, parsing.name) == ("avvp-video", "avvp")
    assert (video.task, video.selection) == ("avvp", "val")
    assert set(video.train) != set(parsing.train)
    assert {video_of(key) for key in video.train} == set(parsing.train)


def test_items_of_a_world_have_the_clips_of_their_video(avvp_prepared):
    task = plugin.build(VIDEO, avvp_prepared, "paper")
    parsing = plugin.build(ParsingOptions(head="text"), avvp_prepared, "paper")
    (experience,) = task.experiences()
    for split in ("train", "val", "test"):
        data, other = task.dataset(split), parsing.dataset(split)
        counts: dict[str, int] = {}
        for key in experience.keys(split):
            video = video_of(key)
            counts[video] = counts.get(video, 0) + 1
            np.testing.assert_array_equal(data.targets(key)["labels"], other.targets(video)["labels"])
            assert data.digest(key) == other.digest(video)
        assert counts == {key: int(other.targets(key)["labels"].sum()) for key in parsing.data.keys(split)}
    key = experience.test[0]
    inputs, same = task.dataset("test").inputs(key, None), parsing.dataset("test").inputs(video_of(key), None)
    assert inputs.keys() == same.keys() == {"visual", "audio"}
    assert all(np.array_equal(inputs[name], same[name]) for name in inputs)


def test_a_model_is_trained_and_evaluated(avvp_prepared, comparing):
    task = plugin.build(VIDEO, avvp_prepared, "paper")
    (experience,) = task.experiences()
    towers = toy_towers()
    torch.manual_seed(0)
    model = comparing(towers, {"avvp": task}, Options())
    model.grow(experience)
    method = Finetune(model, {"avvp": task}, Finetune.Config(), 0)
    loader = Loader({"avvp": task}, make_inputs(towers, {}, task.audio_rate, None))
    (batch,) = loader.batches(experience, "train", 99)
    assert batch.targets["labels"].dtype == torch.float32
    optimizer = torch.optim.Adam(model.texts.parameters(), 0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = sum(method.losses(batch).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    found = Evaluator(loader, False, 3, Collective()).evaluate(method, task, experience, "test")
    assert set(found.predictions) == set(experience.test)
    by_video = {(video_of(key), int(p["event"])) for key, p in found.predictions.items()}
    assert len(by_video) == len({video for video, _ in by_video})  # items of a video are decided alike
    assert next(iter(found.controls)) == f"always {task.labels[0]} (class 0)"


# ---------------------------------------------------------------- what a parser says of whole videos
def test_scores_of_whole_videos():
    p = np.array([[0.9, 0.2, 0.6], [0.5, 0.7, 0.1], [0.4, 0.3, 0.49], [0.6, 0.6, 0.0]])
    y = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0]])
    found = video_scores(p - 0.5, y, np.array([1, 2, 1, 1]))
    # Class 0: TP 2, FP 1, FN 0; class 1: TP 2; class 2: FP 1, FN 1.
    assert found["video_f1_micro"] == pytest.approx(100 * 8 / (8 + 2 + 1))
    assert found["video_f1_macro"] == pytest.approx(100 * (0.8 + 1 + 0) / 3)
    # Ranking of class 0: right, wrong, right; of class 1: right, right; of class 2: wrong, right.
    assert found["video_map"] == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1 + 1 / 2) / 3)
    # Most likely: 0, 1, 2 and, of two equal ones, 0; lowest labels: 0, 0, 2, 1.
    assert found["video_hit"] == 75
    assert found["video_accuracy"] == pytest.approx(100 * 2 / 5)
    assert list(found) == ["video_map", "video_f1_micro", "video_f1_macro", "video_hit", "video_accuracy"]


def test_average_precision_lets_equal_scores_enter_together():
    truth = np.array([[True, True], [False, False], [False, True], [True, False]])
    constant = np.zeros((4, 2))
    assert mean_average_precision(constant, truth) == 0.5
    assert mean_average_precision(truth.astype(float), truth) == 1
    scores = np.array([[3.0, 1], [2, 1], [2, 1], [2, 0]])
    # Class 0: 1 of 1, then 2 of 4 at once; class 1: 2 of 3 at once.
    assert mean_average_precision(scores, truth) == pytest.approx((0.5 * 1 + 0.5 * 2 / 4 + 2 / 3) / 2)
    never = np.column_stack([truth[:, 0], np.zeros(4, bool)])
    assert mean_average_precision(scores, never) == pytest.approx(0.75)  # a class that no video has is left out


def test_classes_that_are_neither_true_nor_predicted_do_not_count():
    y = np.array([[1, 0, 0, 0], [1, 0, 0, 0]])
    scores = video_scores(np.array([[6.0, -1, -9, -9], [6, 7, -9, -9]]), y, np.ones(2))
    assert scores["video_f1_macro"] == pytest.approx(50)  # classes 0 (1) and 1 (0)
    assert scores["video_map"] == 100


@pytest.mark.parametrize(
    ("p", "y", "listed", "part"),
    [
        (np.zeros((2, 3)), np.ones((2, 2)), np.ones(2), "expected"),
        (np.zeros((0, 3)), np.ones((0, 3)), np.ones(0), "N > 0"),
        (np.zeros((2, 3)), np.ones((2, 3)), np.ones(3), "expected"),
        (np.zeros((1, 2)), np.array([[0.5, 1]]), np.ones(1), "other than 0 and 1"),
        (np.zeros((2, 2)), np.array([[0, 0], [1, 0]]), np.ones(2), "needs a label"),
    ],
)
def test_what_is_no_score_is_refused(p, y, listed, part):
    with pytest.raises(ValueError, match=part):
        video_scores(p, y, listed)


def test_a_parser_counts_items_as_the_file_lists_them(avvp_prepared):
    """Controls of parsing and of the video level agree on what they both define."""
    task = plugin.build(ParsingOptions(head="text"), avvp_prepared, "clean")
    test = {key: task.dataset("test").targets(key) for key in task.data.keys("test")}
    train = {key: task.dataset("train").targets(key) for key in task.data.keys("train")}
    assert all("listed" not in target for target in train.values())
    assert all(int(target["listed"]) == target["labels"].sum() for target in test.values())
    controls = task.controls(train, test)
    for name in ("video_map", "video_f1_micro", "video_f1_macro", "video_hit", "video_accuracy"):
        assert controls["true weak labels on every second"][name] == 100
    assert controls["nothing"]["video_f1_micro"] == 0


# ---------------------------------------------------------------- the real label files
def real(folder, audio: str = "AVVP_eval_audio.csv"):
    names = {**FILES, "audio": audio, "visual": "AVVP_eval_visual.csv"}
    return SimpleNamespace(layout="avvp", folder=folder, extras=(), annotation=lambda name: folder / names[name])


@pytest.mark.realdata
def test_real_items_and_the_constant_speech_predictor(real_data):
    """php.md 6.7, 9.1: with the repaired audio file too, since the paper's score reads no dense labels."""
    task = plugin.build(VIDEO, real(real_data / "annotations" / "llp"), "paper")
    (experience,) = task.experiences()
    assert [len(experience.keys(split)) for split in ("train", "val", "test")] == [16057, 1170, 2179]
    assert experience.train[:2] == ("BjCEufrlXm4_20_30#0", "BjCEufrlXm4_20_30#1")
    assert experience.test[0].startswith("4YdbENYcIyE_23_33#")
    assert task.texts == task.labels == LLP_CLASSES
    targets = {s: {k: task.dataset(s).targets(k) for k in experience.keys(s)} for s in ("train", "val", "test")}
    most = {split: max(int(t["labels"].sum()) for t in part.values()) for split, part in targets.items()}
    assert most == {"train": 3, "val": 4, "test": 7}
    first = targets["train"]["BjCEufrlXm4_20_30#1"]["labels"]
    assert [LLP_CLASSES[i] for i in np.flatnonzero(first)] == ["Speech", "Dog"]
    assert [LLP_CLASSES[i] for i in np.flatnonzero(targets["test"][experience.test[0]]["labels"])] == [
        "Baby_cry_infant_cry"
    ]
    assert [key for key in experience.test if key.startswith("LcFWKgFphXI_20_30")] == [
        "LcFWKgFphXI_20_30#0",
        "LcFWKgFphXI_20_30#1",
    ]
    controls = task.controls(targets["train"], targets["test"])
    assert list(controls) == ["always Speech (class 0)", "always Speech (most frequent target)"]
    for values in controls.values():
        assert values["video_accuracy"] == pytest.approx(100 * 1373 / 2179)
        assert values["video_accuracy_once"] == pytest.approx(100 * 625 / 1200)
        assert values["video_hit"] == pytest.approx(100 * 625 / 1200)


@pytest.mark.realdata
def test_a_parser_that_always_says_speech_has_the_same_accuracy(real_data):
    folder = real_data / "annotations" / "llp"
    task = VideoParsing(ParsingData(real(folder), "clean", False))
    test = {key: task.dataset("test").targets(key) for key in task.data.keys("test")}
    train = {key: task.dataset("train").targets(key) for key in task.data.keys("train")}
    assert sum(int(target["listed"]) for target in test.values()) == 2179
    speech = task.controls(train, test)["always Speech in audio, nothing in vision"]
    assert speech["video_accuracy"] == pytest.approx(100 * 1373 / 2179)
    assert speech["video_hit"] == pytest.approx(100 * 625 / 1200)
    assert speech["segment_type_av"] == pytest.approx(13.72, abs=0.005)
