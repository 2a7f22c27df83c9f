"""The AVE task keeps the contract in both settings: per-sample loss, decoding, scores by key, trivial predictors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from avcl_ave import EventOptions
from avcl_ave.settings import SETTINGS
from avcl_ave.task import EventLocalisation
from avcl_ave.weak import WeakEventLocalisation, clip_log_probabilities, log_others
from avcl_core.batch import Batch
from avcl_core.evaluation.examples import Timeline, TimelineRow
from avcl_core.features import Features, FeatureSpec, TokenShape

LABELS = ("ring", "drone", "tick")


def make(setting: str) -> EventLocalisation:
    keys = {"train": ("a#00", "b#01"), "val": ("c#02",), "test": ("d#00",)}
    data = SimpleNamespace(classes=LABELS, note="", protocol="clean", keys=keys.get, split=None)
    return SETTINGS[setting, "cmbs"](data, 8)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def task() -> EventLocalisation:
    return make("supervised")


@pytest.fixture
def weak() -> EventLocalisation:
    return make("weak")


@pytest.fixture(params=["supervised", "weak"])
def either(request) -> EventLocalisation:
    return make(request.param)


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


@pytest.mark.parametrize("seconds", [1, 4, 10])
def test_head_learns_in_every_part(either, seconds):
    spec, found = features({"visual": 12, "audio": 7}, seconds)
    (experience,) = either.experiences()
    head = either.head(spec, experience).eval()
    outputs = head(found, Batch("ave", ("a", "b", "c"), {}))
    assert outputs.keys() == either.fields.keys()
    assert all(len(value) == 3 for value in outputs.values())
    nll, loss = either.nll(outputs, targets(seconds)), either.loss(outputs, targets(seconds))
    assert nll.shape == (3,)
    assert torch.isfinite(nll).all()
    assert sum(loss.values()).item() == pytest.approx(nll.mean().item(), rel=1e-6)
    assert either.units(targets(seconds)) == 3
    sum(loss.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        # Before a second second there is no state to carry over.
        assert parameter.grad.abs().sum() > 0 or (seconds == 1 and "weight_hh" in name), name


def test_samples_of_a_batch_do_not_mix(either):
    spec, found = features({"visual": 6, "audio": 4}, 5)
    head = either.head(spec, either.experiences()[0]).eval()
    alone = Features({name: value[1:2] for name, value in found.final.items()}, found.stages)
    whole, single = (head(f, Batch("ave", (), {})) for f in (found, alone))
    for name in either.fields:
        torch.testing.assert_close(whole[name][1:2], single[name])


@pytest.mark.parametrize("tower", ["visual", "audio"])
def test_every_second_of_either_modality_can_change_every_second(task, tower):
    spec, found = features({"visual": 6, "audio": 6}, 8)
    head = task.head(spec, task.experiences()[0]).eval()
    before = head(found, Batch("ave", (), {}))
    for second in range(8):
        changed = {name: value.clone() for name, value in found.final.items()}
        changed[tower][:, second] *= torch.linspace(-20, 20, 6)
        after = head(Features(changed, found.stages), Batch("ave", (), {}))
        assert (after["event"] - before["event"]).abs().max() > 1e-4, second
        assert ((after["relevance"] - before["relevance"]).abs().amax(0) > 1e-6).all(), second


def test_loss_is_that_of_the_specification(task):
    outputs = {
        "relevance": torch.tensor([[2.0, -1.0]]),
        "event": torch.tensor([[1.0, 0.0, -1.0]]),
        "scores": torch.tensor([[0.0, 2.0, 0.5]]),
    }
    truth = {"segments": torch.tensor([[0, 3]]), "event": torch.tensor([0])}
    expected = {
        "relevance": (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 2,
        "event": np.log(np.exp([1.0, 0.0, -1.0]).sum()) - 1.0,
        "scores": np.log(np.exp([0.0, 2.0, 0.5]).sum()),
    }
    assert {name: value.item() for name, value in task.loss(outputs, truth).items()} == pytest.approx(expected)
    assert task.nll(outputs, truth).item() == pytest.approx(sum(expected.values()))


def test_weak_loss_is_that_of_the_specification(weak):
    """BCE of torch on the mean softmax, which is stable enough in float64 away from 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    outputs = {
        "segments": torch.randn(3, 10, 4, generator=generator, dtype=torch.float64),
        "scores": torch.randn(3, 3, generator=generator, dtype=torch.float64),
    }
    event = torch.tensor([1, 2, 0])
    clip = torch.stack([second.softmax(-1) for second in outputs["segments"].unbind(1)]).mean(0)
    one_hot = torch.eye(4, dtype=torch.float64)[event]
    bce = functional.binary_cross_entropy(clip, one_hot)
    ce = functional.cross_entropy(outputs["scores"], event)
    loss = weak.loss(outputs, {"event": event})
    torch.testing.assert_close(loss["clip"], bce, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss["scores"], ce, rtol=0, atol=1e-12)
    # The spans that validation and test carry change nothing.
    torch.testing.assert_close(weak.nll(outputs, targets(10)), weak.nll(outputs, {"event": event}), rtol=0, atol=0)


