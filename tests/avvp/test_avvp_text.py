"""AVVP read out by class names: similarities against background, pooling over seconds, the weighted loss, bad input."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avcl_avvp import ParsingOptions, plugin
from avcl_avvp.similarity import ParsingReadout
from avcl_avvp.task import VideoParsing
from avcl_avvp.text import TextVideoParsing
from avcl_core.batch import Batch
from avcl_core.collective import Collective
from avcl_core.config.load import read
from avcl_core.config.options import Options
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError
from avcl_core.evaluation.evaluator import Evaluator
from avcl_core.features import Features, FeatureSpec, TokenShape
from avcl_core.methods.finetune import Finetune
from avcl_core.testing import toy_towers
from avcl_core.training.inputs import make_inputs
from avcl_core.training.loader import Loader

LABELS = ("ring", "drone", "tick")
SHAPES = {"visual": TokenShape((2, 2), 4, 1), "audio": TokenShape((2, 2), 6)}
BOTH = FeatureSpec(SHAPES, {}, ("visual", "audio"))
KEYS = {"train": ("a", "b"), "val": ("c",), "test": ("d",)}


def make() -> TextVideoParsing:
    data = SimpleNamespace(classes=LABELS, note="", motion=False, protocol="clean", keys=KEYS.get, split=None)
    return TextVideoParsing(data)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def task() -> TextVideoParsing:
    return make()


def similarities(clips: int = 4, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: (scale * torch.randn(clips, 10, 4, generator=generator, dtype=torch.float64)).to(dtype)
        for name in ("visual", "audio")
    }


def read_out(similarity: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rows = len(similarity["audio"])
    return ParsingReadout(BOTH)(Features({}, {}, similarity=similarity), Batch("avvp", ("k",) * rows, {}))


def by_hand(similarity: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The formulas of php.md 3.7, clip by clip and class by class."""
    found: dict[str, np.ndarray] = {}
    for name, value in similarity.items():
        logits = value.numpy().astype(np.float64)
        clips, seconds, texts = logits.shape
        seen, video = np.zeros((clips, seconds, texts - 1)), np.zeros((clips, texts - 1))
        for k in range(clips):
            for c in range(texts - 1):
                z = [logits[k, s, c] - logits[k, s, texts - 1] for s in range(seconds)]
                weights = np.exp(z) / np.exp(z).sum()
                seen[k, :, c] = [1 / (1 + np.exp(-value)) for value in z]
                video[k, c] = sum(w * p for w, p in zip(weights, seen[k, :, c], strict=True))
        found[name], found[f"p_{name}"] = seen, video
    found["p"] = 1 - (1 - found["p_audio"]) * (1 - found["p_visual"])
    return found


def test_read_out_is_that_of_the_specification(task):
    given = similarities()
    outputs, expected = read_out(given), by_hand(given)
    assert outputs.keys() == task.fields.keys()
    pairs = {"audio": "audio", "visual": "visual"}
    pairs |= {"clip": "p", "clip_audio": "p_audio", "clip_visual": "p_visual"}
    for name, other in pairs.items():
        value = outputs[name].sigmoid() if name.startswith("clip") else outputs[name]
        np.testing.assert_allclose(value.numpy(), expected[other], rtol=1e-10, err_msg=name)


def test_the_head_has_no_parameters_and_the_texts_end_in_background(task):
    head = task.head(BOTH, task.experiences()[0])
    assert isinstance(head, ParsingReadout)
    assert list(head.state_dict()) == []
    assert task.texts == (*LABELS, "background")


def test_only_the_difference_from_background_counts_and_modalities_do_not_mix():
    given = similarities()
    before = read_out(given)
    after = read_out({name: value + 7 for name, value in given.items()})
    for name, value in before.items():
        torch.testing.assert_close(value, after[name])
    louder = {**given, "audio": given["audio"].clone()}
    louder["audio"][:, 4, 3] += 50  # one second is background to the ear
    after = read_out(louder)
    for name in ("visual", "clip_visual"):
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=0)
    assert (after["audio"][:, 4] < 1e-6).all()
    torch.testing.assert_close(after["audio"][:, 5:], before["audio"][:, 5:], rtol=0, atol=0)
    assert not torch.equal(after["clip"], before["clip"])


def test_golden_clip():
    """One class: heard at z = ln 3 in one of two seconds and at −ln 3 in the other, never seen (z = −ln 9)."""
    ln3 = float(np.log(3))
    audio = torch.tensor([[[ln3, 0.0], [-ln3, 0.0]]], dtype=torch.float64)
    visual = torch.tensor([[[0.0, 2 * ln3], [1.0, 2 * ln3 + 1]]], dtype=torch.float64)
    outputs = read_out({"visual": visual, "audio": audio})
    assert outputs["audio"].flatten().tolist() == pytest.approx([0.75, 0.25])
    assert outputs["visual"].flatten().tolist() == pytest.approx([0.1, 0.1])
    # softmax over seconds of (ln 3, −ln 3) is (0.9, 0.1): p_a = 0.9·0.75 + 0.1·0.25 = 0.7, p = 1 − 0.3·0.9 = 0.73
    found = {name: outputs[name].sigmoid().item() for name in ("clip", "clip_audio", "clip_visual")}
    assert found == pytest.approx({"clip": 0.73, "clip_audio": 0.7, "clip_visual": 0.1})


