"""AVMOE as a whole: pairs, sizes, what the adapters read, identity with closed gates, and independence of the batch."""

import importlib.util
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from avcl_core.errors import ConfigError
from avcl_core.models.avmoe import AvMoe, AvMoeOptions, paired_blocks
from avcl_core.ownership import Owners, train_mode
from avcl_core.testing import toy_task, toy_towers
from avcl_core.testing.rules import fingerprint
from avcl_core.testing.toy_towers import clip, resnet
from avcl_core.trace import Trace
from avcl_core.walk import Ctx
from shared_backbones import create
from shared_backbones.registry import build

_spec = importlib.util.spec_from_file_location("moe_toys", Path(__file__).with_name("moe_toys.py"))
toys = importlib.util.module_from_spec(_spec)
sys.modules["moe_toys"] = toys
_spec.loader.exec_module(toys)
toy, grown, samples = toys.toy, toys.grown, toys.samples


def features(method, batch, training=False):
    """Features of a batch in eval mode, or in the mode of training."""
    if training:
        train_mode(method.model, ["*"])
    else:
        method.model.eval()
    with torch.no_grad():
        return method.model.features(batch, replace(method.context(batch, training), slots=method.model.route(batch)))


def flat(found):
    return {
        **found.final,
        **{f"{n} {i}": v for n, values in found.stages.items() for i, v in enumerate(values)},
    }


# ------------------------------------------------------------------ pairs and sizes, on the meta device
@pytest.fixture(scope="module")
def full():
    return {"visual": build("swin_v2", "full", {}, device="meta"), "audio": build("htsat", "full", {}, device="meta")}


@pytest.fixture(scope="module")
def tiny():
    return {n: build(t, "tiny", {}, device="meta") for n, t in (("visual", "swin_v2"), ("audio", "htsat"))}


def on_meta(towers, **options):
    with torch.device("meta"):
        return AvMoe(towers, {}, AvMoeOptions(**options))


def test_pairs_of_the_full_towers(full):
    # Blocks are counted through the tower: stage 2 begins with visual block 4 and audio block 4.
    assert paired_blocks(full["visual"], full["audio"]) == [
        (0, 0, 0), (0, 1, 1), (1, 2, 2), (1, 3, 3), (2, 6, 4), (2, 9, 5), (2, 12, 6), (2, 15, 7), (2, 18, 8), (2, 21, 9),
        (3, 22, 10), (3, 23, 11),
    ]  # fmt: skip


def test_pairs_of_the_tiny_towers(tiny):
    assert paired_blocks(tiny["visual"], tiny["audio"]) == [
        (0, 0, 0), (0, 1, 1), (1, 2, 2), (1, 3, 3), (2, 6, 4), (2, 9, 5), (3, 10, 6), (3, 11, 7),
    ]  # fmt: skip


@pytest.mark.parametrize(("skip", "stages"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 1, 3]), (4, [0, 1, 2])])
def test_skip_leaves_out_every_so_many_stages(full, skip, stages):
    model = on_meta(full, skip=skip)
    pairs = {0: (0, 1), 1: (2, 3), 2: (4, 5, 6, 7, 8, 9), 3: (10, 11)}
    expected = {
        f"{m} {s} {p} {k}" for s in stages for p in pairs[s] for k in ("attn", "mlp") for m in ("audio", "visual")
    }
    assert set(model.labels) == expected
    assert len(model.labels) == len(expected) == {1: 48, 2: 32}.get(skip, len(expected))