def test_weak_loss_is_finite_and_has_a_gradient_where_probabilities_saturate(weak):
    segments = torch.zeros(2, 10, 4)
    segments[..., 1] = 200.0
    outputs = {"segments": segments.requires_grad_(), "scores": torch.zeros(2, 3)}
    right, wrong = weak.parts(outputs, {"event": torch.tensor([1, 2])})["clip"]
    assert right.item() == pytest.approx(0, abs=1e-6)
    assert wrong.item() == pytest.approx((200 + 200 - np.log(3)) / 4)  # −log p₂ − log(1 − p₁)
    wrong.backward()
    assert torch.isfinite(segments.grad).all()
    assert segments.grad[1, :, 1].min() > 0
    log_p = clip_log_probabilities(segments.detach())
    torch.testing.assert_close(log_others(log_p)[0, 1], torch.tensor(np.log(3) - 200, dtype=torch.float32))


def test_decoding_takes_the_class_where_relevance_exceeds_one_half(task):
    outputs = {"relevance": torch.tensor([[0.1, 0.0, -0.1], [9.0, -9.0, 9.0]]), "event": torch.eye(3)[[1, 2]]}
    decoded = task.decode(outputs)
    assert decoded["segments"].tolist() == [[1, 3, 3], [2, 3, 2]]
    assert decoded["event"].tolist() == [1, 2]


def test_weak_decoding_takes_the_likeliest_class_of_every_second_and_of_the_clip(weak):
    segments = torch.zeros(1, 5, 4)
    segments[0, :3, 3], segments[0, 3, 2], segments[0, 4, 1] = 5, 4, 1
    decoded = weak.decode({"segments": segments, "scores": torch.zeros(1, 3)})
    assert decoded["segments"].tolist() == [[3, 3, 3, 2, 1]]
    assert decoded["event"].tolist() == [2]  # background, likelier still, is no event


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


def test_examples_have_one_row_per_event_class_that_is_true_or_predicted(either):
    truth = by_key(targets(4))
    predictions = {key: dict(value) for key, value in by_key(targets(4)).items()}
    predictions["a"]["segments"] = np.array([1, 0, 3, 3])
    predictions["b"]["segments"] = np.array([3, 3, 3, 3])
    first, second, third = either.examples(predictions, truth, SimpleNamespace())
    assert first == Timeline(
        "a",
        "a: drone",
        (TimelineRow("ring", (0, 0, 0, 0), (0, 1, 0, 0)), TimelineRow("drone", (1, 1, 0, 0), (1, 0, 0, 0))),
    )
    assert second.rows == (TimelineRow("tick", (1, 1, 1, 1), (0, 0, 0, 0)),)
    assert third.rows == ()
    assert {type(value) for row in first.rows for value in (*row.truth, *row.predicted)} == {int}


def test_settings_have_test_sets_of_their_own(task, weak):
    """Reports refuse to put test sets of different names into one table."""
    (one,), (other,) = task.experiences(), weak.experiences()
    assert (one.name, other.name) == ("ave", "ave-weak")
    assert one.task == other.task == "ave"
    assert (one.train, one.test) == (other.train, other.test)


def test_options_choose_setting_and_width():
    assert (EventOptions().setting, EventOptions().width) == ("supervised", 256)
    for wrong in ({"width": 0}, {"width": 6}, {"width": -4}, {"setting": "semi"}):
        with pytest.raises(ValidationError):
            EventOptions(**wrong)
    assert isinstance(make("weak"), WeakEventLocalisation)
    assert not isinstance(make("supervised"), WeakEventLocalisation)


def test_selection_follows_the_protocol(task):
    assert task.experiences()[0].selection == "val"
    task.data.protocol = "paper"
    assert task.experiences()[0].selection == "test"