def test_logits_stay_exact_and_gradients_finite_where_probabilities_saturate(task):
    similarity = {name: torch.zeros(2, 10, 4) for name in ("audio", "visual")}
    similarity["audio"][0, :, 0] = similarity["visual"][0, :, 0] = 100
    similarity["audio"][1] = similarity["visual"][1] = torch.tensor([-100.0, 5, -5, 0])
    for value in similarity.values():
        value.requires_grad_()
    outputs = read_out(similarity)
    assert outputs["clip"].dtype == torch.float32
    assert outputs["clip_audio"][0, 0].item() == pytest.approx(100)
    assert outputs["clip"][0, 0].item() == pytest.approx(200)  # 1 − p = (1 − p_a)(1 − p_v)
    assert outputs["clip"][1, 0].item() == pytest.approx(-100 + np.log(2), rel=1e-5)  # p ≈ p_a + p_v
    labels = torch.tensor([[0, 0, 1], [1, 1, 0]], dtype=torch.uint8)
    parts = task.parts(outputs, {"labels": labels})
    worst = -np.log(1e-7)
    # The clip that is certainly ring is not labelled so; its other classes stand at z = 0 in both modalities.
    expected = (worst - np.log(0.25) - np.log(0.75)) / 3
    assert parts["video"][0].item() == pytest.approx(expected, rel=1e-5)
    assert parts["video"][1].item() > worst / 3
    sum(task.loss(outputs, {"labels": labels}).values()).backward()
    for value in similarity.values():
        assert torch.isfinite(value.grad).all()


def test_loss_is_five_times_that_of_the_specification(task):
    given = similarities(scale=9.0)
    outputs, p = read_out(given), by_hand(given)
    labels = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 0, 1], [0, 0, 1]], dtype=torch.uint8)
    y = labels.numpy().astype(float)

    def bce(probability: np.ndarray, soft: np.ndarray) -> np.ndarray:
        q = np.clip(probability, 1e-7, 1 - 1e-7)
        return -(soft * np.log(q) + (1 - soft) * np.log(1 - q)).mean(1)

    expected = {
        "video": bce(p["p"], y),
        "audio": bce(p["p_audio"], y),
        "visual": bce(p["p_visual"], 0.9 * y + 0.05),
    }
    loss = task.loss(outputs, {"labels": labels})
    assert {name: value.item() for name, value in loss.items()} == pytest.approx(
        {name: 5 * value.mean() for name, value in expected.items()}, rel=1e-9
    )
    np.testing.assert_allclose(task.nll(outputs, {"labels": labels}).numpy(), sum(expected.values()), rtol=1e-9)
    assert task.units({"labels": labels}) == 4


def test_loss_and_kept_outputs_are_float32_where_the_model_computes_in_bfloat16(task):
    outputs = read_out(similarities(dtype=torch.bfloat16))
    assert {value.dtype for value in outputs.values()} == {torch.float32}
    loss = task.loss(outputs, {"labels": torch.ones(4, 3, dtype=torch.uint8)})
    assert {value.dtype for value in loss.values()} == {torch.float32}
    exact = read_out({name: value.float() for name, value in similarities(dtype=torch.bfloat16).items()})
    for name, value in outputs.items():
        torch.testing.assert_close(value, exact[name], rtol=0, atol=0)


def test_decoding_is_the_rule_of_all_heads(task):
    """Ring is heard in one second only; drone is heard a little in every second, and the video holds it by sight alone."""
    audio = torch.zeros(1, 10, 4)
    audio[..., :3] = -8.0
    audio[0, 2, 0] = 8.0
    visual = torch.full((1, 10, 4), -8.0)
    visual[..., 3] = 0
    visual[0, 5:, 1] = 8.0
    decoded = task.decode(read_out({"audio": audio, "visual": visual}))
    assert np.argwhere(decoded["audio"][0].numpy()).tolist() == [[0, 2]]
    assert np.argwhere(decoded["visual"][0].numpy()).tolist() == [[1, second] for second in range(5, 10)]
    assert (decoded["clip"][0] >= 0).tolist() == [True, True, False]
    assert decoded["clip"].dtype == torch.float32
    sure = torch.tensor([[30.0, 40.0, 20.0]])  # probabilities that all round to 1
    assert task.decode({**read_out({"audio": audio, "visual": visual}), "clip": sure})["clip"].argmax(1).tolist() == [1]
    weak = {**read_out({"audio": audio, "visual": visual}), "clip": torch.full((1, 3), -0.01)}
    assert not task.decode(weak)["audio"].any()


