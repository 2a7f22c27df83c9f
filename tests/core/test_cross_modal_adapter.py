"""PHP's shared cross-modal adapter against its equations (php.md 3.4) written with loops, and what it must leave alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from avcl_core.adapters.cross_modal import CrossModalAdapter, CrossModalOptions
from avcl_core.trace import Trace
from avcl_core.walk import Ctx

AUDIO, VISUAL = (4096, 96), (50, 768)
SMALL = CrossModalOptions(latents=3, reduction=4, groups=2)
LONG, WIDE = ((20, 8), (5, 24)), ((5, 24), (20, 8))
"""Many narrow own tokens, and few wide ones: the two sides of an adapter, which compute in different orders."""
FRAMES = 2


# ------------------------------------------------------------------ the equations, sample by sample
def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def softmax(v):
    e = np.exp(v - v.max())
    return e / e.sum()


def relu(v):
    return np.maximum(v, 0)


def norm_by_hand(rows, weight, bias):
    centred = rows - rows.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def grouped_by_hand(rows, weight, groups):
    out = np.zeros((len(rows), len(weight)))
    for o in range(len(weight)):
        block = o // (len(weight) // groups)
        first = block * weight.shape[1]
        for i in range(weight.shape[1]):
            out[:, o] += weight[o, i] * rows[:, first + i]
    return out


def batch_norm_by_hand(all_rows, w, name, training):
    """``all_rows`` [B, N, K]; in training the statistics are those of a clip of FRAMES rows."""
    out = np.empty_like(all_rows)
    for start in range(0, len(all_rows), FRAMES):
        clip = all_rows[start : start + FRAMES]
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        if training:
            mean, var = clip.mean((0, 1)), clip.var((0, 1))
        out[start : start + FRAMES] = (clip - mean) / np.sqrt(var + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]
    return out


def fused_by_hand(x, s, w, options):
    """Steps 1 to 3 for one sample: x [L, D], s [L', D']."""

    def linear(name, v):
        return v @ w[f"fusion.{name}.weight"].T + w[f"fusion.{name}.bias"]

    mixed = w["fusion.align.token.weight"] @ s + w["fusion.align.token.bias"][:, None] * np.ones(s.shape[1])
    aligned = linear("align.channel", mixed)
    latents = np.stack([z + softmax(aligned @ z) @ aligned for z in w["fusion.latents"]])
    x1 = np.stack([v + w["fusion.gate"] * (softmax(latents @ v) @ latents) for v in x])
    context = aligned.mean(0)
    u = np.mean([relu(linear("channel_context", context)) * relu(linear("channel_tokens", v)) for v in x1], 0)
    channel = sigmoid(linear("channel_up", relu(linear("channel_down", u))))
    seen = relu(linear("spatial_tokens", x1 * (1 + channel))) * relu(linear("spatial_context", context))
    spatial = sigmoid(linear("spatial_out", seen))
    temporal = sigmoid(linear("temporal", context))
    a, b, g = options.alpha, options.beta, options.gamma
    return x1 * (a * channel + b * spatial + g * temporal + 1 - a)


def residual_by_hand(adapter, own, other):
    w = {name: value.double().numpy() for name, value in adapter.state_dict().items()}
    options, own, other = adapter.options, own.double().numpy(), other.double().numpy()
    rows = (
        np.stack([fused_by_hand(x, s, w, options) for x, s in zip(own, other, strict=True)]) if options.cross else own
    )
    if options.pre_norm:
        shift = 0 if options.batch_norm else w["bottleneck.norm_before.bias"]  # a batch norm would take it away
        rows = norm_by_hand(rows, w["bottleneck.norm_before.weight"], shift)
    rows = np.stack([grouped_by_hand(x, w["bottleneck.down.weight"], options.groups) for x in rows])
    if options.batch_norm:
        rows = batch_norm_by_hand(rows, w, "bottleneck.norm_down", adapter.training)
    rows = np.stack([grouped_by_hand(relu(x), w["bottleneck.up.weight"], options.groups) for x in rows])
    if options.batch_norm:
        rows = batch_norm_by_hand(rows, w, "bottleneck.norm_up", adapter.training)
    if options.post_norm:
        rows = norm_by_hand(rows, w["bottleneck.norm_after.weight"], w["bottleneck.norm_after.bias"])
    return w["bottleneck.gate"] * rows


# ------------------------------------------------------------------ what is compared
def made(sides=LONG, options=SMALL, seed=0, gates=0.1):
    """An adapter in double precision, away from its initial norms, with open gates."""
    torch.manual_seed(seed)
    adapter = CrossModalAdapter(*sides, options, "audio 0 1 mlp").double()
    with torch.no_grad():
        for name, value in [*adapter.named_parameters(), *adapter.named_buffers()]:
            if "norm" in name:
                value.add_(0.3 * torch.rand_like(value))
            if name.endswith("gate"):
                value.fill_(gates)
    return adapter


def tokens(sides=LONG, rows=2 * FRAMES, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, *side, generator=generator, dtype=dtype) for side in sides]


def ctx(**more):
    return Ctx(frames=FRAMES, **more)


def apart(one, other):
    """Largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(one) - np.asarray(other)).max() / np.abs(np.asarray(other)).max())


