"""Generated prompts against their equations (php.md 3.5) written plainly, and the maps between prompts and towers' tokens."""

import math

import numpy as np
import pytest
import torch

from avcl_core.prompts.generator import DynamicPrompts, as_bias, pooled_map
from avcl_core.walk import Ctx

erf = np.vectorize(math.erf)

WIDTH, HEADS, BLOCKS, DICTIONARY, ROWS = 12, 3, 2, 7, 4
VISUAL, AUDIO = 5, 3
"""Tokens of the two streams."""
PARITY = 1e-12
"""In double precision; 1e-7 is the tolerance to which the formulas were validated."""


# ------------------------------------------------------------------ the equations, sample by sample
def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def softmax(v):
    e = np.exp(v - v.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(v):
    return 0.5 * v * (1 + erf(v / np.sqrt(2)))


def norm_by_hand(rows, w, name):
    centred = rows - rows.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def layer_by_hand(rows, w, name, heads):
    """All tokens [S, C] through one pre-norm layer."""
    width = rows.shape[1]
    normed = norm_by_hand(rows, w, f"{name}.norm_attention")
    thirds = w[f"{name}.qkv.weight"].reshape(3, width, width)
    query, key, value = (normed @ third.T for third in thirds)
    size, found = width // heads, np.zeros_like(rows)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        found[:, part] = softmax(query[:, part] @ key[:, part].T / np.sqrt(size)) @ value[:, part]
    rows = rows + found @ w[f"{name}.out.weight"].T + w[f"{name}.out.bias"]
    hidden = gelu(norm_by_hand(rows, w, f"{name}.norm_mlp") @ w[f"{name}.fc1.weight"].T + w[f"{name}.fc1.bias"])
    return rows + hidden @ w[f"{name}.fc2.weight"].T + w[f"{name}.fc2.bias"]


def prompt_by_hand(embedded, w, block, heads, depth, rows):
    """One sample [L, C] → modulated prompt [rows, C]."""
    dictionary, width = w["dictionary"], embedded.shape[1]
    state = np.concatenate([embedded, dictionary])
    for number in range(depth):
        state = layer_by_hand(state, w, f"generators.{block}.layers.{number}", heads)
    logits = w[f"generators.{block}.mix.weight"] @ state[0] + w[f"generators.{block}.mix.bias"]
    prompt = softmax(logits.reshape(rows, len(dictionary))) @ dictionary
    key = w["modulator.key.weight"] @ embedded.mean(0) + w["modulator.key.bias"]
    gate = np.zeros(rows)
    for row in range(rows):
        query = w["modulator.query.weight"] @ prompt[row] + w["modulator.query.bias"]
        gate[row] = sigmoid(query @ key / np.sqrt(width))
    return gate[:, None] * prompt


def by_hand(model, embedded, heads, depth, rows):
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    blocks = len(model.generators)
    return np.stack(
        [
            np.stack([prompt_by_hand(sample, w, block, heads, depth, rows) for block in range(blocks)])
            for sample in embedded.double().numpy()
        ]
    )


# ------------------------------------------------------------------ what is compared
def made(depth=3, stir=0.3, seed=0, **more):
    """A model in double precision, away from its initial values, so that every part matters."""
    torch.manual_seed(seed)
    sizes = {"dictionary": DICTIONARY, "rows": ROWS, "depth": depth} | more
    model = DynamicPrompts(WIDTH, HEADS, BLOCKS, **sizes).double()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(stir * torch.randn_like(value))
    return model


def streams(rows=4, width=WIDTH, counts=(VISUAL, AUDIO), dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, count, width, generator=generator, dtype=dtype) for count in counts]


