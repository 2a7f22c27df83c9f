"""The AVE task keeps the contract: any towers, per-sample loss, decoding, scores by key, trivial predictors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from avcl_ave.task import EventLocalisation
from avcl_core.batch import Batch
from avcl_core.features import Features, FeatureSpec, TokenShape

LABELS = ("ring", "drone", "tick")


@pytest.fixture
def task() -> EventLocalisation:
    keys = {"train": ("a#00", "b#01"), "val": ("c#02",), "test": ("d#00",)}
    data = SimpleNamespace(classes=LABELS, note="", protocol="clean", keys=keys.get, split=None)
    return EventLocalisation(data)  # pyright: ignore[reportArgumentType]


def features(towers: dict[str, int], seconds: int, clips: int = 3) -> tuple[FeatureSpec, Features]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: TokenShape((2, 2), width, 1) for name, width in towers.items()}
    tokens = {name: torch.randn(clips, seconds, 5, width, generator=generator) for name, width in towers.items()}
    return FeatureSpec(shapes, dict.fromkeys(towers, ())), Features(tokens, dict.fromkeys(towers, ()))


def targets(seconds: int) -> dict[str, torch.Tensor]:
    segments = torch.full((3, seconds), 3)
    segments[0, : seconds // 2] = 1
    segments[1] = 2
    return {"segments": segments, "event": torch.tensor([1, 2, 0])}


@pytest.mark.parametrize("towers", [{"visual": 12}, {"audio": 7}, {"visual": 12, "audio": 7}])
@pytest.mark.parametrize("seconds", [1, 4, 10])
def test_head_learns_from_any_towers(task, towers, seconds):
    spec, found = features(towers, seconds)
    (experience,) = task.experiences()
    head = task.head(spec, experience)
    outputs = head(found, Batch("ave", ("a", "b", "c"), {}))
    assert outputs["relevance"].shape == (3, seconds)
    assert outputs["event"].shape == (3, 3)
    assert outputs.keys() == task.fields.keys()
    nll, loss = task.nll(outputs, targets(seconds)), task.loss(outputs, targets(seconds))
    assert nll.shape == (3,)
    assert torch.isfinite(nll).all()
    assert sum(loss.values()).item() == pytest.approx(nll.mean().item(), rel=1e-6)
    assert task.units(targets(seconds)) == 3
    sum(loss.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_samples_of_a_batch_do_not_mix(task):
    spec, found = features({"visual": 6, "audio": 4}, 5)
    head = task.head(spec, task.experiences()[0])
    alone = Features({name: value[1:2] for name, value in found.final.items()}, found.stages)
    whole, single = (head(f, Batch("ave", (), {})) for f in (found, alone))
    for name in task.fields:
        torch.testing.assert_close(whole[name][1:2], single[name])


def test_the_event_of_the_clip_can_be_in_any_second(task):
    spec, found = features({"visual": 6, "audio": 4}, 8)
    head = task.head(spec, task.experiences()[0])
    before = head(found, Batch("ave", (), {}))["event"]
    for second in range(8):
        changed = {name: value.clone() for name, value in found.final.items()}
        changed["visual"][:, second] *= torch.linspace(-20, 20, 6)
        after = head(Features(changed, found.stages), Batch("ave", (), {}))["event"]
        assert (after - before).abs().max() > 1e-3, second


def test_loss_is_that_of_the_specification(task):
    outputs = {"relevance": torch.tensor([[2.0, -1.0]]), "event": torch.tensor([[1.0, 0.0, -1.0]])}
    truth = {"segments": torch.tensor([[0, 3]]), "event": torch.tensor([0])}
    relevance = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 2
    event = np.log(np.exp([1.0, 0.0, -1.0]).sum()) - 1.0
    assert task.nll(outputs, truth).item() == pytest.approx(relevance + event, rel=1e-6)


def test_decoding_takes_the_class_where_relevance_exceeds_one_half(task):
    outputs = {"relevance": torch.tensor([[0.1, 0.0, -0.1], [9.0, -9.0, 9.0]]), "event": torch.eye(3)[[1, 2]]}
    decoded = task.decode(outputs)
    assert decoded["segments"].tolist() == [[1, 3, 3], [2, 3, 2]]
    assert decoded["event"].tolist() == [1, 2]


def by_key(values: dict[str, torch.Tensor]) -> dict[str, dict[str, np.ndarray]]:
    return {key: {name: value[row].numpy() for name, value in values.items()} for row, key in enumerate("abc")}


def test_perfect_outputs_score_100_in_any_key_order(task):
    truth = targets(10)
    outputs = {
        "relevance": torch.where(truth["segments"] < 3, 5.0, -5.0),
        "event": functional.one_hot(truth["event"], 3).float(),
    }
    predictions = by_key(task.decode(outputs))
    metrics = task.score(predictions, by_key(truth))
    assert set(metrics.values()) == {100.0}
    assert metrics[task.primary] == task.ideal
    # Class 0 has no second of its own, so it has no accuracy.
    assert [name for name in metrics if "/" in name] == ["accuracy/drone", "accuracy/tick", "accuracy/background"]
    wrong = {**predictions, "b": predictions["a"]}
    backwards = {key: wrong[key] for key in reversed(wrong)}
    assert task.score(backwards, by_key(truth)) == task.score(wrong, by_key(truth))
    assert task.score(wrong, by_key(truth))["accuracy"] == pytest.approx(2000 / 30)


def test_missing_prediction_is_refused(task):
    truth = by_key(targets(10))
    with pytest.raises(ValueError, match=r"differ in 1 samples.*'c'"):
        task.score({key: truth[key] for key in "ab"}, truth)


def test_controls_and_result_block(task):
    truth = by_key(targets(10))
    train = {str(i): {"segments": np.zeros(10, int), "event": np.array(e)} for i, e in enumerate([2, 1, 2])}
    controls = task.controls(train, truth)
    scores = {name: round(metrics["accuracy"], 2) for name, metrics in controls.items()}
    assert scores == {
        "always background": 50.0,
        "most frequent class on every second": 33.33,
        "true class on every second": 50.0,
    }
    assert task.oracles <= controls.keys()
    rows = task.table(controls["always background"])
    assert rows[0] == ("test acc", "50.00")
    assert [label for label, _ in rows[-2:]] == ["event-relevance acc", "clip-class acc"]
    assert task.pack(truth["a"]) == {"segments": [1] * 5 + [3] * 5, "event": 1}


def test_selection_follows_the_protocol(task):
    assert task.experiences()[0].selection == "val"
    task.data.protocol = "paper"
    assert task.experiences()[0].selection == "test"