AVE = {"bottleneck_norm": "batch", "uni_attention": "none"}
S4 = {"skip": 1, "latents": 87, "router_noise": 0.01}
TINY = {"latents": 8, "reduction": 4}
COUNTS = [
    ("full", AVE, 90_549_536),
    ("full", AVE | {"skip": 1}, 111_996_288),
    ("full", AVE | {"skip": 1, "cross_experts": 2, "uni_experts": 2}, 118_570_032),
    ("full", AVE | {"cross_experts": 2, "uni_experts": 2}, 93_476_096),
    ("full", AVE | {"skip": 1, "uni_experts": 2}, 114_859_200),
    ("full", AVE | {"skip": 1, "cross_experts": 2}, 115_707_120),
    ("base", AVE, 86_134_176),
    ("full", {"skip": 1, "balance_weight": 2.0}, 112_724_976),
    ("full", {"skip": 1, "uni_attention": "dense", "imported": True}, 111_877_104),
    ("full", S4 | {"uni_attention": "temporal"}, 199_702_080),
    ("full", S4, 115_639_536),
    ("full", {"reduction": 2, "latents": 87, "cross_experts": 2, "uni_experts": 2}, 111_142_080),
    ("full", {"skip": 1, "uni_experts": 2, "groups": 4, "latents": 2, "uni_attention": "none"}, 109_841_952),
    ("full", {}, 90_961_408),
    ("tiny", TINY | {"skip": 1, "uni_attention": "none"}, 1_485_632),
    ("tiny", TINY | {"skip": 1}, 1_501_024),
    ("tiny", TINY | {"uni_attention": "none"}, 824_656),
    ("tiny", TINY, 829_792),
]


@pytest.mark.parametrize(("size", "options", "count"), COUNTS)
def test_published_parameter_counts_to_the_unit(size, options, count, full, tiny):
    towers = tiny if size == "tiny" else dict(full)
    if size == "base":
        towers["visual"] = build("swin_v2", "full", {"variant": "base"}, device="meta")
    assert sum(p.numel() for p in on_meta(towers, **options).parts.parameters()) == count


def by_part(model, modality, site):
    found = Counter()
    for name, parameter in model.parts.named_parameters():
        place, _, inner = name.partition(".")
        if place.startswith(modality) and f"_{site}_" in place:
            part = inner.split(".")[0] if not inner.startswith("align") else ".".join(inner.split(".")[:2])
            if part == "experts":
                part = "cross" if inner.split(".")[1] == "0" else "uni"
            found[part] += parameter.numel()
    return found


@pytest.mark.parametrize("site", ["attn", "mlp"])
def test_parameters_of_one_list_by_part(full, site):
    model = on_meta(full, **AVE)
    parts = {
        "audio": {"align.token": 19_105_280, "align.channel": 1_808_832, "router": 673_552, "cross": 208_384, "uni": 128_504},
        "visual": {"align.token": 19_101_024, "align.channel": 1_811_328, "router": 1_312_528, "cross": 642_544, "uni": 482_792},
    }  # fmt: skip
    for modality, expected in parts.items():
        assert by_part(model, modality, site) == expected
    assert sum(parts["audio"].values()) == 21_924_552
    assert sum(parts["visual"].values()) == 23_350_216
    stream = on_meta(full)
    assert by_part(stream, "audio", site).total() == 21_993_200
    assert by_part(stream, "visual", site).total() == 23_487_504


def test_low_rank_token_maps_take_away_three_quarters(full):
    count = sum(p.numel() for p in on_meta(full, mixer_rank=64).parts.parameters())
    assert 0.2 < count / 90_961_408 < 0.3


# ------------------------------------------------------------------ the schedule of a paired block (3.2)
def plain_stages(tower, value, normed):
    """Stage maps and final tokens of a tower by itself."""
    tokens, aux = tower.embed(value.flatten(0, 1))
    stages = []
    for sub in tower.subs:
        if sub.kind == "merge":
            stages.append(tokens)
        out = tower.run(sub, tokens, aux)
        tokens = tokens + out if sub.kind in ("attn", "mlp") else out
    return [*stages, tokens], tower.final(tokens) if normed else tokens


