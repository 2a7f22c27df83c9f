"""The AVVP task keeps the contract: any towers, weak labels alone in the loss, decoding, scores by key, trivial predictors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avcl_avvp.metrics import parsing_f_scores
from avcl_avvp.task import VideoParsing
from avcl_avvp.video_metrics import video_scores
from avcl_core.batch import Batch
from avcl_core.evaluation.examples import Timeline, TimelineRow
from avcl_core.features import Features, FeatureSpec, TokenShape

LABELS = ("ring", "drone", "tick")


def make(head: str = "mgn", width: int = 16) -> VideoParsing:
    keys = {"train": ("a", "b"), "val": ("c",), "test": ("d",)}
    data = SimpleNamespace(classes=LABELS, note="", motion=False, protocol="clean", keys=keys.get, split=None)
    return VideoParsing(data, head, width)  # pyright: ignore[reportArgumentType]


@pytest.fixture(params=["mgn", "mmil"])
def task(request) -> VideoParsing:
    return make(request.param)


def features(towers: dict[str, int], seconds: int, clips: int = 3) -> tuple[FeatureSpec, Features]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: TokenShape((2, 2), width, 1) for name, width in towers.items()}
    tokens = {name: torch.randn(clips, seconds, 5, width, generator=generator) for name, width in towers.items()}
    return FeatureSpec(shapes, dict.fromkeys(towers, ())), Features(tokens, dict.fromkeys(towers, ()))


WEAK = {"labels": torch.tensor([[1, 0, 0], [0, 1, 1], [1, 0, 1]], dtype=torch.uint8)}


PARTS = ["video", "audio", "visual", "audio_tokens", "visual_tokens"]


@pytest.mark.parametrize("towers", [{"visual": 12}, {"audio": 7}, {"visual": 12, "audio": 7}])
def test_head_learns_from_any_towers(task, towers):
    spec, found = features(towers, 10)
    head = task.head(spec, task.experiences()[0])
    outputs = head(found, Batch("avvp", ("a", "b", "c"), {}))
    assert task.fields.keys() <= outputs.keys()
    assert {task.fields[name] for name in ("clip", "clip_audio", "clip_visual")} == {"labels"}
    assert {task.fields[name] for name in ("audio", "visual")} == {"value"}
    for name in ("audio", "visual"):
        assert outputs[name].shape == (3, 10, 3)
    for name in ("clip", "clip_audio", "clip_visual"):
        assert outputs[name].shape == (3, 3)
    nll, loss = task.nll(outputs, WEAK), task.loss(outputs, WEAK)
    assert nll.shape == (3,)
    assert torch.isfinite(nll).all()
    assert list(loss) == (PARTS if task.head_name == "mgn" else PARTS[:3])
    assert sum(loss.values()).item() == pytest.approx(nll.mean().item(), rel=1e-6)
    sum(loss.values()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_what_is_seen_reads_the_visual_tower_alone(task):
    spec, found = features({"visual": 12, "audio": 7}, 10)
    head = task.head(spec, task.experiences()[0]).eval()
    changed = Features({**found.final, "audio": found.final["audio"].flip(1, 3)}, found.stages)
    before, after = (head(f, Batch("avvp", (), {})) for f in (found, changed))
    torch.testing.assert_close(before["visual"], after["visual"])
    torch.testing.assert_close(before["clip_visual"], after["clip_visual"])
    assert not torch.equal(before["clip_audio"], after["clip_audio"])


def test_pooling_head_finds_seconds_from_video_labels_alone():
    """Tokens that show their own second's events: training on whole-video labels must say when, and in which modality."""
    task = make("mmil")
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
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        sum(task.loss(head(found, Batch("avvp", (), {})), {"labels": truth["labels"]}).values()).backward()
        optimizer.step()
    found, truth = clips(64)
    decoded = task.decode(head(found, Batch("avvp", (), {})))
    for name in codes:
        agree = (decoded[name].bool() == truth[name]).float().mean().item()
        nothing = 1 - truth[name].float().mean().item()
        assert agree > nothing + 0.03, (name, agree, nothing)


