"""Training steps of AVMOE: what learns when, and that steps depend neither on micro-batches nor on ranks nor on recomputing."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avcl_core.clipnorm import ClipNorm
from avcl_core.ownership import Owners, train_mode
from avcl_core.seeding import torch_generator
from avcl_core.testing import check_ownership
from avcl_core.training.stepper import Work, _seeded
from avcl_core.walk import Ctx

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("moe_toys", HERE / "moe_toys.py")
toys = importlib.util.module_from_spec(_spec)
sys.modules["moe_toys"] = toys
_spec.loader.exec_module(toys)
toy, grown, samples = toys.toy, toys.grown, toys.samples


# ------------------------------------------------------------------ what learns when
def waves(run, count=3):
    """Names of the tensors that each of ``count`` backward passes reaches, with a small step after each."""
    method = grown(run, open_gates=False)
    with torch.no_grad():
        for adapter in toys.adapters(method):  # initial biases are zero and gains one: hide nothing behind symmetry
            for name, parameter in adapter.named_parameters():
                if "norm" in name and "bias" in name:
                    parameter.add_(torch.linspace(-0.3, 0.4, parameter.numel()))
    experience = run.stream.experiences[0]
    live = method.active(experience)
    owners = Owners(method.model)
    owners.set_trainable(live)
    train_mode(method.model, live)
    batch, found = samples(run, 3), []
    for wave in range(count):
        method.model.zero_grad(set_to_none=True)
        torch.stack(list(method.losses(batch).values())).sum().backward()
        grads = {n: p.grad for n, p in owners.match(live).items() if p.grad is not None}
        largest = max(float(g.abs().max()) for g in grads.values())
        found.append({n for n, g in grads.items() if float(g.abs().max()) > 1e-12 * largest})
        with torch.no_grad():
            for name, parameter in owners.match(live).items():
                if name in found[-1]:
                    parameter.sub_(0.01 / (2 + wave) * grads[name] / grads[name].abs().max())
    return set(owners.match(live)), found


def ends(names, *last):
    return {name for name in names if name.endswith(last) or name.startswith(last)}


@pytest.mark.parametrize(
    "options", [{}, {"uni_attention": "none", "uni_activation": "relu"}, {"uni_attention": "temporal"}]
)
def test_three_waves_of_gradients(options):
    known, (first, second, third) = waves(toy(cross_experts=2, uni_experts=2, **options))
    gates, head = ends(known, ".output_gate"), ends(known, "heads.")
    assert len(gates) == 16 * 4
    assert head
    assert first == gates | head
    latents = ends(known, ".latents")
    assert latents
    assert second == known - latents
    assert third == known


def test_batch_norm_cancels_exactly_the_biases_that_the_specification_names():
    known, reached = waves(toy(bottleneck_norm="batch", cross_experts=1, uni_experts=2), 4)
    cancelled = ends(known, "norm_before.bias")
    cancelled |= {n for n in ends(known, "bottleneck_in.bias") if ".experts.0." not in n}  # expert 0 has a ReLU
    assert len(cancelled) == 16 * 5
    assert reached[-1] == known - cancelled
    known, reached = waves(toy(bottleneck_norm="batch", uni_activation="relu"), 4)
    assert reached[-1] == known - ends(known, "norm_before.bias")


def test_the_balance_loss_reaches_routers_and_resampling_in_the_first_step():
    known, reached = waves(toy(balance_weight=1.0, mixer_rank=2), 1)
    routed = {n for n in known if ".router." in n or ".align." in n}
    # Adapters further on reach back through open gates alone, and none is open.
    assert reached[0] == ends(known, ".output_gate", "heads.") | ends(known, "heads.") | routed


@pytest.mark.parametrize(
    "options",
    [
        {"router": "uniform"},
        {"router": "uniform", "cross_experts": 0},
        {"router": "uniform", "uni_experts": 0},
        {"cross_experts": 0, "uni_experts": 2},
        {"cross_experts": 2, "uni_experts": 0},
        {"cross_experts": 0, "uni_experts": 2, "mixer_rank": 2, "uni_attention": "none"},
        {"router": "task", "skip": 2},
        {"adapters": "task", "skip": 2},
        {"imported": True, "uni_attention": "dense", "audio_placement": "after_block"},
    ],
    ids=str,
)
def test_no_trainable_parameter_is_dead(options):
    known, reached = waves(toy(**options))
    assert reached[-1] == known


def test_without_a_router_or_cross_modal_experts_nothing_of_them_exists():
    names = {n for n, _ in grown(toy(router="uniform", cross_experts=0)).model.parts.named_parameters()}
    assert not [n for n in names if ".router." in n or ".align." in n]
    names = {n for n, _ in grown(toy(router="uniform")).model.parts.named_parameters()}
    assert not [n for n in names if ".router." in n]
    assert [n for n in names if ".align." in n]


# ------------------------------------------------------------------ micro-batches, recomputing, ranks
@pytest.fixture(scope="module")
def whole():
    """Each case's step with the whole batch in one piece."""
    return {name: toys.step(run, None) for name, run in toys.CASES.items()}


