"""Mixtures equal a direct formulation with loops: every kind of expert, batch norm per clip, both orders of the resampling."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from avcl_core.clipnorm import ClipNorm
from avcl_core.collective import Collective
from avcl_core.moe import mixture_from_arrays
from avcl_core.moe.adapter import MoeAdapter
from avcl_core.moe.align import Align
from avcl_core.moe.experts import Expert, ExpertShape, transposed_attention
from avcl_core.walk import Ctx

_spec = importlib.util.spec_from_file_location("moe_oracle", Path(__file__).with_name("moe_oracle.py"))
oracle = importlib.util.module_from_spec(_spec)
sys.modules["moe_oracle"] = oracle  # its dataclass looks itself up
_spec.loader.exec_module(oracle)
C, D, G, LATENTS, M, N, R = oracle.C, oracle.D, oracle.G, oracle.LATENTS, oracle.M, oracle.N, oracle.R
Direct, arrays, spec = oracle.Direct, oracle.arrays, oracle.spec
TWO = ("cross", "uni")

MIXTURES = [
    ("cross",), ("uni",), ("cross", "uni"), ("cross", "cross"), ("uni", "uni"), ("cross", "uni", "uni"),
    ("cross", "cross", "uni"), ("cross", "cross", "cross", "uni", "uni"),
]  # fmt: skip


@pytest.mark.parametrize("attention", ["none", "latent", "temporal", "dense"])
@pytest.mark.parametrize("kinds", MIXTURES, ids="-".join)
def test_equal_to_the_direct_formulation(kinds, attention):
    rng = np.random.default_rng(1)
    for norm, gated, activation in ((False, True, "none"), (True, True, "relu"), (True, False, "none")):
        weights = arrays(kinds, attention, gated, norm)
        direct = Direct(kinds, attention, norm, relu=activation == "relu", gated=gated, frames=2, weights=weights)
        x, other = rng.normal(size=(4, N, C)), rng.normal(size=(4, M, D))
        more = {"batch_norm": norm, "output_gate": gated, "uni_activation": activation, "frames": 2}
        found = mixture_from_arrays("direct", spec(kinds, attention, **more), weights, x, other)
        aligned, experts, gates, mixed = direct(x, other)
        assert len(found["experts"]) == len(kinds)
        assert found["load_balancing"] == pytest.approx(-np.log(gates.mean(0)).sum(), abs=1e-12)
        for one, two in [
            (found["aligned_other"], aligned),
            (found["gates"], gates),
            (found["mixed"], mixed),
            *zip(found["experts"], experts, strict=True),
        ]:
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-10)


def adapter_of(kinds, attention, norm, weights):
    """An adapter with the weights of :func:`arrays`, without ``mixture_from_arrays``."""
    shape = ExpertShape(C, R, G, LATENTS, norm, attention)
    adapter = MoeAdapter("it", (M, D), N, shape, kinds.count("cross"), kinds.count("uni")).double()
    ours = {"latent_tokens": "latents", "attention_gate": "inner_gate", "ln_in": "norm_before", "ln_out": "norm_after"}
    ours |= {"bn1": "bottleneck_in", "bn2": "bottleneck_out"}
    with torch.no_grad():
        for key, value in weights.items():
            module, _, last = key.partition("_")
            if module[:-1] in ("cross", "uni"):
                e = int(module[-1]) + (kinds.count("cross") if module.startswith("uni") else 0)
                name = next((ours[k] + last[len(k) :] for k in ours if last.startswith(k)), last)
                for end in ("running_mean", "running_var", "weight", "bias"):
                    if name.endswith("_" + end):
                        name = f"{name.removesuffix('_' + end)}.{end}"
                        break
                name = f"experts.{e}.{name}"
            else:
                where, part, end = key.split("_")
                name = f"{where}.{part}.{end}"
            adapter.get_submodule(name.rpartition(".")[0]).__getattr__(name.rpartition(".")[2]).copy_(
                torch.from_numpy(np.asarray(value))
            )
    return adapter


@pytest.mark.parametrize("kinds", [("cross", "uni"), ("cross", "cross", "uni", "uni")], ids="-".join)
@pytest.mark.parametrize("attention", ["none", "latent"])
def test_batch_norm_in_training_is_over_one_clip_and_statistics_are_folded_once_per_step(kinds, attention):
    rng = np.random.default_rng(2)
    weights = arrays(kinds, attention, norm=True)
    adapter = adapter_of(kinds, attention, True, weights).train()
    before = {n: b.clone() for n, b in adapter.named_buffers()}
    x, other = rng.normal(size=(6, N, C)), rng.normal(size=(6, M, D))
    direct = Direct(kinds, attention, True, True, 2, weights=weights)
    with torch.no_grad():
        found = adapter(torch.from_numpy(x), torch.from_numpy(other), Ctx(frames=2, training=True))
    np.testing.assert_allclose(found.numpy(), direct(x, other)[3], rtol=0, atol=1e-10)
    assert all(torch.equal(before[n], b) for n, b in adapter.named_buffers())
    for module in adapter.modules():
        if isinstance(module, ClipNorm):
            module.settle(Collective())
    assert not any(torch.equal(before[n], b) for n, b in adapter.named_buffers())
    with torch.no_grad():
        adapter.eval()
        again = adapter(torch.from_numpy(x), torch.from_numpy(other), Ctx(frames=2))
    moved = {n: b.numpy() for n, b in adapter.named_buffers()}
    for e, kind in enumerate(kinds):
        p = f"{kind}{kinds[:e].count(kind)}_"
        for n, place in ((1, "in"), (2, "out")):
            for part in ("running_mean", "running_var"):
                weights[f"{p}bn{n}_{part}"] = moved[f"experts.{e}.bottleneck_{place}.{part}"]
    settled = Direct(kinds, attention, True, False, 2, weights=weights)(x, other)[3]
    np.testing.assert_allclose(again.numpy(), settled, rtol=0, atol=1e-10)


def test_running_statistics_take_a_tenth_of_the_mean_over_clips_whatever_the_micro_batches():
    tokens = 3 + 2 * torch.randn(6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, pieces = ClipNorm(4).double(), ClipNorm(4).double()
    out = whole(tokens, 2)
    cut = torch.cat([pieces(tokens[:2], 2), pieces(tokens[2:], 2)])
    torch.testing.assert_close(out, cut, rtol=0, atol=1e-12)
    for norm in (whole, pieces):
        norm.settle(Collective())
    clips = tokens.view(3, 10, 4)
    mean, var = clips.mean(1).mean(0), clips.var(1, unbiased=True).mean(0)
    for norm in (whole, pieces):
        torch.testing.assert_close(norm.running_mean, 0.1 * mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * var, rtol=0, atol=1e-12)
    moved = whole.running_mean.clone()
    whole.settle(Collective())  # nothing was seen since
    assert torch.equal(whole.running_mean, moved)


# ------------------------------------------------------------------ the two orders of the resampling, its mean, its rank
def align_by_hand(align, other):
    """Tokens first, then channels; a product of two factors is multiplied out."""
    state = {n: v.numpy() for n, v in align.state_dict().items()}
    if "token.weight" in state:
        token, bias = state["token.weight"], state["token.bias"]
    else:
        token, bias = state["token_out.weight"] @ state["token_in.weight"], state["token_out.bias"]
    out = []
    for o in other.numpy():
        out.append((token @ o + bias[:, None]) @ state["channel.weight"].T + state["channel.bias"])
    return np.stack(out)


@pytest.mark.parametrize("rank", [None, 1, 3])
@pytest.mark.parametrize(("source", "target", "first"), [((6, 16), (9, 4), True), ((9, 4), (6, 16), False)])
def test_both_orders_and_the_mean_of_the_resampling(source, target, first, rank):
    torch.manual_seed(0)
    align = Align(source, target, rank).double().requires_grad_(False)
    assert align.channels_first is first
    other = torch.randn(3, *source, dtype=torch.float64)
    direct = align_by_hand(align, other)
    for order in (True, False):
        align.channels_first = order
        np.testing.assert_allclose(align(other).numpy(), direct, rtol=0, atol=1e-10)
    np.testing.assert_allclose(align.mean(other).numpy(), direct.mean(1), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("visual", "audio"), [((2304, 192), (4096, 96)), ((576, 384), (1024, 192)), ((144, 768), (256, 384)), ((36, 1536), (64, 768))]
)  # fmt: skip
def test_the_cheaper_order_at_full_size(visual, audio):
    with torch.device("meta"):
        assert Align(visual, audio).channels_first
        assert not Align(audio, visual).channels_first


def test_streamed_transposed_attention_is_the_dense_one_beyond_a_block():
    tokens = torch.randn(2, 600, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direct = (tokens @ tokens.mT).softmax(-1).mT @ tokens
    torch.testing.assert_close(transposed_attention(tokens), direct, rtol=0, atol=1e-10)


def test_temporal_attention_stays_within_its_clip():
    weights = arrays(TWO, "temporal")
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(4, N, C)), rng.normal(size=(4, M, D))
    given = spec(TWO, "temporal", frames=2)
    found = mixture_from_arrays("two clips", given, weights, x, other)["mixed"]
    alone = [mixture_from_arrays("one", given, weights, x[i : i + 2], other[i : i + 2])["mixed"] for i in (0, 2)]
    np.testing.assert_allclose(found, np.concatenate(alone), rtol=0, atol=1e-12)
    whole = mixture_from_arrays("one clip", spec(TWO, "temporal"), weights, x, other)["mixed"]
    assert np.abs(found - whole).max() > 1e-3


# ------------------------------------------------------------------ initial values (3.3 to 3.6)
def test_a_new_adapter_adds_exactly_nothing_and_its_latents_lie_between_zero_and_one():
    torch.manual_seed(0)
    shape = ExpertShape(C, R, G, 200, True, "latent")
    adapter = MoeAdapter("new", (M, D), N, shape, 2, 2).requires_grad_(False)
    x, other = torch.randn(4, N, C), torch.randn(4, M, D)
    assert torch.equal(adapter(x, other, Ctx(frames=2)), torch.zeros(4, N, C))
    for expert in adapter.experts:
        assert isinstance(expert, Expert)
        assert float(expert.output_gate) == float(expert.inner_gate) == 0
        assert 0 <= float(expert.latents.min()) < 0.01
        assert 0.99 < float(expert.latents.max()) <= 1
        assert float(expert.latents.mean()) == pytest.approx(0.5, abs=0.03)
        assert torch.equal(expert.norm_before.weight, torch.ones(C))
        assert torch.equal(expert.norm_after.bias, torch.zeros(C))
    bound = 1 / math.sqrt(2 * C)
    assert adapter.router is not None
    assert float(adapter.router.fc1.weight.abs().max()) == pytest.approx(bound, rel=0.01)
