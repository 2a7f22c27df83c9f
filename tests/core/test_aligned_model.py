"""The trunk of CLIP and CLAP: similarity and contrast by hand, texts encoded when they must be, parts that train and that do not."""

import copy
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

_spec = importlib.util.spec_from_file_location("aligned_toys", Path(__file__).with_name("aligned_toys.py"))
assert _spec is not None
assert _spec.loader is not None
toys = sys.modules["aligned_toys"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toys)

from avcl_core.errors import ConfigError  # noqa: E402
from avcl_core.methods.er import ExperienceReplay, ReplayOptions  # noqa: E402
from avcl_core.models.aligned import Aligned, AlignedOptions  # noqa: E402
from avcl_core.ownership import Owners, own  # noqa: E402
from avcl_core.prompts.context import ClassPrompts  # noqa: E402
from avcl_core.running.size import forward_flops, shapes_only  # noqa: E402
from avcl_core.testing import ToyRun, toy_task, toy_towers  # noqa: E402
from avcl_core.testing.toy_texts import ToyTexts  # noqa: E402
from avcl_core.testing.toy_towers import aligned_towers  # noqa: E402
from avcl_core.walk import Ctx  # noqa: E402


@pytest.fixture
def method():
    return toys.stirred(toys.grown(Aligned))


def plain(model, given):
    """Final tokens of both towers through the library's own encoders."""
    found = {}
    for name, tower in model._towers():
        tokens, aux = tower.embed(given.inputs[name].flatten(0, 1))
        for sub in tower.subs:
            out = tower.run(sub, tokens, aux)
            tokens = tokens + out if sub.kind in ("attn", "mlp") else out
        found[name] = tower.project(tower.final(tokens))
    return found


def adapted(layers, features):
    down, up = layers[0].weight, layers[2].weight
    return F.normalize(0.2 * F.relu(F.relu(features @ down.T) @ up.T) + 0.8 * features, dim=1)


def test_similarity_by_hand(method):
    model, given = method.model, toys.batch(method, "texts")
    with torch.no_grad():
        found, _ = toys.similarity(method, given)
        joint = plain(model, given)
        towers = dict(model._towers())
        prompts = ClassPrompts(towers["visual"].text, ["grey", "red tint", "green", "blue tint"], 4)
        names = prompts.encode(model.contexts["texts"].vectors)
        spoken = [f"The sounds of {n}" for n in ("grey", "red tint", "green", "blue tint")]
        heard = F.normalize(towers["audio"].text.encode(spoken), dim=1)
        seen = adapted(model.text["visual"], joint["visual"]) @ adapted(model.text["names"], names).T
        visual = towers["visual"].net.logit_scale.exp() * seen
        audio = towers["audio"].net.logit_scale_a.exp() * F.normalize(joint["audio"], dim=1) @ heard.T
    assert found["visual"].shape == found["audio"].shape == (3, 2, 4)
    torch.testing.assert_close(found["visual"].flatten(0, 1), visual, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found["audio"].flatten(0, 1), audio, atol=1e-3, rtol=1e-4)


def test_contrast_by_hand(method):
    model, given = method.model, toys.batch(method, "texts")
    _, ctx = toys.similarity(method, given, training=True)
    joint = {name: value.detach().unflatten(0, (3, 2)) for name, value in plain(model, given).items()}
    layer = model.text["contrast"]
    heard = F.normalize((joint["audio"] @ layer.weight.T + layer.bias).mean(1), dim=1)
    logits = 100 * heard @ F.normalize(joint["visual"].mean(1), dim=1).T
    expected = {"audio to visual": 0.0, "visual to audio": 0.0}
    for row in range(3):
        expected["audio to visual"] -= 2.0 * float(logits.detach()[row].log_softmax(0)[row]) / 3
        expected["visual to audio"] -= 1.5 * float(logits.detach()[:, row].log_softmax(0)[row]) / 3
    assert {name: float(value.detach()) for name, value in ctx.aux.items()} == pytest.approx(expected, rel=1e-4)