@pytest.mark.parametrize("case", toys.CASES)
def test_a_step_does_not_depend_on_micro_batches(case, whole):
    assert float(whole[case].logged["balance"]) > 0.01
    statistics = {n: v for n, v in whole[case].buffers.items() if n.endswith("running_mean")}
    assert statistics
    assert all(bool((value != 0).any()) for value in statistics.values())  # the step moved them
    for micro in (2, 1) if case == "everything" else (2,):
        # A blank image has equal tokens, whose batch norm divides rounding by the root of eps.
        assert toys.apart(whole[case], toys.step(toys.CASES[case], micro)) < 1e-5


def test_a_step_does_not_depend_on_micro_batches_up_to_rounding():
    run = toy(("tokens",), **{**toys.EVERYTHING, "modality_dropout": 0.0}, cross_experts=2)
    assert toys.apart(toys.step(run, None), toys.step(run, 2)) < 1e-12


@pytest.mark.parametrize("options", [{}, {"uni_attention": "temporal", "uni_experts": 2}, {"uni_attention": "none"}])
def test_recomputing_changes_neither_gradients_nor_running_statistics(options):
    one, two = (toy(**{**toys.EVERYTHING, "modality_dropout": 0.0}, **options, recompute=r) for r in (False, True))
    assert toys.apart(toys.step(one, 2, 3), toys.step(two, 2, 3)) < 1e-14


def test_recomputing_recomputes(monkeypatch):
    calls = []
    forward = toys.MoeAdapter.forward

    def counted(self, *arguments):
        calls.append(self.label)
        return forward(self, *arguments)

    monkeypatch.setattr(toys.MoeAdapter, "forward", counted)
    toys.step(toy(), None, 2)
    plain = len(calls)
    toys.step(toy(recompute=True), None, 2)
    assert plain == 16
    assert len(calls) > 1.9 * plain + plain


@pytest.mark.parametrize("name", toys.EVERYTHING)
def test_every_option_of_the_cases_matters(name, whole):
    off = {"bottleneck_norm": "none", "specaug": False}.get(name, 0.0)
    run = toy(**{**toys.EVERYTHING, name: off}, cross_experts=2, uni_experts=2)
    found = toys.step(run, None)
    common = [n for n, g in found.gradients.items() if g is not None and n in whole["everything"].gradients]
    gaps = [float((found.gradients[n] - whole["everything"].gradients[n]).abs().max()) for n in common]
    assert max(gaps) > 1e-3


def test_every_sample_of_a_step_has_a_seed_that_follows_from_step_and_key():
    batch = samples(toy(), 4)

    def seeds(chosen, *coordinates):
        return _seeded(Work(chosen, (chosen,)), coordinates).current.seeds

    found = seeds(batch, "step", 0)
    assert len(set(found)) == 4
    assert seeds(batch.select([2, 0]), "step", 0) == (found[2], found[0])
    assert not set(found) & set(seeds(batch, "step", 1))
    assert _seeded(Work(batch, (batch.select([1]),)), ("step", 0)).replayed[0].seeds == (found[1],)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Take every case's step on two ranks of gloo and return the folder of what they saved."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "moe_toys.py"), "2", str(folder)]
    subprocess.run(command, env=environment, check=True, timeout=600)
    return folder


