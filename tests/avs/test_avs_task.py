"""The AVS task keeps the contract: loss per annotated frame, compact exact predictions, scores by protocol, controls, exports."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from avcl_avs import plugin
from avcl_avs.levels import encode, foreground
from avcl_avs.metrics import f_score, mean_iou
from avcl_avs.options import SegmentationOptions
from avcl_avs.predictions import unpack
from avcl_avs.task import Segmentation
from avcl_core.testing import check_task
from shared_backbones import create

KEYS = {"train": ("s4/a",), "val": ("s4/b",), "test": ("s4/c", "s4/d")}


@pytest.fixture
def task() -> Segmentation:
    rows = {
        key: SimpleNamespace(category=name, video=key)
        for key, name in zip("abcd", ("cat", "cat", "dog", "cat"), strict=True)
    }
    rows = {f"s4/{key}": row for key, row in rows.items()}
    data = SimpleNamespace(rows=rows, note="", protocol="clean", keys=KEYS.get, split=None)
    return Segmentation(data, SegmentationOptions(width=8, mask_size=32))  # pyright: ignore[reportArgumentType]


def batch(clips: int = 3, size: int = 6, seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(clips, 5, size, size, generator=generator) * 3
    mask = torch.rand(clips, 5, size, size, generator=generator) > 0.6
    annotated = torch.tensor([[True] + [clip > 0] * 4 for clip in range(clips)])
    return {"logits": logits, "avm": torch.rand(clips, 5, generator=generator)}, {"mask": mask, "annotated": annotated}


def test_loss_is_over_annotated_frames_alone(task):
    outputs, targets = batch()
    known = targets["annotated"]
    logits, mask = outputs["logits"][known], targets["mask"][known].float()
    parts = task.loss(outputs, targets)
    expected = functional.binary_cross_entropy(logits.sigmoid(), mask)
    torch.testing.assert_close(parts["mask"], expected)
    assert task.units(targets) == 11
    nll = task.nll(outputs, targets)
    for clip in range(3):
        rows = known[clip]
        alone = functional.binary_cross_entropy(
            outputs["logits"][clip, rows].sigmoid(), targets["mask"][clip, rows].float()
        )
        torch.testing.assert_close(nll[clip], alone)
    changed = {**outputs, "logits": outputs["logits"].clone()}
    changed["logits"][0, 1:] = 99.0  # frames that nobody annotated
    torch.testing.assert_close(task.loss(changed, targets)["mask"], parts["mask"])


def test_match_loss_is_the_published_sum_at_the_published_batch(task):
    outputs, targets = batch(2)
    targets["annotated"][:] = True
    parts = task.loss(outputs, targets)
    torch.testing.assert_close(parts["match"], 0.5 * outputs["avm"].sum())
    doubled = {name: torch.cat([value, value]) for name, value in outputs.items()}
    again = task.loss(doubled, {name: torch.cat([value, value]) for name, value in targets.items()})
    torch.testing.assert_close(again["match"], parts["match"])
    assert "match" not in task.loss({"logits": outputs["logits"]}, targets)


def records(outputs, targets, task) -> tuple[dict, dict]:
    level = task.decode(outputs)["level"].numpy()
    keys = KEYS["test"]
    predictions = {key: {"level": level[row]} for row, key in enumerate(keys)}
    return predictions, {
        key: {name: value[row].numpy() for name, value in targets.items()} for row, key in enumerate(keys)
    }


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_scores_are_the_metrics_of_the_probabilities(task, protocol):
    task.data.protocol = protocol
    outputs, targets = batch(2)
    targets["annotated"][:] = True
    targets["mask"][1, 2] = False
    predictions, truth = records(outputs, targets, task)
    prob, mask = outputs["logits"].sigmoid(), targets["mask"]
    metrics = task.score(predictions, truth)
    assert metrics["mean_iou"] == pytest.approx(mean_iou(prob.flatten(0, 1), mask.flatten(0, 1)))
    whole = f_score(prob.flatten(0, 1), mask.flatten(0, 1))
    clips = np.mean([f_score(prob[i], mask[i]) for i in range(2)])
    assert clips > whole
    assert metrics["f_score"] == pytest.approx(whole if protocol == "clean" else clips)
    assert metrics["mean_iou/dog"] == pytest.approx(mean_iou(prob[0], mask[0]))
    assert metrics["mean_iou/cat"] == pytest.approx(mean_iou(prob[1], mask[1]))
    backwards = [{key: part[key] for key in reversed(part)} for part in (predictions, truth)]
    assert task.score(*backwards) == metrics
    rows = task.table(metrics)
    assert [label for label, _ in rows[:2]] == ["test miou", "test F_score"]
    assert rows[0][1] == f"{metrics['mean_iou']:.4f}"


def test_frames_without_annotation_are_not_judged(task):
    outputs, targets = batch(2)
    predictions, truth = records(outputs, targets, task)
    judged = task.score(predictions, truth)
    predictions["s4/c"]["level"][1:] = 0
    assert task.score(predictions, truth) == judged
    predictions["s4/c"]["level"][0] = 0
    assert task.score(predictions, truth) != judged


def test_perfect_prediction_is_ideal_and_missing_ones_are_refused(task):
    _, targets = batch(2)
    predictions, truth = records({"logits": (targets["mask"].float() - 0.5) * 200}, targets, task)
    metrics = task.score(predictions, truth)
    assert metrics[task.primary] == pytest.approx(task.ideal, abs=1e-6)
    assert metrics["f_score"] == pytest.approx(1)
    with pytest.raises(ValueError, match=r"differ in 1 samples.*'s4/d'"):
        task.score({"s4/c": predictions["s4/c"]}, truth)


def test_controls_are_trivial_predictors(task):
    _, targets = batch(2)
    targets["annotated"][:] = True
    targets["mask"][:] = False
    targets["mask"][:, :, 2:4, 1:5] = True
    _, truth = records({"logits": torch.zeros(2, 5, 6, 6)}, targets, task)
    controls = task.controls(truth, truth)
    q = 8 / 36
    found = {name: (round(values["mean_iou"], 5), round(values["f_score"], 5)) for name, values in controls.items()}
    constant = round(1.3 * q / (0.3 * q + 1), 5)
    assert found == {"no pixel": (0.0, constant), "every pixel": (round(q, 5), constant), "usual place": (1.0, 1.0)}
    assert task.oracles == frozenset()
    # Unannotated frames say nothing about the usual place.
    train = {
        key: {"mask": value["mask"].copy(), "annotated": value["annotated"].copy()} for key, value in truth.items()
    }
    for value in train.values():
        value["annotated"][1:] = False
        value["mask"][1:] = True
    assert task.controls(train, truth)["usual place"]["mean_iou"] == pytest.approx(1)


def test_packed_predictions_are_exact_and_small(task):
    smooth = torch.linspace(-6, 6, 224).view(1, 1, 1, 224).expand(1, 5, 224, 224).contiguous()
    (prediction,) = [{"level": level} for level in task.decode({"logits": smooth})["level"].numpy()]
    text = json.dumps(task.pack(prediction))
    assert len(text) < 8000
    back = unpack(json.loads(text))
    np.testing.assert_array_equal(back["level"], prediction["level"])
    assert back["level"].dtype == np.uint8
    np.testing.assert_array_equal(foreground(back["level"]), (smooth[0].sigmoid() > 0.5).numpy())


def test_masks_are_exported_as_images(task, tmp_path):
    outputs, targets = batch(2)
    predictions, _ = records(outputs, targets, task)
    task.data.rows["s4/d"].category = ""  # as in the multi-source setting
    plugin.exports["save_masks"](tmp_path, task, SimpleNamespace(predictions=predictions))
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    expected = [f"predictions/masks/{place}_{n}.png" for place in ("d/d", "dog/c/c") for n in range(5)]
    assert files == expected
    image = np.asarray(Image.open(tmp_path / "predictions/masks/dog/c/c_3.png"))
    np.testing.assert_array_equal(image, foreground(predictions["s4/c"]["level"][3]) * np.uint8(255))


def test_selection_and_note_follow_the_protocol(avs_prepared):
    clean, paper = (plugin.build(plugin.options(), avs_prepared, protocol) for protocol in ("clean", "paper"))
    assert clean.experiences()[0].selection == "val"
    assert paper.experiences()[0].selection == "test"
    assert "one curve" in clean.splits_note
    assert "per clip" in paper.splits_note
    assert "epoch" not in paper.splits_note  # a run knows which one it keeps


@pytest.mark.parametrize("setting", ["s4", "ms3"])
def test_contract_with_tiny_towers(avs_prepared, setting):
    towers = {"visual": create("swin_v2", size="tiny"), "audio": create("htsat", size="tiny")}
    task = plugin.build(plugin.options(setting=setting, width=8, mask_size=64), avs_prepared, "clean")
    check_task(task, towers, samples=3)


def test_examples_show_masks_over_frames(avs_prepared):
    task = plugin.build(plugin.options(), avs_prepared, "clean")
    data, (key, *_) = task.dataset("val"), task.experiences()[0].val
    truth = data.targets(key)
    prediction = {"level": encode(torch.from_numpy(truth["mask"].astype(np.float32))).numpy()}
    (example,) = task.examples({key: prediction}, {key: truth}, data)
    assert example.key == key
    assert example.title == task.data.rows[key].category
    assert example.frames.shape == (5, 64, 64, 3)
    assert example.truth.shape == example.predicted.shape == (5, 64, 64)
    np.testing.assert_array_equal(example.truth, example.predicted)
    assert example.truth.mean() == pytest.approx(truth["mask"].mean(), abs=0.02)
    assert example.known.all()
