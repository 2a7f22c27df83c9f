"""One MoE adapter from named arrays: printed values, what a spec may say, and what is refused."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from avcl_core.moe import mixture_from_arrays
from avcl_core.moe.router import balance

_spec = importlib.util.spec_from_file_location("moe_oracle", Path(__file__).with_name("moe_oracle.py"))
oracle = importlib.util.module_from_spec(_spec)
sys.modules["moe_oracle"] = oracle  # its dataclass looks itself up
_spec.loader.exec_module(oracle)
C, D, LATENTS, M, N, OTHER, X = oracle.C, oracle.D, oracle.LATENTS, oracle.M, oracle.N, oracle.OTHER, oracle.X
arrays, spec = oracle.arrays, oracle.spec
PRINTED = 1e-5  # six decimals, and one unit of the last for rounding


def computed(kinds, attention="none", **more):
    weights = arrays(kinds, attention, more.get("output_gate", True), more.get("batch_norm", False))
    return mixture_from_arrays("golden", spec(kinds, attention, **more), weights, X, OTHER)


# ------------------------------------------------------------------ printed values
TWO, FOUR = ("cross", "uni"), ("cross", "cross", "uni", "uni")
GATES = [[0.326322, 0.673678], [0.329936, 0.670064]]
GOLDEN = {
    "none": (
        TWO, GATES,
        [0.658282, 0.829603, 0.715695, 0.371688, 0.429190, -0.509781, -1.044355, -0.958337],
        [0.878014, 0.018987, -0.626560, -0.697129, -0.242407, -0.105263, 0.207864, 0.490653],
        1.741248, 35.754898,
    ),
    "latent": (
        FOUR, [[0.104335, 0.215394, 0.341555, 0.338716], [0.119124, 0.241927, 0.344107, 0.294842]],
        [0.722317, 0.571949, 0.212485, -0.174451, -0.248842, -0.491607, -0.429560, -0.097946],
        [0.660059, 0.501260, 0.152612, -0.209754, -0.412464, -0.477674, -0.262221, 0.105557],
        -1.013142, 22.606439,
    ),
    "temporal": (
        TWO, GATES,
        [-0.616214, 0.228354, 0.881910, 0.955939, 0.676338, 0.067320, -0.671855, -1.135551],
        [0.256635, -0.646140, -0.715715, 0.076284, 0.998652, 0.294609, -0.118117, -0.105323],
        2.254305, 37.891721,
    ),
    "dense": (
        TWO, GATES,
        [0.638781, 0.826206, 0.726382, 0.386298, 0.435480, -0.504397, -1.045937, -0.968375],
        [0.766269, -0.073180, -0.671281, -0.693966, -0.209440, -0.013889, 0.285819, 0.501200],
        1.757392, 35.783631,
    ),
}  # fmt: skip
ALIGNED = [0.472913, -0.488346, -0.488495, 0.771008, 1.247584, 0.238713, -0.362646, 0.481428]


@pytest.mark.parametrize("attention", GOLDEN)
def test_printed_values(attention):
    kinds, gates, first, last, total, absolute = GOLDEN[attention]
    found = computed(kinds, attention)
    assert found["mixed"].dtype == found["gates"].dtype == np.float64
    np.testing.assert_allclose(found["aligned_other"][0, 0], ALIGNED, rtol=0, atol=PRINTED)
    np.testing.assert_allclose(found["gates"], gates, rtol=0, atol=PRINTED)
    np.testing.assert_allclose(found["mixed"][0, 0], first, rtol=0, atol=PRINTED)
    np.testing.assert_allclose(found["mixed"][1, 3], last, rtol=0, atol=PRINTED)
    assert found["mixed"].sum() == pytest.approx(total, abs=PRINTED)
    assert np.abs(found["mixed"]).sum() == pytest.approx(absolute, abs=PRINTED)


def test_printed_load_balance():
    for kinds, attention, ours, released in (
        (TWO, "none", 0.062871303, 1.512036967),
        (FOUR, "latent", 0.085521076, 5.887261750),
    ):
        found = computed(kinds, attention)
        assert found["load_balancing"] == pytest.approx(released, abs=1e-8)
        gates = torch.from_numpy(found["gates"])
        assert float(balance(gates)) == pytest.approx(ours, abs=1e-8)


@pytest.mark.parametrize("count", [2, 4])
def test_load_balance_is_zero_for_equal_weights_and_its_gradient_the_released_one_over_the_number_of_experts(count):
    assert float(balance(torch.full((3, count), 1 / count, dtype=torch.float64))) == pytest.approx(0, abs=1e-15)
    logits = torch.randn(5, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (ours,) = torch.autograd.grad(balance(logits.softmax(-1)), logits)
    (released,) = torch.autograd.grad(-logits.softmax(-1).mean(0).log().sum(), logits)
    assert float(released.abs().max()) > 0.01
    torch.testing.assert_close(count * ours, released, rtol=0, atol=1e-14)


def test_load_balance_of_several_clips_is_one_value_each_over_their_own_rows():
    gates = torch.rand(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    found = balance(gates)
    assert found.shape == (3,)
    for clip in range(3):
        mean = gates[clip].mean(0)
        assert float(found[clip]) == pytest.approx(-float(mean.log().mean()) - math.log(2), abs=1e-14)


# ------------------------------------------------------------------ what is refused
def changed(**more):
    found = arrays(TWO)
    found.update(more)
    return {k: v for k, v in found.items() if v is not None}


@pytest.mark.parametrize(
    ("given", "weights", "message"),
    [
        (spec(TWO), changed(router_fc2_weight=None), "array 'router_fc2_weight' is missing"),
        (spec(TWO), changed(cross0_latent_tokens=None), "array 'cross0_latent_tokens' is missing"),
        (spec(TWO), changed(uni0_down_weight=None), "array 'uni0_down_weight' is missing"),
        (spec(TWO), changed(uni0_output_gate=None), "array 'uni0_output_gate' is missing"),
        (spec(TWO, output_gate=False), arrays(TWO), "array 'cross0_output_gate' has no place"),
        (spec(TWO), changed(uni1_ln_in_bias=np.zeros(C)), "array 'uni1_ln_in_bias' has no place"),
        (spec(TWO), changed(uni0_bn1_weight=np.ones(4)), "array 'uni0_bn1_weight' has no place"),
        (spec(TWO), changed(align_tokens=np.ones(4)), "array 'align_tokens' has no place .*align_token"),
        (spec(TWO), changed(align_token_weight=np.zeros((M, N))), r"'align_token_weight' has shape \(6, 4\), expected \(4, 6\)"),
        (spec(TWO), changed(uni0_up_weight=np.zeros((C, C))), r"'uni0_up_weight' has shape \(8, 8\), expected \(8, 2\)"),
        (spec(TWO), changed(cross0_down_weight=np.zeros((3, 4))), "'cross0_down_weight' has 3 rows, which does not divide"),
        (spec(TWO), changed(uni0_ln_in_bias=["a"] * C), "array 'uni0_ln_in_bias' is no array of real numbers"),
        (spec(TWO, batch_norm=True), arrays(TWO), "array 'cross0_bn1_weight' is missing"),
        (spec(TWO, "latent tokens"), arrays(TWO), "array 'uni0_latent_tokens' is missing"),
        (spec(TWO, "temporal"), arrays(TWO), "array 'uni0_in_proj_weight' is missing"),
        (spec(TWO, "self, across the batch"), arrays(TWO), "'self, across the batch', which is not supported"),
        (spec(TWO, "self"), arrays(TWO), "'self', which is not supported"),
        (spec(TWO, groups=3), arrays(TWO), r"spec\['groups'\] is 3"),
        (spec(TWO, groups=0), arrays(TWO), r"spec\['groups'\] is 0"),
        (spec(TWO, frames=3), arrays(TWO), r"spec\['frames'\] is 3, which does not divide the 2 rows"),
        (spec(TWO, uni_activation="gelu"), arrays(TWO), r"spec\['uni_activation'\] is 'gelu'"),
        (spec(TWO, batchnorm=True), arrays(TWO), r"spec\['batchnorm'\] is unknown; did you mean 'batch_norm'"),
        (spec(("uni", "cross")), arrays(TWO), "cross-modal experts first"),
        (spec(("cross", "self")), arrays(TWO), "expected a list of 'cross' and 'uni'"),
        (spec(()), arrays(TWO), "expected a list of 'cross' and 'uni'"),
    ],
)  # fmt: skip
def test_refusals_name_the_mixture_and_what_is_wrong(given, weights, message):
    with pytest.raises(ValueError, match=f"mixture 'audio 0': .*{message}") as error:
        mixture_from_arrays("audio 0", given, weights, X, OTHER)
    assert "\n" not in str(error.value)


def test_inputs_that_do_not_fit_are_refused():
    for x, other in ((X[0], OTHER), (X, OTHER[:1]), (X[:, :3], OTHER), (X, OTHER[:, :, :3])):
        with pytest.raises(ValueError, match=r"mixture 'it': .*expected"):
            mixture_from_arrays("it", spec(TWO), arrays(TWO), x, other)


def test_spellings_and_defaults_mean_the_same():
    plain = computed(TWO, "none")["mixed"]
    shortest = {"experts": ["cross", "uni"], "groups": 2}
    for given in (shortest, shortest | {"uni_attention": None}, shortest | {"uni_attention": "None"}):
        assert np.array_equal(mixture_from_arrays("other name", given, arrays(TWO), X, OTHER)["mixed"], plain)
    for attention, spellings in {
        "latent": ("latent tokens", "latent_tokens", "Latent"),
        "temporal": ("temporal", "self, over frames"),
        "dense": ("self, transposed", "dense", "self transposed"),
    }.items():
        expected = computed(TWO, attention)["mixed"]
        assert np.abs(expected - plain).max() > 1e-3
        for spelling in spellings:
            found = mixture_from_arrays("it", spec(TWO, spelling), arrays(TWO, attention), X, OTHER)
            assert np.array_equal(found["mixed"], expected)


def test_gates_may_come_as_vectors_of_one_and_an_unread_latent_may_be_given():
    weights = arrays(TWO) | {"uni0_latent_tokens": np.ones((LATENTS, C)), "uni0_attention_gate": np.ones(())}
    weights["cross0_output_gate"] = np.array([0.8])
    found = mixture_from_arrays("it", spec(TWO), weights, X, OTHER)
    assert np.array_equal(found["mixed"], computed(TWO)["mixed"])


def test_nothing_is_drawn_and_nothing_given_is_changed():
    weights, state = arrays(TWO), torch.get_rng_state()
    kept = {name: value.copy() for name, value in weights.items()}
    found = mixture_from_arrays("it", spec(TWO), weights, X, OTHER)
    found["mixed"] += 1
    found["aligned_other"] += 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(kept[name], value) for name, value in weights.items())


def test_importing_the_package_imports_no_torch():
    code = "import sys, avcl_core.moe; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