def test_grouping_head_learns_which_videos_hold_an_event():
    task = make("mgn", 16)
    generator = torch.Generator().manual_seed(0)
    code = torch.randn(3, 16, generator=generator)
    labels = torch.rand(32, 3, generator=generator) < 0.4
    tokens = (labels.float() @ code)[:, None, None] + 0.3 * torch.randn(32, 10, 1, 16, generator=generator)
    torch.manual_seed(0)
    shapes = {name: TokenShape((1, 1), 16) for name in ("audio", "visual")}
    head = task.head(FeatureSpec(shapes, {}), task.experiences()[0])
    optimizer = torch.optim.Adam(head.parameters(), 5e-3)
    found = Features(dict.fromkeys(shapes, tokens), {})
    for _ in range(80):
        optimizer.zero_grad()
        sum(task.loss(head(found, Batch("avvp", (), {})), {"labels": labels}).values()).backward()
        optimizer.step()
    outputs = head.eval()(found, Batch("avvp", (), {}))
    assert ((outputs["clip"] > 0) == labels).float().mean() > 0.9
    for name in ("audio", "visual"):  # each class token has learnt to be its class
        assert outputs[f"class_{name}"][0].argmax(1).tolist() == [0, 1, 2]


def test_loss_sees_weak_labels_only(task):
    spec, found = features({"visual": 12, "audio": 7}, 10)
    outputs = task.head(spec, task.experiences()[0])(found, Batch("avvp", (), {}))
    dense = {**WEAK, "audio": torch.ones(3, 3, 10), "visual": torch.zeros(3, 3, 10)}
    torch.testing.assert_close(task.nll(outputs, WEAK), task.nll(outputs, dense))
    assert task.units(dense) == 3


def test_loss_is_that_of_the_specification():
    """Probabilities clamped to [1e-7, 1 - 1e-7]; cross-entropies of the class tokens with their own index."""
    task = make()
    generator = torch.Generator().manual_seed(0)
    logits = {
        name: 3 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
        for name in ("clip", "clip_audio", "clip_visual")
    }
    logits["clip"][0, 0], logits["clip_audio"][1, 1] = 50, -50
    tokens = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    outputs = {**logits, "class_audio": tokens[0].expand(4, -1, -1), "class_visual": tokens[1].expand(4, -1, -1)}
    labels = (torch.rand(4, 3, generator=generator) < 0.5).to(torch.uint8)

    def bce(name: str, soft: np.ndarray) -> np.ndarray:
        p = np.clip(1 / (1 + np.exp(-logits[name].numpy())), 1e-7, 1 - 1e-7)
        return -(soft * np.log(p) + (1 - soft) * np.log(1 - p)).mean(1)

    def own(table: np.ndarray) -> float:
        return float(np.mean([np.log(np.exp(row).sum()) - row[place] for place, row in enumerate(table)]))

    y = labels.numpy().astype(float)
    expected = {
        "video": bce("clip", y),
        "audio": bce("clip_audio", y),
        "visual": bce("clip_visual", 0.9 * y + 0.05),
        "audio_tokens": np.full(4, own(tokens[0].numpy())),
        "visual_tokens": np.full(4, own(tokens[1].numpy())),
    }
    found = task.parts(outputs, {"labels": labels})
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-7, err_msg=name)
    np.testing.assert_allclose(task.nll(outputs, {"labels": labels}).numpy(), sum(expected.values()), rtol=1e-7)


def test_class_token_loss_is_a_mean_over_videos(task):
    """Shares of a batch add up to the whole, also for the part that no sample decides."""
    spec, found = features({"visual": 12, "audio": 7}, 10)
    outputs = task.head(spec, task.experiences()[0]).eval()(found, Batch("avvp", (), {}))
    whole = task.loss(outputs, WEAK)
    pieces = [slice(0, 1), slice(1, 3)]
    for name, value in whole.items():
        parts = [
            task.loss({n: v[piece] for n, v in outputs.items()}, {"labels": WEAK["labels"][piece]})[name].item()
            for piece in pieces
        ]
        assert parts[0] / 3 + 2 * parts[1] / 3 == pytest.approx(value.item(), rel=1e-5), name