def test_contrast_is_over_the_samples_of_all_ranks(method):
    """Two ranks, the second played by what the first one's collective returns beside its own rows."""
    given = toys.batch(method, "texts", 4)
    _, whole = toys.similarity(method, given, training=True)
    told: list[dict[str, torch.Tensor]] = []

    def record(rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        told.append(dict(rows))
        return dict(rows)

    for rows in ([0, 1], [2, 3]):
        ctx = replace(method.context(given, True), gather=record)
        method.model.features(given.select(rows), replace(ctx, slots=("texts0",) * 2))
    joined = {name: torch.cat([part[name] for part in told]) for name in told[0]}
    ctx = replace(method.context(given, True), gather=lambda rows: joined, slots=("texts0",) * 2)
    method.model.features(given.select([0, 1]), ctx)
    for name, value in whole.aux.items():
        torch.testing.assert_close(ctx.aux[name], value, rtol=1e-4, atol=1e-5)


def test_only_training_contrasts_and_only_tasks_with_texts(method):
    for task, training in (("texts", False), ("labels", True)):
        _, ctx = toys.similarity(method, toys.batch(method, task), training)
        assert ctx.aux == {}
    assert {task: method.model.coupled(task) for task in ("texts", "labels")} == {"texts": True, "labels": False}
    without = toys.grown(Aligned, AlignedOptions(contrast={"audio_to_visual": 0, "visual_to_audio": 0}))
    assert not without.model.coupled("texts")
    assert "contrast" not in without.model.text
    assert toys.similarity(without, toys.batch(without, "texts"), training=True)[1].aux == {}
    assert not toys.grown(Aligned, tasks={"labels": toy_task("labels")}).model.coupled("labels")


def test_only_tasks_that_are_contrasted_need_the_whole_batch(tmp_path):
    toy = ToyRun(aligned_towers, Aligned, ExperienceReplay, toys.toy_tasks(), method_options=ReplayOptions(memory=4))
    options = toy.training.model_copy(update={"micro_batch": 2, "epochs": 1, "lr": 1e-4})
    with pytest.raises(ConfigError, match="task texts with model Aligned has a loss over the whole batch"):
        replace(toy, training=options).trainer(tmp_path / "refused").run()
    ends = []
    # Beside pieces of one task, the other's samples are replayed whole.
    for name, micro in (("whole", None), ("pieces", 2)):
        tasks = {"texts": {"micro_batch": None}, "labels": {"micro_batch": micro}}
        trainer = replace(toy, training=options.model_copy(update={"tasks": tasks})).trainer(tmp_path / name)
        trainer.run()
        ends.append(Owners(trainer.method.model).state())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-4, rtol=1e-4, msg=name)


def test_predictions_do_not_depend_on_the_batch(method):
    given = toys.batch(method, "texts", 4)
    with torch.no_grad():
        whole, _ = toys.similarity(method, given)
        for row in range(4):
            alone, _ = toys.similarity(method, given.select([row]))
            for name, value in alone.items():
                torch.testing.assert_close(value[0], whole[name][row], atol=1e-3, rtol=1e-4)


# ---------------------------------------------------------------------- when texts are encoded
@pytest.fixture
def counted(method, monkeypatch):
    """The method, a batch, and the list of what was encoded."""
    calls = []
    plain_encode = ClassPrompts.encode

    def encode(self, context):
        calls.append(context.detach().clone())
        return plain_encode(self, context)

    monkeypatch.setattr(ClassPrompts, "encode", encode)
    return method, toys.batch(method, "texts"), calls


def test_texts_are_encoded_once_until_the_context_changes(counted):
    method, given, calls = counted
    context = method.model.contexts["texts"].vectors
    first = toys.answers(method, given)
    assert torch.equal(toys.answers(method, given), first)
    assert len(calls) == 1
    with torch.no_grad():
        context.mul_(3.0)
    changed = toys.answers(method, given)
    assert not torch.equal(changed, first)
    with torch.no_grad():
        context.div_(3.0)
    torch.testing.assert_close(toys.answers(method, given), first)
    assert len(calls) == 3


def test_a_replaced_context_is_encoded_anew(counted):
    method, given, calls = counted
    first = toys.answers(method, given)
    name = "contexts.texts.vectors"
    context = method.model.contexts["texts"].vectors
    other = {name: torch.zeros_like(context)}
    with torch.no_grad():
        while other[name]._version < context._version:  # as often written to as the one that it replaces
            other[name].mul_(1)
        ctx = method.context(given, training=False)
        teacher = functional_call(method.model, other, (given, ctx))["logits"]
    assert not torch.equal(teacher, first)
    assert torch.equal(toys.answers(method, given), first)
    assert len(calls) == 3


def test_learning_encodes_at_every_step_and_leaves_nothing_behind(counted):
    method, given, calls = counted
    toys.learn(method, given, steps=3)
    assert len(calls) == 3
    learnt = toys.answers(method, given)
    assert len(calls) == 4
    assert torch.equal(calls[3], method.model.contexts["texts"].vectors)
    method.model._seen.clear()
    assert torch.equal(toys.answers(method, given), learnt)


def test_a_tower_that_learns_encodes_its_texts_anew(counted):
    """What a tower made of texts before it learnt is never used again, not even when it is frozen once more."""
    method, _, calls = counted
    towers = dict(method.model._towers())
    method.model.contexts["texts"].vectors.requires_grad_(False)
    first = method.model.seen_names("texts"), method.model.heard_names("texts")
    for tower in towers.values():
        own(tower.set_trainable(True), "shared")
        for weight in tower.net.parameters():
            weight.data.mul_(1.1)
    moved = method.model.seen_names("texts"), method.model.heard_names("texts")
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in zip(first, moved, strict=True))
    moved[0].sum().backward()
    words = towers["visual"].net.text_model.embeddings.token_embedding.weight.grad
    assert float(words.abs().sum()) > 0
    towers["visual"].net.text_projection.weight.data[:4].zero_()
    towers["audio"].net.text_projection.linear2.weight.data[:4].zero_()
    for tower in towers.values():
        tower.set_trainable(False)
    after = method.model.seen_names("texts"), method.model.heard_names("texts")
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in zip(moved, after, strict=True))
    assert len(calls) == 3