OPTIONS = {
    "default": SMALL,
    "no norms": replace(SMALL, pre_norm=False, post_norm=False),
    "batch norms": replace(SMALL, batch_norm=True),
    "batch norms alone": replace(SMALL, batch_norm=True, pre_norm=False, post_norm=False),
    "bottleneck alone": replace(SMALL, cross=False),
    "one group, other weights": replace(SMALL, groups=1, alpha=0.7, beta=0.6, gamma=0.5),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("sides", [LONG, WIDE], ids=["long", "wide"])
@pytest.mark.parametrize("name", OPTIONS)
def test_residual_equals_the_equations(name, sides, training):
    adapter, (own, other) = made(sides, OPTIONS[name]).train(training), tokens(sides)
    found = adapter(own, other, ctx())
    assert found.shape == own.shape
    assert apart(found.detach(), residual_by_hand(adapter, own, other)) < 1e-12


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma", "latents", "reduction", "groups"])
def test_every_weight_and_size_counts(name):
    """So that agreement with the equations is no accident of a small weight."""
    other_value = {"latents": 5, "reduction": 2, "groups": 1}.get(name, 0.9)
    own, other = tokens()
    with torch.no_grad():
        one, two = (made(options=o)(own, other, ctx()) for o in (SMALL, replace(SMALL, **{name: other_value})))
    assert float((one - two).abs().max()) > 1e-4


@pytest.mark.parametrize("sides", [(AUDIO, VISUAL), (VISUAL, AUDIO)], ids=["audio", "visual"])
def test_single_precision_at_real_size(sides):
    """The tolerance to which the formulas were validated, with values of the size that towers give."""
    options = CrossModalOptions()
    adapter, (own, other) = made(sides, options).float(), tokens(sides, 1, dtype=torch.float32)
    with torch.no_grad():
        found = adapter(own, other, Ctx())
    expected = residual_by_hand(adapter, own, other)
    assert float(np.linalg.norm(found.numpy() - expected) / np.linalg.norm(expected)) < 6e-6


@pytest.mark.parametrize(
    ("own", "other", "count"), [(AUDIO, VISUAL, 324_772), (VISUAL, AUDIO, 2_744_630)], ids=["audio", "visual"]
)
def test_parameters_of_one(own, other, count):
    with torch.device("meta"):
        adapter = CrossModalAdapter(own, other, CrossModalOptions(), "it")
    assert sum(p.numel() for p in adapter.parameters()) == count
    assert not list(adapter.buffers())


def test_parameters_of_a_full_model():
    with torch.device("meta"):
        both = [CrossModalAdapter(*sides, CrossModalOptions(), "it") for sides in ((AUDIO, VISUAL), (VISUAL, AUDIO))]
    assert 4 * sum(p.numel() for adapter in both for p in adapter.parameters()) == 12_277_608


def test_initial_values():
    torch.manual_seed(0)
    adapter = CrossModalAdapter((16, 64), (5, 8), CrossModalOptions(), "it")
    state = {name: p.detach() for name, p in adapter.named_parameters()}
    assert {name: p.shape for name, p in state.items() if name.endswith("gate")} == {
        "fusion.gate": torch.Size([]),
        "bottleneck.gate": torch.Size([]),
    }
    assert float(state["fusion.gate"]) == float(state["bottleneck.gate"]) == 0
    latents = state["fusion.latents"]
    assert latents.shape == (32, 64)
    assert 0 <= float(latents.min()) < 0.01
    assert 0.99 < float(latents.max()) < 1


# ------------------------------------------------------------------ gates
@pytest.mark.parametrize("sides", [LONG, WIDE], ids=["long", "wide"])
@pytest.mark.parametrize("name", ["default", "no norms", "batch norms"])
def test_a_new_adapter_adds_exactly_nothing(name, sides):
    adapter = CrossModalAdapter(*sides, OPTIONS[name], "it")
    own, other = tokens(sides, dtype=torch.float32)
    found = adapter(own, other, ctx())
    assert torch.equal(own + found, own)
    found.square().sum().backward()
    found = adapter(own, other, ctx())
    found.sum().backward()
    assert float(adapter.bottleneck.gate.grad.abs()) > 0  # from where it leaves zero


def test_with_a_closed_inner_gate_latent_tokens_are_not_read():
    own, other = tokens()
    for gate, changes in ((0.0, False), (0.1, True)):
        adapter = made()
        with torch.no_grad():
            adapter.fusion.gate.fill_(gate)
            before = adapter(own, other, ctx())
            adapter.fusion.latents.add_(1)
            after = adapter(own, other, ctx())
            moved = adapter(own, other + 1, ctx())
        assert torch.equal(before, after) is not changes
        assert not torch.equal(after, moved)  # the gates of step 3 read the other modality all the same


@pytest.mark.parametrize("sides", [LONG, WIDE], ids=["long", "wide"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_parameter_learns(name, sides):
    adapter, (own, other) = made(sides, OPTIONS[name]), tokens(sides)
    weights = torch.randn(own.shape, generator=torch.Generator().manual_seed(5), dtype=own.dtype)
    (adapter(own, other, ctx()) * weights).sum().backward()
    still = [name for name, p in adapter.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-10]
    assert not still


def test_both_streams_receive_gradients():
    own, other = (value.requires_grad_() for value in tokens())
    made()(own, other, ctx()).square().sum().backward()
    for value in (own, other):
        assert float(value.grad.flatten(1).abs().amax(1).min()) > 1e-6


@pytest.mark.parametrize("sides", [LONG, WIDE], ids=["long", "wide"])
def test_gradients_are_those_of_the_residual(sides):
    adapter, (own, other) = made(sides), tokens(sides, FRAMES)
    own, other = own.requires_grad_(), other.requires_grad_()
    names = [name for name, _ in adapter.named_parameters()]

    def residual(own, other, *values):
        return torch.func.functional_call(adapter, dict(zip(names, values, strict=True)), (own, other, ctx()))

    assert torch.autograd.gradcheck(residual, (own, other, *adapter.parameters()), fast_mode=True)


# ------------------------------------------------------------------ rows
@pytest.mark.parametrize("name", ["default", "batch norms"])
def test_a_clip_does_not_depend_on_the_others_of_its_batch(name):
    adapter, (own, other) = made(options=OPTIONS[name]), tokens(rows=3 * FRAMES)
    whole = adapter(own, other, ctx())
    for start in range(0, len(own), FRAMES):
        clip = slice(start, start + FRAMES)
        assert float((adapter(own[clip], other[clip], ctx()) - whole[clip]).abs().max()) < 1e-13


@pytest.mark.parametrize("name", ["default", "batch norms"])
def test_permuted_frames_give_permuted_residuals(name):
    adapter, (own, other) = made(options=OPTIONS[name]), tokens(rows=4)
    order = torch.tensor([2, 0, 3, 1])
    whole = replace(ctx(), frames=4)
    found = adapter(own[order], other[order], whole)
    assert float((found - adapter(own, other, whole)[order]).abs().max()) < 1e-13
    # Pairing matters: the frame of the other stream is not any frame.
    assert float((adapter(own, other[order], whole) - adapter(own, other, whole)).abs().max()) > 1e-6


def test_without_batch_norms_frames_stand_alone():
    adapter, (own, other) = made(), tokens(rows=3)
    found = [adapter(own, other, Ctx(frames=frames)) for frames in (1, 2, 3)]
    assert all(torch.equal(found[0], each) for each in found)


def test_evaluation_changes_no_buffer():
    adapter, (own, other) = made(options=OPTIONS["batch norms"]).eval(), tokens()
    before = {name: value.clone() for name, value in adapter.named_buffers()}
    assert len(before) == 4
    adapter(own, other, ctx())
    assert all(torch.equal(value, before[name]) for name, value in adapter.named_buffers())


# ------------------------------------------------------------------ what it reads, what it tells
def test_reads_what_leaves_the_step():
    assert CrossModalAdapter.reads == "exit"


def test_the_bottleneck_alone_reads_no_other_stream_and_has_nothing_for_it():
    adapter, (own, other) = made(options=OPTIONS["bottleneck alone"]), tokens()
    assert all(name.startswith("bottleneck.") for name, _ in adapter.named_parameters())
    assert torch.equal(adapter(own, None, ctx()), adapter(own, other, ctx()))


def test_what_a_trace_hears():
    adapter, (own, other) = made(), tokens()
    with torch.no_grad():
        adapter.fusion.gate.fill_(0.25)
    trace = Trace()
    told = adapter(own, other, ctx(trace=trace))
    assert torch.equal(told, adapter(own, other, ctx()))
    observed = trace.observed["audio 0 1 mlp"]
    ratio = [float(told[i].norm() / own[i].norm()) for i in range(len(own))]
    assert observed["residual"].tolist() == pytest.approx(ratio, rel=1e-12)
    assert not observed["residual"].requires_grad
    entropy = observed["attention_entropy"]
    assert entropy.shape == (len(own),)
    assert bool(((entropy >= 0) & (entropy <= 1)).all())
    constants = {name: value.tolist() for name, value in trace.constants["audio 0 1 mlp"].items()}
    assert constants == {"output_gates": [0.1], "inner_gates": [0.25]}


def test_what_a_trace_hears_of_the_bottleneck_alone():
    adapter, (own, _) = made(options=OPTIONS["bottleneck alone"]), tokens()
    trace = Trace()
    adapter(own, None, ctx(trace=trace))
    assert list(trace.observed["audio 0 1 mlp"]) == ["residual"]
    assert list(trace.constants["audio 0 1 mlp"]) == ["output_gates"]


def test_mixed_precision_stays_near_and_finite():
    adapter, (own, other) = made(WIDE).float(), tokens(WIDE, dtype=torch.float32)
    with torch.no_grad():
        expected = adapter(own, other, ctx())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = adapter(own, other, ctx())
    assert bool(found.isfinite().all())
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_mixed_precision_leaves_unscaled_scores_alone():
    """Scores of a thousand that differ by one: rounded to half precision, they would make another softmax."""
    fusion = made(WIDE).float().fusion
    own = torch.zeros(1, 5, 24)
    own[..., 0], own[..., 1] = 1000, torch.linspace(-1, 1, 5)
    latents = torch.zeros(1, 2, 24)
    latents[..., 0], latents[:, 0, 1], latents[:, 1, 1] = 1, 1, -1
    with torch.no_grad():
        expected = fusion._read(own, latents)[..., 1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = fusion._read(own, latents)[..., 1]
    torch.testing.assert_close(expected[0], 0.1 * torch.tanh(own[0, :, 1]), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=1e-3)


# ------------------------------------------------------------------ geometry
def test_tiny_geometry():
    """php.md section 10: block 0 of the small towers."""
    options = CrossModalOptions(latents=4, reduction=4)
    for sides in (((256, 16), (17, 64)), ((17, 64), (256, 16))):
        adapter, (own, other) = made(sides, options), tokens(sides)
        found = adapter(own, other, ctx())
        assert apart(found.detach(), residual_by_hand(adapter, own, other)) < 1e-12


@pytest.mark.parametrize(
    ("own", "other", "changes", "message"),
    [
        ((4, 12), (3, 8), {"reduction": 8}, "width 12 cannot be reduced by 8 in 2 groups"),
        ((4, 16), (3, 8), {"groups": 3}, "width 16 cannot be reduced by 8 in 3 groups"),
        ((4, 8), (3, 8), {}, "width 8 cannot be reduced by 8 in 2 groups"),
        ((4, 9), (3, 8), {"reduction": 3, "groups": 3}, "width 9 is odd"),
        ((0, 16), (3, 8), {}, "own tokens is 0"),
        ((4, 16), (0, 8), {}, "other tokens is 0"),
        ((4, 16), (3, 8), {"latents": 0}, "latents is 0"),
        ((4, 16), (3, 8), {"reduction": 0}, "reduction is 0"),
        ((4, 16), (3, 8), {"groups": -2}, "groups is -2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(own, other, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        CrossModalAdapter(own, other, replace(CrossModalOptions(), **changes), "visual 0 0 attn")
    assert "adapter visual 0 0 attn" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_odd_width_suits_the_bottleneck_alone():
    options = CrossModalOptions(reduction=3, groups=3, cross=False)
    assert CrossModalAdapter((4, 9), (3, 8), options, "it")(torch.zeros(1, 4, 9), None, Ctx()).shape == (1, 4, 9)


def test_tokens_that_do_not_fit_are_refused():
    adapter, (own, other) = made(options=OPTIONS["batch norms"]), tokens()
    for one, two, message in (
        (own[:, :19], other, r"built for 20 own tokens of width 8, found \[4, 19, 8\]"),
        (own, other[..., :5], r"built for 5 other tokens of width 24, found \[4, 5, 5\]"),
        (own, None, "reads two streams"),
        (own[:3], other[:3], "3 rows are not whole clips of 2 frames"),
    ):
        with pytest.raises(ValueError, match=f"adapter audio 0 1 mlp.*{message}"):
            adapter(one, two, ctx())