def test_decoding_needs_the_second_and_the_video(task):
    values = torch.tensor([[[0.5, 1.3], [0.49, 0.2]]])
    outputs = {"audio": values, "visual": 1 - values, "clip": torch.tensor([[0.0, -0.1]])}
    decoded = task.decode(outputs)
    assert decoded["audio"].tolist() == [[[1, 0], [0, 0]]]
    assert decoded["visual"].tolist() == [[[1, 1], [0, 0]]]
    certain = task.decode({**outputs, "clip": torch.tensor([[0.0, 0.1]])})
    assert certain["audio"].tolist() == [[[1, 0], [1, 0]]]
    assert {name: value.dtype for name, value in decoded.items()} == {
        "audio": torch.uint8,
        "visual": torch.uint8,
        "clip": torch.float32,
    }
    assert certain["clip"].tolist() == [pytest.approx([0.0, 0.1])]


def dense_targets(videos: int) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    marks = {name: (rng.random((videos, 3, 10)) < 0.4).astype(np.uint8) for name in ("audio", "visual")}
    marks["labels"] = (marks["audio"] | marks["visual"]).any(2).astype(np.uint8)
    marks["listed"] = marks["labels"].sum(1)
    return {f"v{row}": {name: value[row] for name, value in marks.items()} for row in range(videos)}


def test_perfect_outputs_score_100_in_any_key_order(task):
    truth = dense_targets(7)
    outputs = {
        name: torch.stack([torch.from_numpy(t[name]).float().T for t in truth.values()]) for name in ("audio", "visual")
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
    assert task.score(wrong, truth) == {
        **parsing_f_scores(
            *(np.stack([side[key][name] for key in keys]) for side in (wrong, truth) for name in ("audio", "visual"))
        ),
        **video_scores(
            np.stack([wrong[key]["clip"] for key in keys]),
            *(np.stack([truth[key][name] for key in keys]) for name in ("labels", "listed")),
        ),
    }


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
    clip = np.tile([-1.0, 1.0, -1.0], (9, 1))
    whole = video_scores(clip, *(np.stack([value[name] for value in truth.values()]) for name in ("labels", "listed")))
    assert controls["always drone in audio, nothing in vision"] == {**expected, **whole}
    assert {controls["true weak labels on every second"][name] for name in whole} == {100.0}
    rows = task.table(controls["always drone in audio, nothing in vision"])
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
        "Video mAP",
        "Video F1, micro",
        "Video F1, macro",
        "Video accuracy (any label)",
        "Video accuracy, items (lowest label)",
    ]
    assert [value for _, value in rows] == [f"{value:.1f}" for value in {**expected, **whole}.values()]


def test_examples_are_time_lines_of_what_is_true_or_predicted(task):
    def spans(*places: tuple[int, int, int]) -> np.ndarray:
        marks = np.zeros((3, 10), np.uint8)
        for index, onset, offset in places:
            marks[index, onset:offset] = 1
        return marks

    true = {"labels": np.array([1, 0, 1]), "audio": spans((0, 0, 3)), "visual": spans((0, 2, 4), (2, 5, 6))}
    predicted = {"audio": spans((1, 9, 10)), "visual": spans((0, 2, 4))}

    def row(label: str, truth: range, found: range) -> TimelineRow:
        return TimelineRow(label, *(tuple(int(s in span) for s in range(10)) for span in (truth, found)))

    (example,) = task.examples({"k": predicted, "other": true}, {"k": true}, None)
    assert example == Timeline(
        "k",
        "k: ring, tick",
        (
            row("ring (heard)", range(3), range(0)),
            row("ring (seen)", range(2, 4), range(2, 4)),
            row("drone (heard)", range(0), range(9, 10)),
            row("tick (seen)", range(5, 6), range(0)),
        ),
    )


@pytest.mark.realdata
def test_controls_on_real_llp(real_data):
    """Targets as `paper` has them give the golden values of the forks' ground truth."""
    from avcl_avvp.dataset import ParsingData

    folder = real_data / "annotations" / "llp"
    names = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}
    names |= {"audio": "AVVP_eval_audio_as_in_forks.csv", "visual": "AVVP_eval_visual.csv"}
    prepared = SimpleNamespace(layout="avvp", folder=folder, extras=(), annotation=lambda name: folder / names[name])
    real = VideoParsing(ParsingData(prepared, "paper"))
    targets = [{key: real.dataset(split).targets(key) for key in real.data.keys(split)} for split in ("train", "test")]
    scores = {name: round(metrics[real.primary], 2) for name, metrics in real.controls(*targets).items()}
    assert scores == {
        "nothing": 8.36,
        "always Speech in audio, nothing in vision": 13.70,
        "true weak labels on every second": 63.01,
    }