def test_a_frozen_context_is_encoded_once_in_training_too(counted):
    method, given, calls = counted
    method.model.contexts["texts"].vectors.requires_grad_(False)
    for _ in range(2):
        parts = method.losses(given)
    assert len(calls) == 1
    torch.stack(list(parts.values())).sum().backward()
    assert float(method.model.text["names"][0].weight.grad.abs().sum()) > 0


def test_what_is_kept_is_not_of_mixed_precision(counted):
    method, given, _ = counted
    model = method.model
    with torch.autocast("cpu", torch.bfloat16):
        toys.answers(method, given)
        query = model.query(given, ("visual", "audio"))
        kept = {"seen": model._seen["texts"].features, "heard": model._heard["texts"]}
        logits, ctx = toys.similarity(method, given, training=True)
    assert {value.dtype for value in (*kept.values(), query)} == {torch.float32}
    assert {value.dtype for value in (*logits.values(), *ctx.aux.values())} == {torch.float32}
    model._seen.clear(), model._heard.clear()
    model.kept._entries.clear()
    toys.answers(method, given)
    assert torch.equal(model._seen["texts"].features, kept["seen"])
    assert torch.equal(model._heard["texts"], kept["heard"])
    assert torch.equal(model.query(given, ("visual", "audio")), query)


# ---------------------------------------------------------------------- owners and structure
def test_what_serves_texts_learns_from_tasks_with_texts_alone():
    method = toys.grown(Aligned)
    before = {name: value.clone() for name, value in Owners(method.model).state().items()}
    assert set(toys.learn(method, toys.batch(method, "labels"))) == {n for n in before if n.startswith("heads.labels")}
    middle = Owners(method.model).state()
    assert {n for n in before if not torch.equal(before[n], middle[n])} == {n for n in before if n.startswith("heads.")}
    trained = toys.learn(method, toys.batch(method, "texts"))
    after = Owners(method.model).state()
    changed = {n for n in before if not torch.equal(middle[n], after[n])}
    assert changed == set(trained) == {n for n in before if not n.startswith("heads.")}
    owners = {row.name: row.owner for row in Owners(method.model).rows.values()}
    assert owners["contexts.texts.vectors"] == "task:texts"
    assert {owners[n] for n in owners if n.startswith("text.")} == {"shared:text"}


def test_a_shared_context_is_shared():
    tasks = {name: ToyTexts(name) for name in ("one", "two")}
    method = toys.grown(Aligned, AlignedOptions(context={"per": "shared"}), tasks)
    assert not method.model.contexts
    assert Owners(method.model).rows["text.context.vectors"].owner == "shared:text"
    own = toys.grown(Aligned, None, tasks)
    assert set(own.model.contexts) == {"one", "two"}


def test_queries_are_those_of_the_plain_towers(method):
    given = toys.batch(method, "labels")
    joint = {n: F.normalize(v.detach(), dim=1).unflatten(0, (3, 2)) for n, v in plain(method.model, given).items()}
    found = method.model.query(given, ("visual", "audio"))
    width = joint["visual"].shape[-1]
    for part, name in zip(found.split(width, 1), ("visual", "audio"), strict=True):
        torch.testing.assert_close(part, F.normalize(joint[name].mean(1), dim=1), atol=1e-5, rtol=1e-4)
    assert not found.requires_grad


def test_towers_without_text_or_of_other_depth_are_refused():
    with pytest.raises(ConfigError, match=r"towers\.visual: swin_v2 has no text side; use clip_vit"):
        Aligned(toy_towers(), {}, AlignedOptions())
    towers = dict(aligned_towers())
    towers["visual"] = copy.copy(towers["visual"])
    towers["visual"].subs = towers["visual"].subs[:-2]
    towers["visual"].info = replace(towers["visual"].info, depths=(3,))
    with pytest.raises(ConfigError, match="have 3 and 4 blocks; they are walked"):
        Aligned(towers, {}, AlignedOptions())


def test_sizes_are_counted_without_values():
    tasks = toys.toy_tasks()
    with torch.device("meta"):
        model = Aligned(shapes_only(aligned_towers()), tasks, AlignedOptions())
        for task in tasks.values():
            model.grow(task.experiences()[0])
    live = toys.grown(Aligned)
    parts = forward_flops(model, toys.batch(live, "texts"), Ctx(("texts0",) * 3))
    assert parts["visual"] > 0
    assert parts["audio"] > 0