@pytest.mark.parametrize("mlp", [None, 5], ids=["mlp as wide", "narrow mlp"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prompts_equal_the_equations(depth, mlp):
    model, both = made(depth, mlp=mlp), streams()
    for found, embedded in zip(model(*both, Ctx()), both, strict=True):
        assert found.shape == (4, BLOCKS, ROWS, WIDTH)
        expected = by_hand(model, embedded, HEADS, depth, ROWS)
        assert np.abs(expected).max() > 0.1
        assert np.abs(found.detach().numpy() - expected).max() < PARITY


def test_prompts_at_real_size():
    torch.manual_seed(0)
    model, both = DynamicPrompts(768, 12, 2), streams(1, 768, (50, 32), torch.float32)
    with torch.no_grad():
        initial = model(*both, Ctx())
        for found in initial:  # prefixes start near zero
            assert found.shape == (1, 2, 32, 768)
            assert 6e-4 < float(found.std()) < 1e-3
        model, both = model.double(), [tokens.double() for tokens in both]
        model.dictionary.mul_(50)
        for exact, embedded in zip(model(*both, Ctx()), both, strict=True):
            assert np.abs(exact.numpy() - by_hand(model, embedded, 12, 3, 32)).max() < 1e-7


def test_parameters():
    with torch.device("meta"):
        model = DynamicPrompts(768, 12, 2)
    assert sum(p.numel() for p in model.parameters()) == 35_243_008
    assert model.dictionary.shape == (256, 768)
    assert not list(model.buffers())


def test_initial_dictionary():
    torch.manual_seed(0)
    dictionary = DynamicPrompts(64, 2, 1).dictionary
    assert float(dictionary.std()) == pytest.approx(0.02, rel=0.05)
    assert float(dictionary.mean()) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("depth", [1, 3])
def test_every_parameter_learns_from_either_stream(depth):
    """One generator set serves both; none of its tensors is left out by one of them."""
    model, both = made(depth), streams()
    for index in (0, 1):
        model.zero_grad(set_to_none=True)
        model(*both, Ctx())[index].sin().sum().backward()
        dead = [n for n, p in model.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-12]
        assert not dead


@pytest.mark.parametrize("depth", [1, 2])
def test_gradients_are_those_of_the_prompts(depth):
    model, both = made(depth), [tokens.requires_grad_() for tokens in streams(2)]
    names = [name for name, _ in model.named_parameters()]

    def prompts(visual, audio, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (visual, audio, Ctx()))

    assert torch.autograd.gradcheck(prompts, (*both, *model.parameters()), fast_mode=True)


# ------------------------------------------------------------------ rows and streams
def test_a_row_does_not_depend_on_the_others_of_its_batch():
    model, both = made(), streams()
    whole = model(*both, Ctx(frames=2))
    for row in range(4):
        alone = model(*(tokens[row : row + 1] for tokens in both), Ctx())
        for one, all_ in zip(alone, whole, strict=True):
            assert float((one[0] - all_[row]).abs().max()) < 1e-13


def test_permuted_frames_give_permuted_prompts():
    model, both = made(), streams()
    order = torch.tensor([2, 0, 3, 1])
    found = model(*(tokens[order] for tokens in both), Ctx(frames=4))
    for one, all_ in zip(found, model(*both, Ctx(frames=4)), strict=True):
        assert float((one - all_[order]).abs().max()) < 1e-13
        assert float((all_ - all_[order]).abs().max()) > 1e-3


def test_one_set_of_generators_serves_both_streams():
    model, (own, other) = made(), streams()
    visual, audio = model(own, other, Ctx())
    turned = model(other, own, Ctx())
    assert torch.allclose(turned[0], audio, rtol=0, atol=1e-13)
    assert torch.allclose(turned[1], visual, rtol=0, atol=1e-13)


def test_prompts_of_a_stream_depend_on_that_stream_alone():
    model, (own, other) = made(), streams()
    visual, audio = model(own, other, Ctx())
    moved = model(own, other + 1, Ctx())
    assert torch.equal(moved[0], visual)
    assert float((moved[1] - audio).abs().max()) > 1e-3


def test_tokens_after_the_first_have_no_order():
    """There is no positional encoding: only the first token is special."""
    model, (own, other) = made(), streams()
    found = model(own[:, [0, 4, 2, 1, 3]], other, Ctx())[0]
    first = model(own[:, [1, 0, 2, 3, 4]], other, Ctx())[0]
    visual = model(own, other, Ctx())[0]
    assert float((found - visual).abs().max()) < 1e-13
    assert float((first - visual).abs().max()) > 1e-3


def test_mixed_precision_stays_near():
    model, both = made(stir=0.05).float(), streams(dtype=torch.float32)
    expected = model(*both, Ctx())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(*both, Ctx())
    for one, exact in zip(found, expected, strict=True):
        assert float((one - exact).norm() / exact.norm()) < 0.05


# ------------------------------------------------------------------ pooled map
def test_pooled_map_pools_twice_and_joins_consecutive_tokens():
    tokens = streams(2, 3, (8 * 16,))[0]
    found = pooled_map(tokens, (8, 16), 12)
    assert found.shape == (2, 2, 12)
    for n in range(2):
        maps = tokens[n].reshape(8, 16, 3).numpy()
        for _ in range(2):
            rows, columns = maps.shape[0] // 2, maps.shape[1] // 2
            maps = np.array(
                [[maps[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].max((0, 1)) for c in range(columns)] for r in range(rows)]
            )
        listed = [maps[r, c] for r in range(2) for c in range(4)]
        for i in range(2):
            assert np.array_equal(found[n, i].numpy(), np.concatenate(listed[4 * i : 4 * i + 4]))


def test_pooled_map_at_real_size():
    found = pooled_map(torch.rand(1, 4096, 96), (64, 64), 768)
    assert found.shape == (1, 32, 768)


@pytest.mark.parametrize(
    ("shape", "grid", "width", "message"),
    [
        ((2, 60, 4), (8, 8), 16, "60 tokens are no 8 × 8 grid"),
        ((2, 36, 4), (6, 6), 16, "6 × 6 grid cannot be halved twice"),
        ((2, 24, 4), (4, 6), 16, "4 × 6 grid cannot be halved twice"),
        ((2, 64, 6), (8, 8), 16, "width 16 is no multiple of the tokens' width 6"),
        ((2, 64, 32), (8, 8), 16, "width 16 is no multiple of the tokens' width 32"),
        ((2, 64, 2), (8, 8), 16, r"4 pooled tokens cannot be joined by 8 \(width 16 over 2\)"),
    ],
)
def test_maps_that_cannot_be_pooled_are_refused(shape, grid, width, message):
    with pytest.raises(ValueError, match=message) as error:
        pooled_map(torch.zeros(shape), grid, width)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ audio use
@pytest.mark.parametrize(("n", "width", "filled"), [(32, 192, 24), (16, 384, 96)])
def test_place_of_prompt_numbers_on_the_grid(n, width, filled):
    """At n = 32 grid row r holds prompt row r, at n = 16 prompt rows 2r and 2r + 1 (php.md 3.5)."""
    prompts = torch.arange(2 * 32 * 768, dtype=torch.float64).reshape(2, 32, 768) + 1
    bias = as_bias(prompts, (n, n), width)
    assert bias.shape == (2, n * n, width)
    assert not bias[..., filled:].any()
    maps = bias[..., :filled].reshape(2, n, n, filled)
    for r in range(n):
        rows = prompts[:, r] if n == 32 else torch.cat((prompts[:, 2 * r], prompts[:, 2 * r + 1]), 1)
        for c in range(n):
            assert torch.equal(maps[:, r, c], rows[:, c * filled : (c + 1) * filled])


def test_a_prompt_may_fill_all_channels():
    prompts = torch.rand(3, 4, 8)
    assert torch.equal(as_bias(prompts, (4, 4), 2).flatten(), prompts.flatten())


@pytest.mark.parametrize(
    ("rows", "channels", "grid", "width", "message"),
    [
        (32, 768, (32, 16), 192, "32 × 16 grid of 512 tokens is not square"),
        (32, 768, (20, 20), 192, "32 rows of 768 channels are 24576 numbers, which 400 tokens do not divide"),
        (2, 8, (8, 8), 192, "2 rows of 8 channels are 16 numbers, which 64 tokens do not divide"),
        (32, 768, (8, 8), 383, "over 64 tokens fill 384 channels, but the tokens have 383"),
    ],
)
def test_prompts_that_do_not_fit_the_grid_are_refused(rows, channels, grid, width, message):
    with pytest.raises(ValueError, match=message) as error:
        as_bias(torch.zeros(1, rows, channels), grid, width)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ geometry
def test_tiny_geometry():
    """php.md section 10: width 64, dictionary 16, 4 + 4 rows, one layer; bias of block 1 on an 8 × 8 grid of width 32."""
    torch.manual_seed(0)
    model = DynamicPrompts(64, 2, 1, dictionary=16, rows=8, depth=1).double()
    visual = streams(2, 64, (17,))[0]
    audio = pooled_map(streams(2, 16, (256,))[0], (16, 16), 64)
    assert audio.shape == (2, 4, 64)
    found = model(visual, audio, Ctx())
    for one, embedded in zip(found, (visual, audio), strict=True):
        assert np.abs(one.detach().numpy() - by_hand(model, embedded, 2, 1, 8)).max() < PARITY
    bias = as_bias(found[1][:, 0], (8, 8), 32)
    assert bias.shape == (2, 64, 32)
    assert torch.equal(bias[..., :8].reshape(2, 8, 64), found[1][:, 0])
    assert bool(bias[..., :8].any(-1).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "width 12 cannot be split into 5 heads"),
        ({"rows": 5}, "5 rows cannot be halved into keys and values"),
        ({"rows": 0}, "rows is 0"),
        ({"blocks": 0}, "blocks is 0"),
        ({"depth": 0}, "depth is 0"),
        ({"dictionary": 0}, "dictionary is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"mlp": 0}, "mlp is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"generated prompts: {message}"):
        DynamicPrompts(**({"width": WIDTH, "heads": HEADS, "blocks": 2} | changes))


def test_inputs_of_another_width_are_refused():
    model, (own, other) = made(), streams()
    with pytest.raises(ValueError, match=r"prompts of width 12: visual tokens are \[4, 5, 11\]"):
        model(own[..., :11], other, Ctx())
    with pytest.raises(ValueError, match=r"prompts of width 12: audio tokens are \[4, 3, 11\]"):
        model(own, other[..., :11], Ctx())