@pytest.mark.parametrize("case", toys.RANKED)
def test_two_ranks_take_the_step_of_one_process(case, whole, two, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "Stepped", toys.Stepped, raising=False)  # pickled by the script
    for rank in range(2):
        assert toys.apart(whole[case], torch.load(two / f"{case}-{rank}.pt", weights_only=False)) < 1e-5


# ------------------------------------------------------------------ draws of a sample
def test_dropout_denies_one_modality_of_a_sample_with_its_probability():
    method = grown(toy(modality_dropout=0.3))
    batch = samples(method_run := toy(), 1)
    assert method_run.model_options is not None
    many = replace(batch, keys=tuple(f"{i}" for i in range(2000)), seeds=tuple(range(2000)))
    present = method.model._dropped(many)
    denied = {name: ~value for name, value in present.items()}
    assert not (denied["visual"] & denied["audio"]).any()
    both = (denied["visual"] | denied["audio"]).double().mean()
    assert float(both) == pytest.approx(0.3, abs=0.04)
    assert float(denied["visual"].double().mean()) == pytest.approx(0.15, abs=0.03)
    assert all(bool(v.all()) for v in grown(toy(modality_dropout=1e-9)).model._dropped(many).values())


def test_dropout_keeps_what_a_batch_denies_and_never_takes_the_last_modality():
    method = grown(toy(modality_dropout=0.99))
    batch = toys.with_seeds(samples(toy(), 4))
    seconds = torch.tensor([[True, False], [True, True], [True, True], [False, False]])
    found = method.model._dropped(replace(batch, present={"audio": seconds}))
    assert torch.equal(found["audio"][0], seconds[0])
    assert not found["audio"][3].any()
    assert found["visual"][[0, 3]].all()
    for row in (1, 2):
        assert int(found["visual"][row]) + int(found["audio"][row].all()) == 1


def test_router_noise_is_normal_of_its_size_and_different_at_every_site_and_frame():
    method = grown(toy(router_noise=0.5, cross_experts=2, uni_experts=2))
    batch = toys.with_seeds(samples(toy(), 4))
    ctx = Ctx(training=True, frames=2, embedded={"visual": torch.zeros(8, 1, 1)})
    method.model.prepare(batch, ctx)
    noise = torch.stack([ctx.memo[f"noise {label}"] for label in method.model.labels])
    assert noise.shape == (16, 8, 4)
    assert noise.unique().numel() == noise.numel()
    assert float(noise.std()) == pytest.approx(0.5, rel=0.15)
    assert float(noise.mean()) == pytest.approx(0, abs=0.07)
    alone = Ctx(training=True, frames=2, embedded=ctx.embedded)
    method.model.prepare(batch.select([2]), alone)  # a sample's noise is its own, whatever else is drawn
    assert all(torch.equal(alone.memo[name], value[4:6]) for name, value in ctx.memo.items())
    silent = Ctx(training=False, frames=2, embedded=ctx.embedded)
    method.model.prepare(batch, silent)
    assert not silent.memo


def test_gates_in_training_are_those_of_noisy_logits():
    method = grown(toy(router_noise=0.5))
    batch = toys.with_seeds(samples(toy(), 2))
    quiet, noisy = Ctx(training=True), Ctx(training=True)
    with torch.no_grad():
        toys.grown(toy(router_noise=0.0)).model.features(batch, quiet)
        method.model.features(batch, noisy)
    label = method.model.labels[0]  # the first adapter reads what no noise has touched yet
    expected = (quiet.memo[f"gates {label}"].log() + noisy.memo[f"noise {label}"]).softmax(-1)
    torch.testing.assert_close(noisy.memo[f"gates {label}"], expected, rtol=0, atol=1e-12)


