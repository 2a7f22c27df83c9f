"""The AVVP task keeps the contract: any towers, weak labels alone in the loss, decoding, scores by key, trivial predictors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avcl_avvp.metrics import parsing_f_scores
from avcl_avvp.task import VideoParsing
from avcl_core.batch import Batch
from avcl_core.features import Features, FeatureSpec, TokenShape

LABELS = ("ring", "drone", "tick")


@pytest.fixture
def task() -> VideoParsing:
    keys = {"train": ("a", "b"), "val": ("c",), "test": ("d",)}
    data = SimpleNamespace(classes=LABELS, note="", protocol="clean", keys=keys.get, split=None)
    return VideoParsing(data)  # pyright: ignore[reportArgumentType]


def features(towers: dict[str, int], seconds: int, clips: int = 3) -> tuple[FeatureSpec, Features]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: TokenShape((2, 2), width, 1) for name, width in towers.items()}
    tokens = {name: torch.randn(clips, seconds, 5, width, generator=generator) for name, width in towers.items()}
    return FeatureSpec(shapes, dict.fromkeys(towers, ())), Features(tokens, dict.fromkeys(towers, ()))


WEAK = {"labels": torch.tensor([[1, 0, 0], [0, 1, 1], [1, 0, 1]], dtype=torch.uint8)}


@pytest.mark.parametrize("towers", [{"visual": 12}, {"audio": 7}, {"visual": 12, "audio": 7}])
@pytest.mark.parametrize("seconds", [2, 10])
def test_head_learns_from_any_towers(task, towers, seconds):
    spec, found = features(towers, seconds)
    head = task.head(spec, task.experiences()[0])
    outputs = head(found, Batch("avvp", ("a", "b", "c"), {}))
    assert outputs.keys() == task.fields.keys()
    for name in ("audio", "visual"):
        assert outputs[name].shape == (3, seconds, 3)
    for name in ("clip", "clip_audio", "clip_visual"):
        assert outputs[name].shape == (3, 3)
    nll, loss = task.nll(outputs, WEAK), task.loss(outputs, WEAK)
    assert nll.shape == (3,)
    assert torch.isfinite(nll).all()
    assert sum(loss.values()).item() == pytest.approx(nll.mean().item(), rel=1e-6)
    sum(loss.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        # A bias that is equal in all seconds does not change a softmax over them.
        assert parameter.grad.abs().sum() > 0 or (name.startswith("attention") and name.endswith("bias")), name


def test_pooling_is_the_weighted_mean_and_either_modality_is_enough(task):
    spec, found = features({"visual": 12, "audio": 7}, 4)
    head = task.head(spec, task.experiences()[0])
    outputs = head(found, Batch("avvp", (), {}))
    missing = torch.ones(3, 3)
    for name in ("audio", "visual"):
        dense, pooled = outputs[name].sigmoid(), outputs[f"clip_{name}"].sigmoid()
        assert (pooled <= dense.amax(1) + 1e-6).all()
        assert (pooled >= dense.amin(1) - 1e-6).all()
        missing = missing * (1 - pooled)
    torch.testing.assert_close(outputs["clip"].sigmoid(), 1 - missing)


def test_a_modality_reads_its_own_tower(task):
    spec, found = features({"visual": 12, "audio": 7}, 4)
    head = task.head(spec, task.experiences()[0])
    changed = Features({**found.final, "visual": found.final["visual"] + 1}, found.stages)
    before, after = (head(f, Batch("avvp", (), {})) for f in (found, changed))
    torch.testing.assert_close(before["audio"], after["audio"])
    changed = Features({**found.final, "visual": found.final["visual"].flip(1)}, found.stages)
    assert not torch.allclose(before["visual"], head(changed, Batch("avvp", (), {}))["visual"])


def test_seconds_are_found_from_video_labels_alone(task):
    """Tokens that show their own second's events: training on whole-video labels must say when, and in which modality."""
    generator = torch.Generator().manual_seed(0)
    codes = {name: torch.randn(3, 16, generator=generator) for name in ("audio", "visual")}

    def clips(count: int) -> tuple[Features, dict[str, torch.Tensor]]:
        present = torch.rand(count, 2, 3, 1, generator=generator) < 0.25
        onset = torch.randint(0, 7, (count, 2, 3, 1), generator=generator)
        second = torch.arange(10)
        marks = present & (second >= onset) & (second < onset + 4)
        dense = {name: marks[:, place] for place, name in enumerate(codes)}
        tokens = {
            name: (marks.transpose(1, 2).float() @ codes[name])[:, :, None]
            + 0.3 * torch.randn(count, 10, 1, 16, generator=generator)
            for name, marks in dense.items()
        }
        return Features(tokens, {}), {**dense, "labels": (dense["audio"] | dense["visual"]).any(2)}

    torch.manual_seed(0)
    shapes = {name: TokenShape((1, 1), 16) for name in codes}
    head = task.head(FeatureSpec(shapes, {}), task.experiences()[0])
    found, truth = clips(96)
    optimizer = torch.optim.Adam(head.parameters(), 5e-3)
    for _ in range(30):
        optimizer.zero_grad()
        sum(task.loss(head(found, Batch("avvp", (), {})), {"labels": truth["labels"]}).values()).backward()
        optimizer.step()
    found, truth = clips(64)
    decoded = task.decode(head(found, Batch("avvp", (), {})))
    for name in codes:
        agree = (decoded[name].bool() == truth[name]).float().mean().item()
        nothing = 1 - truth[name].float().mean().item()
        assert agree > nothing + 0.03, (name, agree, nothing)


