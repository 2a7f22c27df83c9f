"""AVE read out by class names: fused similarities, the weighted loss, deterministic clip events, and a model that learns from it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avcl_ave import EventOptions, plugin
from avcl_ave.settings import SETTINGS
from avcl_ave.similarity import SimilarityHead
from avcl_ave.text import TextEventLocalisation
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


def make(protocol: str = "clean", kind: tuple[str, str] = ("supervised", "text")):
    keys = {"train": ("a#00", "b#01"), "val": ("c#02",), "test": ("d#00",)}
    data = SimpleNamespace(classes=LABELS, note="1 of 2 rows shared", protocol=protocol, keys=keys.get, split=None)
    return SETTINGS[kind](data, 8)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def task() -> TextEventLocalisation:
    return make()


def compared(clips: int = 3, seconds: int = 10, dtype: torch.dtype = torch.float32) -> Features:
    generator = torch.Generator().manual_seed(0)
    similarity = {
        name: torch.randn(clips, seconds, 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name in ("visual", "audio")
    }
    return Features({}, {}, similarity=similarity)


def outputs_of(task, features: Features):
    head = task.head(BOTH, task.experiences()[0])
    return head(features, Batch("ave", tuple("abc"[: len(features.similarity["visual"])]), {}))


def test_texts_are_the_classes_in_index_order_and_background(task):
    assert task.texts == (*LABELS, "background")
    assert task.background == 3
    assert make(kind=("supervised", "cmbs")).texts == ()


def test_logits_are_twice_sight_plus_twice_sound(task):
    head = task.head(BOTH, task.experiences()[0])
    assert list(head.parameters()) == list(head.buffers()) == []
    visual, audio = torch.tensor([[[1.0, -3.0, 0.25, 0.5]]]), torch.tensor([[[10.0, 2.0, 0.5, -7.0]]])
    found = head(Features({}, {}, similarity={"audio": audio, "visual": visual}), Batch("ave", ("a",), {}))
    assert {name: value.tolist() for name, value in found.items()} == {"segments": [[[22.0, -2.0, 1.5, -13.0]]]}


@pytest.mark.parametrize("has", [(), ("visual",), ("audio",)])
def test_a_model_without_texts_is_refused(task, has):
    spec = FeatureSpec(SHAPES, {}, has)
    lacking = "visual features" if has == ("audio",) else "audio features" if has else "audio and visual features"
    with pytest.raises(ConfigError, match=rf"tasks\.ave\.head=text .*{lacking}.*\(avcl list models\)") as error:
        task.head(spec, task.experiences()[0])
    assert "\n" not in str(error.value)
    assert isinstance(task.head(BOTH, task.experiences()[0]), SimilarityHead)


TARGETS = {"segments": torch.tensor([[1] * 5 + [3] * 5, [2] * 10, [3] * 10]), "event": torch.tensor([1, 2, 0])}


def test_loss_is_five_times_the_soft_target_cross_entropy_of_all_segments(task):
    features = compared(dtype=torch.float64)
    outputs = outputs_of(task, features)
    logits = outputs["segments"].detach().numpy()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    per_segment = -(np.eye(4)[TARGETS["segments"].numpy()] * log_p).sum(-1)
    loss = task.loss(outputs, TARGETS)
    assert list(loss) == ["segments"]
    assert loss["segments"].item() == pytest.approx(5 * per_segment.mean(), rel=1e-12)
    np.testing.assert_allclose(task.nll(outputs, TARGETS).detach().numpy(), per_segment.mean(1), rtol=1e-12)
    loss["segments"].backward()
    for name, value in features.similarity.items():
        # One gradient for both: 2 (softmax − one-hot) · 5 / (3 · 10).
        expected = 2 * 5 / 30 * (np.exp(log_p) - np.eye(4)[TARGETS["segments"].numpy()])
        np.testing.assert_allclose(value.grad.numpy(), expected, atol=1e-12, err_msg=name)


def test_pieces_of_a_batch_add_up_by_units(task):
    outputs = {name: value.detach() for name, value in outputs_of(task, compared()).items()}
    whole = task.loss(outputs, TARGETS)["segments"].item()
    total = 0.0
    for piece in (slice(0, 1), slice(1, 3)):
        part = {name: value[piece] for name, value in TARGETS.items()}
        total += task.loss({n: v[piece] for n, v in outputs.items()}, part)["segments"].item() * task.units(part)
    assert total / task.units(TARGETS) == pytest.approx(whole, rel=1e-6)


def test_what_distillation_and_dark_replay_keep_is_all_that_the_loss_reads(task):
    """Exclusive logits per second in float32, also where the model computes in bfloat16."""
    outputs = outputs_of(task, compared(dtype=torch.bfloat16))
    assert outputs.keys() == task.fields.keys()
    assert task.fields == {"segments": "classes"}
    assert outputs["segments"].dtype == torch.float32
    assert task.loss(outputs, TARGETS)["segments"].dtype == torch.float32
    narrow = compared(dtype=torch.bfloat16).similarity
    expected = 2 * narrow["visual"].float() + 2 * narrow["audio"].float()
    torch.testing.assert_close(outputs["segments"], expected, rtol=0, atol=0)


def seconds(*classes: int, others: dict[int, float] | None = None) -> torch.Tensor:
    """Logits ``[1, T, 4]`` with 3 for the given class of every second, and other logits for all of them."""
    logits = torch.zeros(1, len(classes), 4)
    for index, value in (others or {}).items():
        logits[:, :, index] = value
    for second, index in enumerate(classes):
        logits[0, second, index] = 3.0
    return logits


SURE = torch.tensor([[[0.5, 0, 0, 0], [0.5, 0, 0, 0], [0, 9.0, 0, 0]]])


@pytest.mark.parametrize(
    ("logits", "segments", "event"),
    [
        (SURE, [0, 0, 1], 0),  # two hesitant seconds outnumber a certain one
        (seconds(0, 2, 2, 3, 3, 3), [0, 2, 2, 3, 3, 3], 2),  # background is most frequent and no event
        (seconds(2, 0, 0, 2, 3), [2, 0, 0, 2, 3], 0),  # equal counts and equal probabilities: the lower index
        (seconds(0, 2, 2, 0, 3, others={2: 1.0}), [0, 2, 2, 0, 3], 2),  # equal counts: the more probable
        (seconds(0, 1, 1, 3, 3, others={2: 2.9}), [0, 1, 1, 3, 3], 1),  # probable everywhere, predicted nowhere
        (seconds(3, 3, 3, others={1: 1.0}), [3, 3, 3], 1),  # background alone: the most probable class
        (seconds(3, 3), [3, 3], 0),  # background alone, all equal
        (torch.zeros(1, 2, 4), [0, 0], 0),  # a second's tie: the lowest index
    ],
)
def test_decoding(task, logits, segments, event):
    decoded = task.decode({"segments": logits})
    assert decoded["segments"].tolist() == [segments]
    assert decoded["event"].tolist() == [event]
    assert {value.dtype for value in decoded.values()} == {torch.int64}


def test_everything_after_decoding_is_that_of_the_supervised_setting(task):
    supervised = make(kind=("supervised", "cmbs"))
    truth = {"segments": torch.tensor([[1] * 6 + [3] * 4, [2] * 10]), "event": torch.tensor([1, 2])}
    outputs = {"segments": torch.nn.functional.one_hot(truth["segments"], 4) * 4.0}
    decoded = task.decode(outputs)
    records = [
        {key: {name: value[row].numpy() for name, value in part.items()} for row, key in enumerate("ab")}
        for part in (decoded, truth)
    ]
    metrics = task.score(*records)
    assert set(metrics.values()) == {100.0}
    assert metrics == supervised.score(*records)
    assert task.controls(records[1], records[1]) == supervised.controls(records[1], records[1])
    assert task.examples(*records, None) == supervised.examples(*records, None)
    assert task.experiences() == supervised.experiences()
    assert (task.primary, task.oracles, task.column) == ("accuracy", supervised.oracles, "ave")


def test_nothing_selects_on_test_for_a_model_whose_paper_selects_nothing():
    text, published = make("paper"), make("paper", ("supervised", "cmbs"))
    assert (text.experiences()[0].selection, published.experiences()[0].selection) == ("val", "test")
    assert text.splits_note == published.splits_note == "1 of 2 rows shared"


def test_options(ave_prepared):
    def load(*overrides: str):
        return load_run(read(None, ["stream.tasks=[ave]", *overrides]))[1].tasks["ave"]

    assert load().head == "cmbs"
    assert load("tasks.ave.head=text").head == "text"
    with pytest.raises(
        ConfigError, match=r"tasks\.ave: .*head: text learns from the event of every second.*supervised"
    ):
        load("tasks.ave.head=text", "tasks.ave.setting=weak")
    with pytest.raises(ConfigError, match=r"tasks\.ave\.head: found 'txt'.*'cmbs' or 'text'"):
        load("tasks.ave.head=txt")
    kinds = {head: type(plugin.build(EventOptions(head=head), ave_prepared, "clean")) for head in ("cmbs", "text")}
    assert kinds["text"] is TextEventLocalisation
    assert kinds["cmbs"] is not TextEventLocalisation


def test_a_model_learns_from_it_and_is_evaluated(ave_prepared, comparing):
    task = plugin.build(EventOptions(head="text"), ave_prepared, "clean")
    assert task.texts == (*task.data.classes, "background")
    (experience,) = task.experiences()
    towers = toy_towers()
    torch.manual_seed(0)
    model = comparing(towers, {"ave": task}, Options())
    model.grow(experience)
    assert not any(name.startswith("heads.") for name in model.state_dict())
    method = Finetune(model, {"ave": task}, Finetune.Config(), 0)
    loader = Loader({"ave": task}, make_inputs(towers, {}, task.audio_rate, None))
    (batch,) = loader.batches(experience, "train", 10)
    optimizer = torch.optim.Adam(model.texts.parameters(), 0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = sum(method.losses(batch).values())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    found = Evaluator(loader, False, 4, Collective()).evaluate(method, task, experience, "test")
    assert 0 <= found.metrics["accuracy"] <= 100
    assert set(found.predictions) == set(experience.test)
    assert all(p["segments"].shape == (10,) and p["event"].shape == () for p in found.predictions.values())
    assert "always background" in found.controls


@pytest.mark.realdata
def test_real_ave(real_data):
    folder = real_data / "annotations" / "ave"
    names = {"annotations": "Annotations.txt", **{s: f"{s}Set.txt" for s in ("train", "val", "test")}}
    prepared = SimpleNamespace(layout="ave", folder=folder, annotation=lambda name: folder / names[name])
    for protocol, train in (("clean", 3320), ("paper", 3339)):
        task = plugin.build(EventOptions(head="text"), prepared, protocol)
        (experience,) = task.experiences()
        assert [len(experience.keys(split)) for split in ("train", "val", "test")] == [train, 402, 402]
        assert len(task.texts) == 29
        assert (task.texts[0], task.texts[27], task.texts[28]) == ("Church bell", "Mandolin", "background")
        test = {key: task.dataset("test").targets(key) for key in experience.test}
        always = torch.zeros(402, 10, 29)
        always[..., 28] = 1
        decoded = task.decode({"segments": always})
        predictions = {key: {n: v[row].numpy() for n, v in decoded.items()} for row, key in enumerate(test)}
        assert task.score(predictions, test)["accuracy"] == pytest.approx(100 * 715 / 4020)