@pytest.mark.parametrize("towers", ["toys", "deep", "embedded", "whole"])
def test_closed_gates_are_the_plain_towers_bit_for_bit(towers):
    """The vision tower's final norm is applied, the audio tower's is not."""
    if towers == "embedded":
        make = lambda: {"visual": create("swin_v2", size="tiny"), "audio": create("htsat", size="tiny")}  # noqa: E731
        model = AvMoe(make(), {"labels": toy_task("labels")}, AvMoeOptions(latents=8, reduction=4, skip=1))
        generator = torch.Generator().manual_seed(0)
        inputs = {"visual": torch.randn(2, 2, 3, 64, 64, generator=generator)}
        sound = 0.3 * torch.randn(4, 64000, generator=generator)
        inputs["audio"] = model.towers["audio"].frontend(sound).unflatten(0, (2, 2))
    else:
        given = {"imported": True, "audio_placement": "after_block"} if towers == "whole" else {}
        run = toy(towers=toys.deep_towers if towers == "deep" else toy_towers, bottleneck_norm="batch", **given)
        model, inputs = grown(run, open_gates=False, double=False).model, samples(run, 2, double=False).inputs
    batch = toys.Batch("labels", ("a", "b"), inputs)
    model.eval()
    with torch.no_grad():
        found = model.features(batch, Ctx())
        for name, tower in model.towers.items():
            stages, final = plain_stages(tower, inputs[name], normed=name == "visual")
            assert torch.equal(found.final[name].flatten(0, 1), final)
            for one, two in zip(found.stages[name], stages, strict=True):
                assert torch.equal(one.flatten(0, 1), two)
    # With a norm that is not the identity, leaving it out shows.
    audio = found.final["audio"].flatten(0, 1)
    assert float((model.towers["audio"].final(audio) - audio).abs().max()) > 1e-2


@pytest.mark.parametrize("placement", ["sublayers", "after_block"])
def test_the_walk_of_both_towers_written_out(placement):
    """avmoe.md 3.2 step by step, with blocks that run alone between the pairs."""
    imported = {"imported": True} if placement == "after_block" else {}
    run = toy(towers=toys.deep_towers, skip=2, audio_placement=placement, **imported)
    method, batch = grown(run), samples(run, 2)
    parts, ctx = method.model.parts, Ctx(frames=2)
    towers, tokens, aux, blocks = dict(method.model.towers.items()), {}, {}, {}
    with torch.no_grad():
        for name, tower in towers.items():
            tokens[name], aux[name] = tower.embed(batch.inputs[name].flatten(0, 1))
            blocks[name] = {(s.block, s.kind): s for s in tower.subs}

        def ran(name, block, kind, value):
            return towers[name].run(blocks[name][block, kind], value, aux[name])

        def alone(name, block):
            if (block, "merge") in blocks[name]:
                tokens[name] = ran(name, block, "merge", tokens[name])
            for kind in ("attn", "mlp"):
                tokens[name] = tokens[name] + ran(name, block, kind, tokens[name])

        # Stage 0 has adapters: two pairs. Stage 1 has none (skip 2), so it is the plain towers'.
        for pair in (0, 1):
            v, a = tokens["visual"], tokens["audio"]
            first = parts[f"audio_{pair}_attn_add"](a, v, ctx), parts[f"visual_{pair}_attn_add"](v, a, ctx)
            tokens["visual"] = v + ran("visual", pair, "attn", v) + first[1]
            if placement == "sublayers":
                tokens["audio"] = a + ran("audio", pair, "attn", a) + first[0]
            else:
                inside = a + ran("audio", pair, "attn", a)
                tokens["audio"] = inside + ran("audio", pair, "mlp", inside) + first[0]
            v, a = tokens["visual"], tokens["audio"]
            second = parts[f"audio_{pair}_mlp_add"](a, v, ctx), parts[f"visual_{pair}_mlp_add"](v, a, ctx)
            tokens["visual"] = v + ran("visual", pair, "mlp", v) + second[1]
            tokens["audio"] = a + second[0] + (ran("audio", pair, "mlp", a) if placement == "sublayers" else 0)
        first_maps = dict(tokens)
        for name, count in (("visual", 4), ("audio", 2)):
            for block in range(2, 2 + count):
                alone(name, block)
    found = features(method, batch)
    assert not [name for name in parts if name.startswith(("audio_2", "visual_2", "audio_3", "visual_3"))]
    expected = {"visual": towers["visual"].final(tokens["visual"]), "audio": tokens["audio"]}
    for name in towers:
        torch.testing.assert_close(found.stages[name][0].flatten(0, 1), first_maps[name], rtol=0, atol=1e-12)
        torch.testing.assert_close(found.final[name].flatten(0, 1), expected[name], rtol=0, atol=1e-11)
    plain = grown(run, open_gates=False)
    assert float((features(plain, batch).final["audio"] - found.final["audio"]).abs().max()) > 1e-2