def test_a_model_learns_what_happens_when(task):
    """Similarities that show events beside noise: from labels of videos, a scale and an offset must find the seconds."""
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(64, 1, 3, generator=generator) < 0.3
    second = torch.arange(10)[:, None]
    marks, noise = {}, {}
    for name in ("audio", "visual"):
        onset = torch.randint(0, 7, (64, 1, 3), generator=generator)
        marks[name] = (present & (second >= onset) & (second < onset + 4)).float()
        noise[name] = 0.3 * torch.randn(64, 10, 4, generator=generator)
    scale, offset = torch.tensor(0.5, requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([scale, offset], 0.1)

    def outputs() -> dict[str, torch.Tensor]:
        given = {n: [scale * value + noise[n][..., :3], offset + noise[n][..., 3:]] for n, value in marks.items()}
        return read_out({name: torch.cat(parts, -1) for name, parts in given.items()})

    for _ in range(40):
        optimizer.zero_grad()
        sum(task.loss(outputs(), {"labels": present[:, 0]}).values()).backward()
        optimizer.step()
    decoded = task.decode(outputs())
    for name, value in marks.items():
        assert (decoded[name].transpose(1, 2) == value).float().mean() > 0.98, name


@pytest.mark.parametrize("has", [(), ("visual",), ("audio",)])
def test_a_model_without_texts_is_refused(task, has):
    with pytest.raises(ConfigError, match=r"tasks\.avvp\.head=text needs .*\(avcl list models\)") as error:
        task.head(FeatureSpec(SHAPES, {}, has), task.experiences()[0])
    assert "\n" not in str(error.value)
    for name in ("audio", "visual"):
        assert (f"{name} " in str(error.value).partition("features")[0]) == (name not in has)


def load(*overrides: str):
    return load_run(read(None, ["stream.tasks=[avvp]", *overrides]))[1].tasks["avvp"]


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["head=txt"], r"tasks\.avvp\.head: found 'txt'.*'mgn', 'mmil' or 'text'"),
        (["head=text", "motion=true"], r"tasks\.avvp: .*head: text reads no motion features"),
        (["evaluation=video"], r"tasks\.avvp\.evaluation: found 'video'.*'parsing' or 'video_level'"),
        (["evaluation=video_level"], r"tasks\.avvp: .*evaluation: video_level .*set head: text"),
        (["evaluation=video_level", "head=mmil"], r"tasks\.avvp: .*evaluation: video_level .*set head: text"),
    ],
)
def test_wrong_options_are_named(overrides, part):
    with pytest.raises(ConfigError, match=part):
        load(*(f"tasks.avvp.{override}" for override in overrides))


def test_options_choose_the_task(avvp_prepared):
    assert (load().head, load().evaluation) == ("mgn", "parsing")
    options = load("tasks.avvp.head=text")
    kinds = {
        protocol: type(plugin.build(ParsingOptions(head="text"), avvp_prepared, protocol))
        for protocol in ("clean", "paper")
    }
    assert kinds == {"clean": TextVideoParsing, "paper": TextVideoParsing}
    task = plugin.build(options, avvp_prepared, "clean")
    assert not task.data.motion
    assert type(plugin.build(load("tasks.avvp.head=mmil"), avvp_prepared, "clean")) is VideoParsing
    same = [plugin.build(load(f"tasks.avvp.head={head}"), avvp_prepared, "clean") for head in ("mmil", "text")]
    assert same[0].experiences() == same[1].experiences()
    assert same[0].experiences()[0].name == "avvp"


def test_motion_features_are_left_where_they_are(avvp_prepared):
    offered = copy.copy(avvp_prepared)
    offered.extras = ("motion",)
    asks = {head: plugin.build(ParsingOptions(head=head), offered, "clean").data.motion for head in ("mmil", "text")}
    assert asks == {"mmil": True, "text": False}


def test_a_model_is_trained_and_evaluated(avvp_prepared, comparing):
    task = plugin.build(ParsingOptions(head="text"), avvp_prepared, "clean")
    (experience,) = task.experiences()
    towers = toy_towers()
    torch.manual_seed(0)
    model = comparing(towers, {"avvp": task}, Options())
    model.grow(experience)
    method = Finetune(model, {"avvp": task}, Finetune.Config(), 0)
    loader = Loader({"avvp": task}, make_inputs(towers, {}, task.audio_rate, None))
    (batch,) = loader.batches(experience, "train", 6)
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
    assert {"segment_type_av", "event_av", "video_map", "video_f1_micro", "video_accuracy"} <= found.metrics.keys()
    assert all(p["clip"].shape == (8,) and p["audio"].shape == (8, 10) for p in found.predictions.values())
    assert all(found.metrics.keys() == values.keys() for values in found.controls.values())
    assert len(task.table(found.metrics)) == 15
