"""DER++ and ER: stored outputs come back, weights and distances are those asked for, sizes are known before, aux terms count."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avcl_core.collective import Collective
from avcl_core.errors import ConfigError
from avcl_core.methods.derpp import DarkReplay, DarkReplayOptions, packed, unpacked
from avcl_core.methods.distances import distance
from avcl_core.methods.er import ExperienceReplay, ReplayOptions
from avcl_core.ownership import evaluation_mode, train_mode
from avcl_core.replay.memory import Memory
from avcl_core.testing import check_method, check_pieces
from avcl_core.testing.toy_tasks import TOY_TASKS
from avcl_core.training.loader import Request

sys.path.insert(0, str(Path(__file__).parent))
from method_toys import Bench, PointOptions, points

OUTPUT = {"mask": "mask", "value": "score"}


def remembering(method=DarkReplay, options=None, model_options=None, **kinds):
    """A bench on which the first experience is learnt, and its remembered samples as a batch with what is stored."""
    bench = Bench(points(method, options, model_options, **kinds))
    first, second = bench.toy.stream.experiences[:2]
    bench.begin(first)
    bench.model.train()
    bench.end(first)
    assert bench.model.heads[first.task].drop.training
    bench.begin(second)
    group = bench.method.memory.groups[first.name]
    stored = {n: torch.stack([e.stored[n] for e in group]) for n in group[0].stored}
    return bench, bench.loader.load(Request(first, "train", tuple(e.key for e in group), None, stored))


@pytest.mark.parametrize("kind", TOY_TASKS)
def test_stored_outputs_are_those_of_the_model_when_the_experience_ended(kind):
    bench, batch = remembering(**{kind: 1, **({"classes": 1} if kind != "classes" else {"value": 1})})
    assert len(batch) == 6
    assert set(batch.stored) == {OUTPUT.get(kind, "logits")}
    with torch.no_grad(), evaluation_mode(bench.model):
        outputs = bench.model(batch, bench.method.context(batch, training=False))
    for name, value in batch.stored.items():
        assert value.device.type == "cpu"
        if kind == "mask":
            assert value.dtype == torch.float16
            assert torch.allclose(unpacked(value), outputs[name], rtol=1e-3, atol=1e-3)
        else:
            assert value.dtype == torch.float32
            assert torch.allclose(value, outputs[name], atol=1e-6)


class Recording(Collective):
    """One of two ranks, whose other one has no part to give."""

    def __init__(self, rank: int) -> None:
        self.rank, self.world, self.given = rank, 2, []

    def join(self, value):
        self.given.append(value)
        return [value, {}]


def test_each_stored_output_is_computed_by_one_rank_and_given_to_all():
    bench = Bench(points(DarkReplay, labels=1))
    (first,) = bench.toy.stream.experiences
    bench.begin(first)
    data = bench.data(first)
    keys = list(data.keys("train"))
    whole, parts = bench.method.outputs(data, keys), []
    for rank in range(2):
        bench.method.collective = Recording(rank)
        bench.method.outputs(data, keys)
        parts += bench.method.collective.given
    assert [list(part) for part in parts] == [keys[0::2], keys[1::2]]
    for key, found in (parts[0] | parts[1]).items():
        assert torch.allclose(found["logits"], whole[key]["logits"], atol=1e-6)


@pytest.mark.parametrize(("form", "width", "gap"), [("float32", 4, 0), ("float16", 2, 6e-3), ("int8", 1, 0.0501)])
def test_masks_are_stored_in_the_form_asked_for(form, width, gap):
    logits = torch.linspace(-12, 12, 5 * 8 * 8).view(1, 5, 8, 8)
    stored = packed("mask", logits, form)
    assert stored.nbytes == width * logits.numel()
    assert float((unpacked(stored) - logits).abs().max()) <= gap
    assert packed("labels", logits, form).dtype == torch.float32
    assert bool(unpacked(packed("mask", torch.tensor([[1e6, -1e6]]), form)).isfinite().all())
    assert unpacked(packed("mask", torch.tensor([[99.0, -99.0]]), "int8")).tolist() == [
        [pytest.approx(12.7), pytest.approx(-12.7)]
    ]


@pytest.mark.parametrize("kind", ["classes", "value", "mask"])
def test_the_parts_of_a_replayed_batch_are_weighted_as_asked(kind):
    bench, batch = remembering(
        options=DarkReplayOptions(alpha=2.0, beta=3.0), model_options=PointOptions(aux=True), **{kind: 1, "labels": 1}
    )
    bench.move(("common", "heads"))
    batch, task = replace(batch, share=0.5, row_share=0.25), bench.method.tasks[kind]
    ctx = bench.method.context(batch, training=True)
    outputs = bench.model(batch, ctx)
    name = OUTPUT.get(kind, "logits")
    dark = 2 * 0.25 * distance(kind, outputs[name], unpacked(batch.stored[name])).mean()
    loss = 3 * (0.25 if task.coupled else 0.5) * task.nll(outputs, batch.targets).mean()
    parts = bench.method.remembered(batch, "then:")
    assert parts.keys() == {"then:dark", "then:nll", "then:spread"}
    for part, expected in (("dark", dark), ("nll", loss), ("spread", 3 * 0.25 * ctx.aux["spread"])):
        assert float(expected) > 1e-4
        assert float(parts[f"then:{part}"]) == pytest.approx(float(expected), rel=1e-5)


def test_dark_replay_pulls_back_to_the_stored_outputs_alone():
    bench, batch = remembering(options=DarkReplayOptions(beta=0.0), classes=1, value=1)
    parts = bench.method.remembered(batch, "")
    assert float(parts["dark"]) == pytest.approx(0, abs=1e-6)
    bench.move(("common",))
    before = bench.method.remembered(batch, "")["dark"]
    before.backward()
    with torch.no_grad():
        bench.model.common.weight -= 0.05 * bench.model.common.weight.grad
        bench.model.common.bias -= 0.05 * bench.model.common.bias.grad
    assert float(bench.method.remembered(batch, "")["dark"]) < float(before)


def test_outputs_that_would_not_fit_are_refused_before_the_experience():
    bench = Bench(points(DarkReplay, DarkReplayOptions(memory=4, megabytes=1), mask=1, classes=1))
    first = bench.toy.stream.experiences[0]
    bench.begin(first)
    big = torch.zeros(1, 400_000)
    bench.method.outputs = lambda data, keys: {keys[0]: {"mask": big.half()}}
    with pytest.raises(
        ConfigError, match=r"outputs of mask0 take 0\.763 MB per sample, 3\.052 MB .* method\.megabytes=1"
    ):
        bench.method.before(first, bench.data(first))


def test_a_memory_knows_the_size_of_what_it_keeps_beside_another_experience():
    memory = Memory(6, 0)
    for name in ("a", "b"):
        keys = [f"{name}{i}" for i in range(6)]
        memory.add(name, keys, {key: {"x": torch.zeros(5)} for key in keys})
    assert memory.bytes_beside("c") == 2 * 2 * 20
    assert memory.bytes_beside("b") == 3 * 20


# ------------------------------------------------------------------ experience replay
def test_a_coupled_task_is_replayed_with_what_the_model_adds():
    bench, batch = remembering(ExperienceReplay, None, PointOptions(aux=True), value=1, labels=1)
    batch = replace(batch, share=0.9, row_share=0.25, whole=True)
    train_mode(bench.model, ("*",))
    ctx = bench.method.context(batch, training=True)
    outputs = bench.model(batch, ctx)
    parts = bench.method.remembered(batch, "value0:")
    assert parts.keys() == {"value0:nll", "value0:spread"}
    nll = bench.method.tasks["value"].nll(outputs, batch.targets).mean()
    assert float(parts["value0:nll"]) == pytest.approx(0.25 * float(nll), rel=1e-5)
    assert float(parts["value0:spread"]) == pytest.approx(0.25 * float(ctx.aux["spread"]), rel=1e-5)
    assert float(ctx.aux["spread"]) > 0


@pytest.mark.parametrize("method", [ExperienceReplay, DarkReplay])
@pytest.mark.parametrize("aux", [False, True])
def test_a_run_keeps_the_contract(method, aux, tmp_path):
    options = method.Config(memory=7, replay_batch=3)
    model = PointOptions(copies=not aux, aux=aux)
    check_method(points(method, options, model, labels=1, value=1, mask=1, tokens=1), tmp_path, stops=4)


def test_micro_batches_add_up(tmp_path):
    check_pieces(points(DarkReplay, DarkReplayOptions(memory=6, replay_batch=3), classes=2, tokens=1), tmp_path)


def test_dark_replay_has_the_options_of_replay():
    assert set(ReplayOptions.model_fields) < set(DarkReplayOptions.model_fields)