def test_adapters_of_stages_with_blocks_that_run_alone_sit_at_the_last_of_each_group():
    method = grown(toy(towers=toys.deep_towers))
    steps = {step.name: step for step in method.model.walks[0].steps}
    assert [(s.block, s.kind) for s in steps["2.mlp"].advance["visual"]] == [(3, "mlp")]
    assert [(s.block, s.kind) for s in steps["2.attn"].advance["audio"]] == [(2, "merge"), (2, "attn")]
    assert [(s.block, s.kind) for s in steps["3.attn"].advance["visual"]] == [(5, "attn")]
    assert {"visual2.attn", "visual2.mlp", "visual4.attn", "visual4.mlp"} < set(steps)
    assert len(toys.adapters(method)) == 16


# ------------------------------------------------------------------ independence of the batch
ROWS = [{}, {"uni_attention": "none"}, {"uni_attention": "temporal"}, {"bottleneck_norm": "batch"}]


@pytest.mark.parametrize("options", ROWS, ids=str)
def test_permuting_or_splitting_a_batch_changes_no_prediction(options):
    run = toy(**options, cross_experts=2)
    method, batch = grown(run), samples(run, 4, "test")
    whole = flat(features(method, batch))
    turned = flat(features(method, batch.select([3, 1, 0, 2])))
    cut = [flat(features(method, batch.select(rows))) for rows in ([0], [1, 2, 3])]
    for name, value in whole.items():
        torch.testing.assert_close(turned[name], value[[3, 1, 0, 2]], rtol=0, atol=1e-11)
        torch.testing.assert_close(torch.cat([part[name] for part in cut]), value, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "training", "within"),
    [
        ({}, False, False),
        ({}, True, False),
        ({"uni_attention": "none", "bottleneck_norm": "batch"}, False, False),
        ({"uni_attention": "none", "bottleneck_norm": "batch"}, True, True),
        ({"uni_attention": "temporal"}, False, True),
        ({"imported": True, "uni_attention": "dense"}, False, False),
        ({"router": "uniform"}, False, False),
    ],
    ids=str,
)
def test_frames_of_a_clip_meet_only_in_temporal_attention_and_batch_norm(options, training, within):
    run = toy(**options)
    method, batch = grown(run), samples(run, 2)
    before = flat(features(method, batch, training))
    inputs = {name: value.clone() for name, value in batch.inputs.items()}
    for value in inputs.values():
        value[0, 1] = value[0, 1].flip(-1) * 0.9
    after = flat(features(method, replace(batch, inputs=inputs), training))
    for name, value in before.items():
        gap = (after[name] - value).abs().amax((2, 3))
        assert float(gap[0, 1]) > 1e-3
        assert (float(gap[0, 0]) > 1e-9) is within
        assert float(gap[1].max()) < 1e-12  # another clip never


@pytest.mark.parametrize("options", [{"bottleneck_norm": "batch", "balance_weight": 1.0, "router_noise": 0.1}])
def test_evaluation_changes_no_buffer_and_draws_nothing(options):
    run = toy(**options, modality_dropout=0.5)
    method, batch = grown(run), samples(run, 4, "test")
    method.model.train()
    before, state = fingerprint(method.model), torch.get_rng_state()
    one, two = method.predict(batch), method.predict(toys.with_seeds(batch))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), state)
    after = fingerprint(method.model)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not [m for m in method.model.modules() if getattr(m, "seen", None)]


@pytest.mark.parametrize(
    "options", [{"cross_experts": 2, "uni_experts": 2}, AVE, {"uni_attention": "temporal"}], ids=str
)
def test_half_precision_stays_near(options):
    run = toy(**options)
    method, batch = grown(run, double=False), samples(run, 4, double=False)
    method.model.eval()
    with torch.no_grad():
        exact = method.model(batch, method.context(batch, False))["logits"]
        with torch.autocast("cpu", torch.bfloat16):
            near = method.model(batch, method.context(batch, False))["logits"]
    assert near.dtype == torch.bfloat16
    gap = (near.float() - exact).norm() / exact.norm()
    assert 1e-5 < float(gap) < 5e-2