def test_loss_sees_weak_labels_only(task):
    spec, found = features({"visual": 12, "audio": 7}, 4)
    outputs = task.head(spec, task.experiences()[0])(found, Batch("avvp", (), {}))
    dense = {**WEAK, "audio": torch.ones(3, 3, 4), "visual": torch.zeros(3, 3, 4)}
    torch.testing.assert_close(task.nll(outputs, WEAK), task.nll(outputs, dense))
    assert task.units(dense) == 3


def test_loss_is_that_of_the_specification(task):
    p, p_audio, p_visual = 0.8, 0.6, 0.3
    logits = {
        name: torch.logit(torch.tensor([[value]]))
        for name, value in (("clip", p), ("clip_audio", p_audio), ("clip_visual", p_visual))
    }
    nll = task.nll(logits, {"labels": torch.tensor([[1]])})
    assert nll.item() == pytest.approx(
        -np.log(p) - np.log(p_audio) - 0.95 * np.log(p_visual) - 0.05 * np.log(1 - p_visual), rel=1e-5
    )
    extreme = {name: torch.full((1, 1), -40.0) for name in logits}
    assert torch.isfinite(task.nll(extreme, {"labels": torch.tensor([[1]])})).all()


def test_decoding_needs_the_second_and_the_video(task):
    dense = torch.tensor([[[1.0, 1.0], [-1.0, 0.0]]])
    outputs = {"audio": dense, "visual": -dense, "clip": torch.tensor([[0.0, -0.1]])}
    decoded = task.decode(outputs)
    assert decoded["audio"].tolist() == [[[1, 0], [0, 0]]]
    assert decoded["visual"].tolist() == [[[0, 1], [0, 0]]]


def dense_targets(videos: int) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    marks = {name: (rng.random((videos, 3, 10)) < 0.4).astype(np.uint8) for name in ("audio", "visual")}
    marks["labels"] = (marks["audio"] | marks["visual"]).any(2).astype(np.uint8)
    return {f"v{row}": {name: value[row] for name, value in marks.items()} for row in range(videos)}


def test_perfect_outputs_score_100_in_any_key_order(task):
    truth = dense_targets(7)
    outputs = {
        name: torch.stack([torch.from_numpy(t[name]).float().T * 2 - 1 for t in truth.values()])
        for name in ("audio", "visual")
    }
    outputs["clip"] = torch.stack([torch.from_numpy(t["labels"]).float() * 2 - 1 for t in truth.values()])
    decoded = task.decode(outputs)
    predictions = {key: {name: value[row].numpy() for name, value in decoded.items()} for row, key in enumerate(truth)}
    metrics = task.score(predictions, truth)
    assert set(metrics.values()) == {100.0}
    assert metrics[task.primary] == task.ideal
    keys = list(truth)
    wrong = dict(zip(keys, [predictions[key] for key in [*keys[1:], keys[0]]], strict=True))
    backwards = {key: wrong[key] for key in reversed(keys)}
    assert task.score(backwards, truth) == task.score(wrong, truth)
    assert task.score(wrong, truth) == parsing_f_scores(
        *(np.stack([side[key][name] for key in keys]) for side in (wrong, truth) for name in ("audio", "visual"))
    )


def test_what_cannot_be_scored_is_refused(task):
    truth = dense_targets(3)
    with pytest.raises(ValueError, match=r"differ in 1 samples.*'v2'"):
        task.score({key: truth[key] for key in ("v0", "v1")}, truth)
    with pytest.raises(ValueError, match="no dense labels"):
        task.score(truth, {key: {"labels": value["labels"]} for key, value in truth.items()})


def test_controls_and_result_block(task):
    truth = dense_targets(9)
    train = {str(i): {"labels": np.array(labels)} for i, labels in enumerate([[0, 1, 0], [1, 1, 0], [0, 0, 1]])}
    controls = task.controls(train, truth)
    assert list(controls) == ["nothing", "always drone in audio, nothing in vision", "true weak labels on every second"]
    assert task.oracles <= controls.keys()
    arrays = {name: np.stack([value[name] for value in truth.values()]) for name in ("audio", "visual")}
    always = np.zeros_like(arrays["audio"])
    always[:, 1] = 1
    expected = parsing_f_scores(always, np.zeros_like(always), arrays["audio"], arrays["visual"])
    assert controls["always drone in audio, nothing in vision"] == expected
    rows = task.table(expected)
    assert [label for label, _ in rows] == [
        "Audio Event Detection Segment-level F1",
        "Visual Event Detection Segment-level F1",
        "Audio-Visual Event Detection Segment-level F1",
        "Segment-level Type@Avg. F1",
        "Segment-level Event@Avg. F1",
        "Audio Event Detection Event-level F1",
        "Visual Event Detection Event-level F1",
        "Audio-Visual Event Detection Event-level F1",
        "Event-level Type@Avg. F1",
        "Event-level Event@Avg. F1",
    ]
    assert [value for _, value in rows] == [f"{value:.1f}" for value in expected.values()]


@pytest.mark.realdata
def test_controls_on_real_llp(task, real_data):
    """Targets as `paper` has them give the golden values of the forks' ground truth."""
    from avcl_avvp.dataset import ParsingData

    folder = real_data / "annotations" / "llp"
    names = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}
    names |= {"audio": "AVVP_eval_audio_as_in_forks.csv", "visual": "AVVP_eval_visual.csv"}
    prepared = SimpleNamespace(layout="avvp", folder=folder, annotation=lambda name: folder / names[name])
    real = VideoParsing(ParsingData(prepared, "paper"))
    targets = [{key: real.dataset(split).targets(key) for key in real.data.keys(split)} for split in ("train", "test")]
    scores = {name: round(metrics[real.primary], 2) for name, metrics in real.controls(*targets).items()}
    assert scores == {
        "nothing": 8.36,
        "always Speech in audio, nothing in vision": 13.70,
        "true weak labels on every second": 63.01,
    }
