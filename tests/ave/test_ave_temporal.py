"""Temporal attention and the CMBS head equal their equations (tasks.md 1.4), written out here second by second in float64."""

import math

import numpy as np
import pytest
import torch

from avcl_ave.cmbs import EventHead, WeakEventHead
from avcl_ave.temporal import TemporalAttention
from avcl_core.batch import Batch
from avcl_core.errors import ConfigError
from avcl_core.features import Features, FeatureSpec, TokenShape
from avcl_core.heads.temporal import Lstm, TemporalContext

BATCH = Batch("ave", (), {})


def spec(visual: int, audio: int) -> FeatureSpec:
    widths = {"visual": visual, "audio": audio}
    return FeatureSpec({n: TokenShape((2, 2), width) for n, width in widths.items()}, dict.fromkeys(widths, ()))


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---------------------------------------------------------------- the equations, on arrays without a batch dimension
def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(p, name, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def lstm(p, name, x):
    """[T, inputs] → [T, 2 hidden]: gates in the order i, f, g, o, forwards and backwards in time."""
    joined = []
    for end, seconds in (("l0", range(len(x))), ("l0_reverse", reversed(range(len(x))))):
        w, u = p[f"{name}.weight_ih_{end}"], p[f"{name}.weight_hh_{end}"]
        bias = p[f"{name}.bias_ih_{end}"] + p[f"{name}.bias_hh_{end}"]
        hidden = u.shape[1]
        h, c, states = np.zeros(hidden), np.zeros(hidden), {}
        for t in seconds:
            i, f, g, o = np.split(w @ x[t] + u @ h + bias, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            states[t] = h
        joined.append(np.stack([states[t] for t in range(len(x))]))
    return np.concatenate(joined, -1)


def attend(p, name, query, memory):
    """Four-head attention, one head and one query at a time."""
    width = query.shape[-1]
    w, b = np.split(p[f"{name}.in_proj_weight"], 3), np.split(p[f"{name}.in_proj_bias"], 3)
    q, k, v = (x @ w[j].T + b[j] for j, x in enumerate((query, memory, memory)))
    heads = []
    for part in np.split(np.arange(width), 4):
        rows = []
        for one in q:
            weights = np.exp([one[part] @ key[part] / math.sqrt(len(part)) for key in k])
            rows.append((weights / weights.sum()) @ v[:, part])
        heads.append(np.stack(rows))
    return linear(p, f"{name}.out_proj", np.concatenate(heads, -1))


def encode(p, name, x):
    x = linear(p, f"{name}.0", x)
    for layer in (f"{name}.1", f"{name}.2"):
        x = norm(p, f"{layer}.norm1", x + attend(p, f"{layer}.self_attn", x, x))
        x = norm(
            p, f"{layer}.norm2", x + linear(p, f"{layer}.linear2", np.maximum(linear(p, f"{layer}.linear1", x), 0))
        )
    return x


def decode(p, name, query, code):
    query = linear(p, f"{name}.query", query)
    attended = attend(p, f"{name}.attention", query, np.concatenate([code, query], 0))
    query = norm(p, f"{name}.attended", query + attended)
    fed = linear(p, f"{name}.feed_forward.3", np.maximum(linear(p, f"{name}.feed_forward.0", query), 0))
    return norm(p, f"{name}.fed", query + fed)


def temporal(p, visual, audio, at=""):
    v = np.maximum(linear(p, f"{at}visual_input.0", visual), 0)
    a = linear(p, f"{at}audio_input", audio)
    v, a = lstm(p, f"{at}context.visual_lstm", v), lstm(p, f"{at}context.audio_lstm", a)
    k_v, k_a = encode(p, f"{at}context.visual_encoder", v), encode(p, f"{at}context.audio_encoder", a)
    v, a = decode(p, f"{at}visual_decoder", v, k_a), decode(p, f"{at}audio_decoder", a, k_v)
    g_v, g_a = sigmoid(linear(p, f"{at}context.visual_gate", k_v)), sigmoid(linear(p, f"{at}context.audio_gate", k_a))
    return v * (1 + 0.1 * g_a), a * (1 + 0.1 * g_v)


def clip_scores(p, v, a):
    means = [np.sort(linear(p, f"clip.{n}_scores", x), axis=0)[-4:].mean(0) for n, x in (("visual", v), ("audio", a))]
    return (means[0] + means[1]) / 2


# ---------------------------------------------------------------- modules with random weights
def randomised(module: torch.nn.Module) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    module = module.double().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():  # layer norms and biases too, which start at 1 and 0
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return module, {name: value.numpy() for name, value in module.state_dict().items()}


def clips(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("grad", [True, False], ids=["plain path", "torch's fast path"])
def test_temporal_attention_is_that_of_the_equations(grad):
    module, p = randomised(TemporalAttention(10, 6, 16))
    visual, audio = clips((3, 7, 10), (3, 7, 6))
    with torch.set_grad_enabled(grad):
        found = module(visual, audio)
    for clip in range(3):
        expected = temporal(p, visual[clip].numpy(), audio[clip].numpy())
        for value, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(value[clip].detach().numpy(), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seconds", [3, 10])
def test_heads_are_those_of_the_equations(seconds):
    tokens = dict(zip(("visual", "audio"), clips((2, seconds, 4, 10), (2, seconds, 5, 6)), strict=True))
    features = Features(tokens, dict.fromkeys(tokens, ()))
    head, p = randomised(EventHead(spec(10, 6), 5, 16))
    weak, q = randomised(WeakEventHead(spec(10, 6), 5, 16))
    outputs, logits = head(features, BATCH), weak(features, BATCH)
    for clip in range(2):
        means = [tokens[name][clip].numpy().mean(1) for name in ("visual", "audio")]
        v, a = temporal(p, *means, at="clip.temporal.")
        fused, av = (v + a) / 2, clip_scores(p, v, a)
        expected = {
            "relevance": linear(p, "relevance", fused)[:, 0],
            "event": linear(p, "event", fused.max(0)) + 0.3 * av,
            "scores": av,
        }
        v, a = temporal(q, *means, at="clip.temporal.")
        expected_weak = {"segments": linear(q, "segments", (v + a) / 2), "scores": clip_scores(q, v, a)}
        for found, wanted in ((outputs, expected), (logits, expected_weak)):
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                np.testing.assert_allclose(found[name][clip].detach().numpy(), value, rtol=0, atol=1e-10, err_msg=name)


def test_parameter_counts_are_the_published_live_ones():
    with torch.device("meta"):
        assert parameters(TemporalAttention(1536, 768)) == 7_859_842
        assert parameters(EventHead(spec(1536, 768), 28)) == 7_881_687
        assert parameters(WeakEventHead(spec(1536, 768), 28)) == 7_881_687  # 29 logits a second for 1 + 28
        # AVS's temporal gating is the context behind one projection (tasks.md 3.3: 4,739,330 per scale).
        assert parameters(TemporalContext(256, 128)) + 256 * 256 + 256 == 4_739_330


def test_width_scales_every_layer():
    module = TemporalAttention(30, 20, 8)
    layers = {
        name: tuple(p.shape) for name, p in module.named_parameters() if name.endswith(("weight", "weight_ih_l0"))
    }
    assert layers["visual_input.0.weight"] == (16, 30)
    assert layers["audio_input.weight"] == (4, 20)
    assert layers["context.visual_lstm.weight_ih_l0"] == (32, 16)
    assert layers["context.audio_lstm.weight_ih_l0"] == (16, 4)
    assert layers["context.visual_encoder.1.linear1.weight"] == (32, 8)
    assert layers["audio_decoder.feed_forward.0.weight"] == (32, 8)


def test_dropout_is_where_it_is_published():
    rates = {name: m.p for name, m in TemporalAttention(4, 4, 8).named_modules() if isinstance(m, torch.nn.Dropout)}
    assert rates.pop("visual_input.2") == 0.2
    assert set(rates.values()) == {0.1}
    assert len(rates) == 4 * 3 + 2 * 2  # after attention and twice in feed-forward; the decoders share one of them
    attentions = [m for m in TemporalAttention(4, 4, 8).modules() if isinstance(m, torch.nn.MultiheadAttention)]
    assert [m.dropout for m in attentions] == [0.1] * 6


def test_lstms_stay_in_train_mode_and_compute_the_same():
    """A backward pass of a model in eval mode needs it on CUDA; nothing in them depends on the mode."""
    module = TemporalAttention(6, 6, 8)
    lstms = [m for m in module.modules() if isinstance(m, Lstm)]
    assert len(lstms) == 2
    module.eval()
    assert [m.training for m in lstms] == [True, True]
    assert not module.context.visual_encoder.training
    (value,) = clips((2, 5, 16))
    lstm = lstms[0].double()
    before = lstm(value)[0]
    lstm.training = False
    torch.testing.assert_close(lstm(value)[0], before, rtol=0, atol=0)


@pytest.mark.parametrize("missing", ["visual", "audio"])
@pytest.mark.parametrize("head", [EventHead, WeakEventHead])
def test_both_towers_are_needed(head, missing):
    whole = spec(10, 6)
    half = FeatureSpec({n: s for n, s in whole.final.items() if n != missing}, whole.stages)
    with pytest.raises(ConfigError, match=rf"towers\.{missing}: not configured") as error:
        head(half, 5, 16)
    assert "\n" not in str(error.value)