@pytest.mark.parametrize(
    "options", [toys.EVERYTHING, {"uni_attention": "none", **toys.EVERYTHING}], ids=["latent", "none"]
)
def test_half_precision_trains_batch_norms_and_routers(options):
    run = toy(**{**options, "modality_dropout": 0.0}, cross_experts=2)
    method, batch = grown(run, double=False), toys.with_seeds(samples(run, 4, double=False))
    train_mode(method.model, ["*"])
    found = []
    for half in (False, True):
        method.model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = torch.stack(list(method.losses(batch).values())).sum()
        loss.backward()
        grads = {n: p.grad.clone() for n, p in Owners(method.model).match().items()}
        found.append((float(loss.detach()), grads))
    (exact, one), (near, two) = found
    assert near == pytest.approx(exact, rel=5e-2)
    assert all(bool(g.isfinite().all()) for g in two.values())
    assert {g.dtype for g in two.values()} == {torch.float32}
    size = sum(float(g.square().sum()) for g in one.values()) ** 0.5
    gap = sum(float((two[n] - g).square().sum()) for n, g in one.items()) ** 0.5
    assert gap / size < 0.5  # batch norm magnifies rounding; half precision keeps the direction


def test_temporal_attention_has_four_heads_and_drops_a_fifth_in_training():
    method = grown(toy(uni_attention="temporal"))
    inner = [m for m in method.model.modules() if isinstance(m, torch.nn.MultiheadAttention)]
    assert len(inner) == 16
    assert {(m.num_heads, m.dropout, m.batch_first) for m in inner} == {(4, 0.2, True)}
    assert not {n for n, _ in method.model.parts.named_parameters() if ".experts.1." in n and "latents" in n}
    batch = samples(toy(), 2)
    torch.manual_seed(0)
    first, second = (flat(features(method, batch, training=True))["visual"] for _ in range(2))
    assert float((first - second).abs().max()) > 1e-6
    assert torch.equal(*(flat(features(method, batch))["visual"] for _ in range(2)))


def test_a_trace_tells_gates_residuals_and_entropy_and_changes_nothing():
    run = toy(cross_experts=2, uni_experts=1, skip=2)
    method, batch, trace = grown(run), samples(run, 3), Trace()
    quiet = method.predict(batch)
    assert all(torch.equal(quiet[n], v) for n, v in method.predict(batch, trace).items())
    assert trace.frames == 2
    assert set(trace.observed) == {
        f"{m} 0 {p} {s}" for m in ("audio", "visual") for p in (0, 1) for s in ("attn", "mlp")
    }
    found = trace.observed["audio 0 0 attn"]
    adapter = method.model.parts["audio_0_attn_add"]
    with torch.no_grad():
        tokens = {n: t.embed(batch.inputs[n].flatten(0, 1))[0] for n, t in method.model.towers.items()}
        mixture = adapter.mixture(tokens["audio"], tokens["visual"], Ctx(frames=2))
        latents = torch.stack([e.latents for e in list(adapter.experts)[:2]]).flatten(0, 1)
        attention = (latents @ mixture.aligned.mT).softmax(-1)
        entropy = -(attention * attention.log()).sum(-1).mean(1) / math.log(attention.shape[-1])
    size = mixture.mixed.flatten(1).norm(dim=1) / tokens["audio"].flatten(1).norm(dim=1)
    torch.testing.assert_close(found["gates"], mixture.gates, rtol=0, atol=1e-12)
    torch.testing.assert_close(found["residual"], size, rtol=0, atol=1e-12)
    torch.testing.assert_close(found["attention_entropy"], entropy, rtol=0, atol=1e-9)
    constants = trace.constants["audio 0 0 attn"]
    assert constants["experts"] == ["cross 0", "cross 1", "uni 0"]
    experts = list(adapter.experts)
    assert constants["output_gates"].tolist() == [e.output_gate.item() for e in experts]
    assert constants["inner_gates"].tolist() == [e.inner_gate.item() for e in experts]


def test_names_of_tensors_are_those_of_the_site():
    names = set(grown(toy(skip=2, bottleneck_norm="batch")).model.parts.state_dict())
    for name in (
        "visual_1_mlp_add.align.token.weight", "audio_0_attn_add.align.channel.bias", "audio_0_attn_add.router.fc3.weight",
        "audio_0_attn_add.experts.0.latents", "audio_0_attn_add.experts.1.inner_gate", "audio_1_mlp_add.experts.1.down.weight",
        "audio_0_attn_add.experts.0.bottleneck_in.running_var", "audio_0_attn_add.experts.0.output_gate",
    ):  # fmt: skip
        assert name in names
    slots = set(grown(toy(router="task")).model.parts.state_dict())
    assert "audio_0_attn_add.router.slots.labels0.fc1.weight" in slots


