"""The patch head: its parameters, the equations of php.md 3.8 in loops, towers of any kind, and no negatives anywhere."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from avcl_avqa import ground_plugin, plugin
from avcl_avqa.head import TemporalGrounding
from avcl_avqa.patches import PatchHead, TokenGrounding
from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.data.prepare import prepare
from avcl_core.errors import ConfigError
from avcl_core.features import Distinct, Features, FeatureSpec, TokenShape
from avcl_core.models.base import Model
from avcl_core.testing import check_task
from shared_backbones import create

WIDTH, AUDIO, WORDS, ANSWERS = 8, 6, 11, 5


def spec(width: int = WIDTH, audio: int = AUDIO, grid: int = 2, sounds: int = 3, classes: int = 1) -> FeatureSpec:
    shapes = {"visual": TokenShape((grid, grid), width, classes), "audio": TokenShape((1, sounds), audio)}
    return FeatureSpec(shapes, {name: (shape,) for name, shape in shapes.items()})


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(clips: int = 3, seconds: int = 4) -> Features:
    """Stages before the last, and final tokens, are of other values, so that a head that reads them is found out."""
    stages = {
        "visual": (random(clips, seconds, 5, WIDTH, seed=1), random(clips, seconds, 5, WIDTH, seed=2)),
        "audio": (random(clips, seconds, 3, AUDIO, seed=3), random(clips, seconds, 3, AUDIO, seed=4)),
    }
    final = {"visual": random(clips, seconds, 5, WIDTH, seed=5), "audio": random(clips, seconds, 3, AUDIO, seed=6)}
    return Features(final, stages)


def batch(clips: int = 3) -> Batch:
    question = torch.randint(0, WORDS, (clips, 14), generator=torch.Generator().manual_seed(5))
    return Batch("avqa", tuple(map(str, range(clips))), {"question": question})


def head(classes: int = 1) -> PatchHead:
    torch.manual_seed(0)
    module = PatchHead(spec(classes=classes), WORDS, ANSWERS).double().eval()
    with torch.no_grad():
        for place, norm in enumerate(
            (module.over_sound.norm, module.over_patches.norm)
        ):  # else they would be the identity
            norm.weight.copy_(random(WIDTH, seed=20 + place))
            norm.bias.copy_(random(WIDTH, seed=30 + place))
        for parameter in module.parameters():  # biases of an attention begin at zero
            parameter.add_(0.3 * random(*parameter.shape, seed=parameter.numel()))
    return module


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_parameters_at_full_size():
    with torch.device("meta"):
        full = PatchHead(spec(768, 768, 7, 64), 93, 42)
        outputs = full(
            Features({}, {"visual": (torch.empty(2, 10, 50, 768),), "audio": (torch.empty(2, 10, 64, 768),)}),
            Batch("avqa", ("a", "b"), {"question": torch.empty(2, 14, dtype=torch.long)}),
        )
    assert count(full) == 17_822_250
    assert count(full.question) == 5_976_576
    assert count(full.audio) == count(full.visual) == 1_181_184
    assert count(full.over_sound) == count(full.over_patches) == 3_545_088
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {"answer": (2, 42)}


# ---------------------------------------------------------------- php.md 3.8, written down once more, in loops
def affine(layer, x: np.ndarray) -> np.ndarray:
    return layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def unit_projection(layers, x: np.ndarray) -> np.ndarray:
    first, _, second = layers
    y = affine(second, np.maximum(affine(first, x), 0))
    return y / np.sqrt((y**2).sum())


def question_by_hand(module, indices: np.ndarray) -> np.ndarray:
    w_in, w_h, b_in, b_h = (p.detach().numpy() for p in module.lstm.parameters())
    h = c = np.zeros(WIDTH)
    for index in indices:
        x = np.tanh(module.embedding.weight.detach().numpy()[index])
        i, f, g, o = np.split(w_in @ x + b_in + w_h @ h + b_h, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return affine(module.project, np.tanh(np.concatenate([h, c])))


def attend_by_hand(module, q: np.ndarray, tokens: list[np.ndarray]) -> np.ndarray:
    """z ← MHA with 4 heads, then LN(z + FF(z))."""
    weights, biases = (p.detach().numpy() for p in (module.attention.in_proj_weight, module.attention.in_proj_bias))
    (wq, wk, wv), (bq, bk, bv) = np.split(weights, 3), np.split(biases, 3)
    size, heads = WIDTH // 4, []
    for place in range(4):
        part = slice(place * size, (place + 1) * size)
        query = (wq @ q + bq)[part]
        scores = np.array([query @ (wk @ token + bk)[part] / np.sqrt(size) for token in tokens])
        heads.append(sum(p * (wv @ token + bv)[part] for p, token in zip(softmax(scores), tokens, strict=True)))
    z = affine(module.attention.out_proj, np.concatenate(heads))
    z = z + affine(module.feed_forward[3], np.maximum(affine(module.feed_forward[0], z), 0))
    normed = (z - z.mean()) / np.sqrt(((z - z.mean()) ** 2).mean() + 1e-5)
    return normed * module.norm.weight.detach().numpy() + module.norm.bias.detach().numpy()


def answer_by_hand(module: PatchHead, seen: np.ndarray, heard: np.ndarray, words: np.ndarray) -> np.ndarray:
    """One sample: X [T, N, d], Y [T, N_a, D_a], word indices [L]."""
    all_a, all_u = [], []
    for frame, second in zip(seen, heard, strict=True):
        a = [unit_projection(module.audio, token) for token in second]
        for token in frame:
            v = unit_projection(module.visual, token)
            weights = softmax(np.array([v @ sound for sound in a]))
            g = sum(w * sound for w, sound in zip(weights, a, strict=True))
            all_u.append(affine(module.mix, np.tanh(np.concatenate([token, g]))))
        all_a += a
    q = question_by_hand(module.question, words)
    z_a, z_v = attend_by_hand(module.over_sound, q, all_a), attend_by_hand(module.over_patches, q, all_u)
    both = np.concatenate([z_a + np.mean(all_a, 0), z_v + np.mean(all_u, 0)])
    return affine(module.answer, np.tanh(affine(module.fuse, np.tanh(both)) * q))


def test_answer_is_its_equation():
    module, found, asked = head(), features(), batch()
    with torch.no_grad():
        answer = module(found, asked)["answer"].numpy()
    for clip in range(3):
        seen, heard = (found.stages[tower][-1][clip].numpy() for tower in ("visual", "audio"))
        expected = answer_by_hand(module, seen, heard, asked.inputs["question"][clip].numpy())
        np.testing.assert_allclose(answer[clip], expected, atol=1e-10, rtol=0)


def test_samples_do_not_mix_and_order_of_seconds_and_tokens_does_not_matter():
    module, found, asked = head(), features(), batch()
    alone = Features({}, {name: (value[-1][1:2],) for name, value in found.stages.items()})
    turned = Features({}, {name: (value[-1].flip(1).flip(2),) for name, value in found.stages.items()})
    apart = Features(
        {}, {**{n: v[-1:] for n, v in found.stages.items()}, "audio": (found.stages["audio"][-1].flip(1),)}
    )
    with torch.no_grad():
        whole = module(found, asked)["answer"]
        torch.testing.assert_close(module(alone, asked.select([1]))["answer"], whole[1:2], atol=1e-12, rtol=0)
        torch.testing.assert_close(module(turned, asked)["answer"], whole, atol=1e-12, rtol=0)
        # A frame meets the sound of its own second: other pairs give another answer.
        assert (module(apart, asked)["answer"] - whole).abs().max() > 1e-5


def test_every_parameter_learns():
    module = head().train()
    module(features(), batch())["answer"].logsumexp(-1).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_dropout_acts_in_training_only():
    module = head()
    with torch.no_grad():
        assert torch.equal(module(features(), batch())["answer"], module(features(), batch())["answer"])
        module.train()
        assert not torch.equal(module(features(), batch())["answer"], module(features(), batch())["answer"])


def test_towers_without_a_class_token_do_and_odd_widths_are_refused():
    found = Features({}, {"visual": (random(2, 4, 4, WIDTH),), "audio": (random(2, 4, 1, AUDIO),)})
    assert head(classes=0)(found, batch(2))["answer"].shape == (2, ANSWERS)
    with pytest.raises(ConfigError, match=r"4 attention heads, which do not divide the 6 channels of towers\.visual"):
        PatchHead(spec(width=6), WORDS, ANSWERS)


# ---------------------------------------------------------------- the task with this head
@pytest.fixture(scope="module")
def task(avqa_prepared):
    return plugin.build(plugin.options(head="patches"), avqa_prepared, "clean")


def test_nothing_negative_is_drawn_or_walked(task, avqa_prepared):
    data, key = task.dataset("train"), task.experiences()[0].train[0]
    assert task.plain == {}
    assert data.drawn == frozenset()
    with_rng = data.inputs(key, np.random.default_rng(0))
    assert list(with_rng) == ["visual", "audio", "question"]
    other = plugin.build(plugin.options(), avqa_prepared, "clean")
    assert other.plain == {"negative": "visual"}
    assert "negative" in other.dataset("train").inputs(key, np.random.default_rng(0))
    assert other.experiences() == task.experiences()
    assert task.fields == {"answer": "classes"}


def test_both_towers_are_needed(task):
    with pytest.raises(ConfigError, match=r"needs a tower towers\.audio"):
        task.head(
            FeatureSpec({"visual": TokenShape((2, 2), 8)}, {"visual": (TokenShape((2, 2), 8),)}), task.experiences()[0]
        )


def test_contract_with_tiny_clip_and_clap(avqa_root, tmp_path):
    small = prepare(plugin.layout(avqa_root), tmp_path / "avqa", frame_size=32, workers=1)
    task = plugin.build(plugin.options(head="patches"), small, "clean")
    towers = {"visual": create("clip_vit", size="tiny"), "audio": create("clap", size="tiny")}
    made = task.head(Model(towers, {task.name: task}, Options()).spec(), task.experiences()[0])
    assert isinstance(made, PatchHead)
    check_task(task, towers, samples=2)


def test_options():
    assert plugin.options().head == "grounding"
    assert "head" not in ground_plugin.options.model_fields  # the grounding stage has but one
    with pytest.raises(ValueError, match="grounding"):
        plugin.options(head="patch")


def test_folded_attention_equals_attention_over_keys_and_values_with_gradients():
    torch.manual_seed(0)
    plain, folded = TemporalGrounding(8).double().eval(), TokenGrounding(8).double().eval()
    with torch.no_grad():
        plain.attention.in_proj_bias.normal_()  # zero at first, which would hide it
    folded.load_state_dict(plain.state_dict())
    question, sequence = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 50, 8, dtype=torch.float64)
    results = []
    for module in (plain, folded):
        given = question.clone().requires_grad_(), sequence.clone().requires_grad_()
        found = module(*given)
        results.append([found, *torch.autograd.grad(found.pow(2).sum(), [*given, *module.parameters()])])
    torch.testing.assert_close(results[1], results[0], atol=1e-12, rtol=1e-10)


def test_dropped_attention_weights_take_their_share_of_the_value_bias_with_them():
    torch.manual_seed(0)
    module = TokenGrounding(8).double()
    module.attention.dropout = 1.0
    with torch.no_grad():
        module.attention.in_proj_bias.normal_()
    found = module.train().attend(torch.randn(2, 8).double(), torch.randn(2, 5, 8).double())
    torch.testing.assert_close(found, module.attention.out_proj.bias.expand(2, -1))


def test_questions_about_one_video_share_what_is_computed_of_it():
    module, one = head(), features(2)
    rows = torch.tensor([1, 0, 1])
    shared = Features(
        {name: value[rows] for name, value in one.final.items()},
        {name: [value[rows] for value in maps] for name, maps in one.stages.items()},
    )
    expected = module(shared, batch())["answer"]
    computed: list[int] = []
    module.audio.register_forward_hook(lambda _, given, __: computed.append(len(given[0])))
    found = module(replace(shared, distinct=Distinct(one, rows)), batch())["answer"]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    assert computed == [2]