def test_the_balance_loss_is_the_mean_over_clips_of_the_sum_over_adapters():
    method = grown(toy(balance_weight=0.3))
    batch, ctx = samples(toy(), 3), Ctx(training=True)
    with torch.no_grad():
        method.model.features(batch, ctx)
    total = 0.0
    for label in method.model.labels:
        for clip in ctx.memo[f"gates {label}"].view(3, 2, 2):
            total += float(-clip.mean(0).log().mean() - torch.tensor(2.0).double().log()) / 3
    assert float(ctx.aux["balance"]) == pytest.approx(0.3 * total, rel=1e-10)
    quiet = Ctx(training=False)
    method.model.features(batch, quiet)
    assert not quiet.aux


def test_specaug_hides_what_the_samples_seeds_say(monkeypatch):
    method = grown(toy())
    batch = toys.with_seeds(samples(toy(), 2))
    tower, seen = method.model.towers["audio"], []
    embed = tower.embed
    monkeypatch.setattr(tower, "embed", lambda value, hide=None: seen.append(hide) or embed(value, hide=hide))
    with torch.no_grad():
        for training, chosen in (
            (True, batch),
            (True, batch.select([1])),
            (False, batch),
            (True, replace(batch, seeds=())),
        ):
            method.model.features(chosen, Ctx(training=training))
    first, second, *off = seen
    assert torch.equal(first[2:], second)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[:2], first[2:])
    assert off == [None, None]
    again = torch.equal(
        first[:2],
        toys_spec_augment(batch.seeds[0], first.shape[1:], tower.info.spectrogram),
    )
    assert again


def toys_spec_augment(seed, shape, spectrogram):
    from avcl_core.augment import spec_augment, stripe_widths

    return spec_augment(2, *shape, torch_generator(seed, "specaug"), stripe_widths(spectrogram))


# ------------------------------------------------------------------ owners
@pytest.mark.parametrize("options", [{"adapters": "task"}, {"router": "task"}, {}], ids=str)
def test_what_a_task_owns_rests_while_another_learns(options, tmp_path):
    run = toy(("labels", "classes"), skip=2, bottleneck_norm="batch", balance_weight=0.1, **options)
    check_ownership(replace(run, training=run.training.model_copy(update={"epochs": 1})), tmp_path)
    method = grown(run)
    names = {row.owner for row in Owners(method.model).rows.values()}
    heads = {"head:labels", "head:classes"}
    tasks = {"task:labels0", "task:classes0"}
    if options.get("adapters") == "task":
        assert names == heads | tasks
    elif options:
        assert names == heads | tasks | {"shared", "expert:0", "expert:1"}
    else:
        assert names == heads | {"shared", "router", "expert:0", "expert:1"}
    known = Owners(method.model).rows
    for owner in tasks & names:
        twin = owner.removeprefix("task:")
        assert all(f".slots.{twin}." in n for n, row in known.items() if row.owner == owner)


def test_experts_are_owned_by_number_over_all_sites_and_statistics_with_them():
    rows = Owners(grown(toy(bottleneck_norm="batch", cross_experts=2)).model).rows
    for name, row in rows.items():
        if ".experts." in name:
            assert row.owner == f"expert:{name.split('.experts.')[1].split('.')[0]}"
        elif ".align." in name:
            assert row.owner == "shared"
    assert {r.owner for n, r in rows.items() if n.endswith("running_var")} == {"expert:0", "expert:1", "expert:2"}


def test_frozen_norms_neither_gather_nor_move_while_another_task_learns():
    method = grown(toy(("labels", "classes"), adapters="task", bottleneck_norm="batch"))
    experience = method.tasks["classes"].experiences()[0]
    train_mode(method.model, method.active(experience))
    norms = {n: m for n, m in method.model.named_modules() if isinstance(m, ClipNorm)}
    assert {n for n, m in norms.items() if m.training} == {n for n in norms if ".slots.classes0." in n}