# ------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uni_attention": "dense"}, "exist for imported checkpoints only"),
        ({"audio_placement": "after_block"}, "exist for imported checkpoints only"),
        ({"router": "uniform", "router_noise": 0.1}, "router: uniform has no logits"),
        ({"router": "uniform", "balance_weight": 0.1}, "router: uniform has no logits"),
        ({"router": "task", "adapters": "task"}, "adapters: task holds a router per task already"),
        ({"cross_experts": 0, "uni_experts": 0}, "are both 0"),
        ({"cross_experts": 0}, "one expert leaves a router nothing to weigh"),
        ({"uni_experts": 0, "router": "task"}, "one expert leaves a router nothing to weigh"),
        ({"skip": 0}, "skip"),
        ({"reduction": 0}, "reduction"),
        ({"modality_dropout": 1.0}, "modality_dropout"),
        ({"router_noise": -0.1}, "router_noise"),
        ({"mixer_rank": 0}, "mixer_rank"),
        ({"uni_attention": "self"}, "uni_attention"),
        ({"num_tokens": 32}, "num_tokens"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        AvMoeOptions(**options)


@pytest.mark.parametrize(
    "options", [{"reduction": 3}, {"reduction": 4, "groups": 4}, {"reduction": 2, "groups": 3}], ids=str
)
def test_sizes_that_do_not_divide_are_refused(options):
    with pytest.raises(ConfigError, match=r"model\.reduction, model\.groups: width 8 cannot be reduced by"):
        toy(**options).build()


def test_towers_that_do_not_pair_are_refused():
    with pytest.raises(ConfigError, match=r"towers htsat and swin_v2 have \(2, 2\) and \(2, 4\) blocks"):
        paired_blocks(toy_towers()["audio"], toys.deep_towers()["visual"])
    with pytest.raises(ConfigError, match="AVMOE pairs blocks where each visual depth is a multiple"):
        toy(towers=lambda: {"visual": clip(), "audio": toy_towers()["audio"]}).build()
    run = toy(towers=lambda: {"visual": resnet(), "audio": toy_towers()["audio"]})
    with pytest.raises(ConfigError, match=r"needs sublayers \['attn', 'mlp'\] in towers\.visual"):
        AvMoe.requires.check("avmoe", run.towers(), run.tasks, run.stream)
    with pytest.raises(ConfigError, match=r"needs a tower towers\.audio"):
        AvMoe.requires.check("avmoe", {"visual": clip()}, run.tasks, run.stream)


def test_missing_modalities_take_part_as_silence_and_as_the_mean_image():
    run = toy()
    method, batch = grown(run), samples(run, 2)
    mute = features(method, replace(batch, present={"audio": torch.tensor([False, True])}))
    silence = method.model.towers["audio"].frontend(torch.zeros(1, 8000, dtype=torch.float64))
    inputs = {"visual": batch.inputs["visual"], "audio": batch.inputs["audio"].clone()}
    inputs["audio"][0] = silence[:, :1, :1].expand_as(inputs["audio"][0])
    for name, value in flat(features(method, replace(batch, inputs=inputs))).items():
        torch.testing.assert_close(flat(mute)[name], value, rtol=0, atol=1e-12)
    blind = features(method, replace(batch, present={"visual": torch.tensor([[True, False], [True, True]])}))
    inputs = {"visual": batch.inputs["visual"].clone(), "audio": batch.inputs["audio"]}
    inputs["visual"][0, 1] = 0
    for name, value in flat(features(method, replace(batch, inputs=inputs))).items():
        torch.testing.assert_close(flat(blind)[name], value, rtol=0, atol=1e-12)


def test_frozen_towers_do_not_change_in_a_run(tmp_path):
    run = toy(**toys.EVERYTHING)
    trainer = replace(run, training=run.training.model_copy(update={"epochs": 1, "micro_batch": 2})).trainer(tmp_path)
    trainer.run()
    after, fresh = Owners(trainer.method.model).frozen_digests(), Owners(run.build().model).frozen_digests()
    assert {n for n in fresh if n.startswith("towers.")} == set(after)
    assert all(after[name] == digest for name, digest in fresh.items())
