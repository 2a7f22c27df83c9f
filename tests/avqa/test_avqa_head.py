"""The heads: published parameter counts, each step against its equation in float64, no mixing of samples, what is not run."""

import numpy as np
import pytest
import torch
from torch import nn

from avcl_avqa.grounding import GroundingHead, match_nll
from avcl_avqa.head import AnswerHead, MatchHead, QuestionEncoder, TemporalGrounding
from avcl_core.batch import Batch
from avcl_core.features import Features, FeatureSpec, TokenShape

WIDTH, AUDIO = 8, 6


def spec(width: int = WIDTH, audio: int = AUDIO, grid: tuple[int, int] = (2, 3), classes: int = 0) -> FeatureSpec:
    shapes = {"visual": TokenShape(grid, width, classes), "audio": TokenShape((1, 3), audio, classes)}
    return FeatureSpec(shapes, {name: (shape,) for name, shape in shapes.items()})


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(clips: int = 3, seconds: int = 4, classes: int = 0, negative: bool = True) -> Features:
    final = {
        "visual": random(clips, seconds, 6 + classes, WIDTH, seed=1),
        "audio": random(clips, seconds, 3 + classes, AUDIO),
    }
    stages = {"visual": (final["visual"],), "audio": (random(clips, seconds, 3 + classes, AUDIO, seed=2),)}
    plain = {"negative": random(clips, seconds, 6 + classes, WIDTH, seed=3)} if negative else {}
    return Features(final, stages, plain)


def batch(clips: int = 3) -> Batch:
    question = torch.randint(0, 11, (clips, 14), generator=torch.Generator().manual_seed(5))
    return Batch("avqa", tuple(map(str, range(clips))), {"question": question})


def head() -> AnswerHead:
    torch.manual_seed(0)
    return AnswerHead(spec(), 11, 5).double().eval()


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_published_parameter_counts():
    with torch.device("meta"):
        full = AnswerHead(spec(1536, 768, (6, 6)), 93, 42)
        stage = MatchHead(spec(1536, 768, (6, 6)))
    assert count(full) == 66_870_444
    assert count(full.grounding) == count(stage) == 10_000_002
    assert count(full.question) == 23_749_632
    assert count(full.over_sound, full.over_frames) == 28_336_128
    assert count(full.fuse, full.answer) == 4_784_682
    own = dict(full.named_parameters())
    assert all(own[name].shape == tensor.shape for name, tensor in stage.named_parameters())


def affine(layer, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def grounding_by_hand(
    module: GroundingHead, frame: np.ndarray, heard: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps 1-3 for one second: frame map [N, d] and sound mean [D_a] → a, s, match logits."""
    a = affine(module.audio_out, np.maximum(affine(module.audio_in, heard), 0))
    directions = np.stack([unit(position) for position in frame])
    attention = softmax(np.array([direction @ unit(a) for direction in directions]))
    grounded = sum(weight * direction for weight, direction in zip(attention, directions, strict=True))
    s = affine(module.fuse, np.tanh(np.concatenate([frame.mean(0), grounded])))
    x = np.concatenate([a, s])
    for place, layer in enumerate(module.match_layers):
        x = affine(layer, x)
        x = x if place == 3 else np.maximum(x, 0)
    return a, s, x


def lstm_by_hand(lstm: nn.LSTM, words: np.ndarray) -> np.ndarray:
    w_in, w_h, b_in, b_h = (p.detach().numpy() for p in lstm.parameters())
    h = c = np.zeros(lstm.hidden_size)
    for x in words:
        i, f, g, o = np.split(w_in @ x + b_in + w_h @ h + b_h, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return np.concatenate([h, c])


def attention_by_hand(module: TemporalGrounding, q: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Multi-head attention with 4 heads, feed-forward, residual and norm for one query."""
    weights, biases = module.attention.in_proj_weight.detach().numpy(), module.attention.in_proj_bias.detach().numpy()
    (wq, wk, wv), (bq, bk, bv) = np.split(weights, 3), np.split(biases, 3)
    query, keys, values = wq @ q + bq, seconds @ wk.T + bk, seconds @ wv.T + bv
    size = len(q) // 4
    heads = []
    for place in range(4):
        part = slice(place * size, (place + 1) * size)
        heads.append(softmax(keys[:, part] @ query[part] / np.sqrt(size)) @ values[:, part])
    attended = affine(module.attention.out_proj, np.concatenate(heads))
    x = attended + affine(module.feed_forward[3], np.maximum(affine(module.feed_forward[0], attended), 0))
    normed = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return normed * module.norm.weight.detach().numpy() + module.norm.bias.detach().numpy()


def test_every_step_is_its_equation():
    module, found, asked = head(), features(), batch()
    with torch.no_grad():
        for norm in (module.over_sound.norm, module.over_frames.norm):  # at birth they would be the identity
            norm.weight.copy_(random(WIDTH, seed=7))
            norm.bias.copy_(random(WIDTH, seed=8))
        outputs = {name: value.numpy() for name, value in module(found, asked).items()}
    assert outputs["answer"].shape == (3, 5)
    assert outputs["match"].shape == (3, 2, 4, 2)
    frames, negative, heard = (
        x.numpy() for x in (found.final["visual"], found.plain["negative"], found.stages["audio"][-1].mean(2))
    )
    for clip in range(3):
        own = [grounding_by_hand(module.grounding, frames[clip, t], heard[clip, t]) for t in range(4)]
        other = [grounding_by_hand(module.grounding, negative[clip, t], heard[clip, t]) for t in range(4)]
        match = np.array([[logits for _, _, logits in own], [logits for _, _, logits in other]])
        np.testing.assert_allclose(outputs["match"][clip], match, atol=1e-12)
        a, s = (np.stack([second[part] for second in own]) for part in (0, 1))
        words = np.tanh(module.question.embedding.weight.detach().numpy()[asked.inputs["question"][clip].numpy()])
        q = affine(module.question.project, np.tanh(lstm_by_hand(module.question.lstm, words)))
        both = np.concatenate(
            [
                attention_by_hand(module.over_sound, q, a) + a.mean(0),
                attention_by_hand(module.over_frames, q, s) + s.mean(0),
            ]
        )
        answer = affine(module.answer, np.tanh(affine(module.fuse, np.tanh(both)) * q))
        np.testing.assert_allclose(outputs["answer"][clip], answer, atol=1e-12)


def test_match_loss_is_one_for_own_and_zero_for_other_frames():
    logits = random(2, 2, 3, 2)
    log_p = np.log(np.stack([softmax(x) for x in logits.numpy().reshape(-1, 2)])).reshape(2, 2, 3, 2)
    expected = -(log_p[:, 0, :, 1].sum(1) + log_p[:, 1, :, 0].sum(1)) / 6
    np.testing.assert_allclose(match_nll(logits).numpy(), expected, atol=1e-12)


def test_without_negatives_only_the_match_is_missing():
    module = head()
    with torch.no_grad():
        whole, without = module(features(), batch()), module(features(negative=False), batch())
    assert without.keys() == {"answer"}
    assert torch.equal(whole["answer"], without["answer"])


def test_sound_is_taken_before_the_final_norm_and_class_tokens_are_dropped():
    torch.manual_seed(0)
    module = AnswerHead(spec(classes=1), 11, 5).double().eval()
    found = features(classes=1)
    with torch.no_grad():
        before = module(found, batch())
        changed = {name: tokens.clone() for name, tokens in found.final.items()}
        changed["audio"] += 1
        changed["visual"][:, :, 0] += 1
        negative, heard = found.plain["negative"].clone(), found.stages["audio"][-1].clone()
        negative[:, :, 0] += 1
        heard[:, :, 0] += 1
        after = module(Features(changed, {**found.stages, "audio": (heard,)}, {"negative": negative}), batch())
        heard[:, :, 1] += 1
        other = module(Features(changed, {**found.stages, "audio": (heard,)}, {"negative": negative}), batch())
    for name in before:
        assert torch.equal(before[name], after[name]), name
        assert (before[name] - other[name]).abs().max() > 1e-6, name


def test_samples_do_not_mix():
    module, found, asked = head(), features(), batch()
    alone = Features(
        {n: v[1:2] for n, v in found.final.items()},
        {n: (v[0][1:2],) for n, v in found.stages.items()},
        {n: v[1:2] for n, v in found.plain.items()},
    )
    with torch.no_grad():
        whole, single = module(found, asked), module(alone, asked.select([1]))
    for name in whole:
        torch.testing.assert_close(whole[name][1:2], single[name], atol=1e-12, rtol=0)


def test_every_parameter_learns():
    module = head().train()
    outputs = module(features(), batch())
    (outputs["answer"].logsumexp(-1).sum() + match_nll(outputs["match"]).sum()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_dropout_acts_in_training_only():
    module = head()
    with torch.no_grad():
        assert torch.equal(module(features(), batch())["answer"], module(features(), batch())["answer"])
        module.train()
        assert not torch.equal(module(features(), batch())["answer"], module(features(), batch())["answer"])


def test_the_stage_gives_the_match_of_the_task():
    whole, stage = head(), MatchHead(spec()).double()
    stage.grounding.load_state_dict(whole.grounding.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(stage(features(), batch())["match"], whole(features(), batch())["match"])


def test_padding_is_read_like_a_word():
    encoder = QuestionEncoder(4, 6)
    question = torch.tensor([[1, 2, 0, 0]])
    assert not torch.allclose(encoder(question), encoder(question[:, :2]))


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (6, 6)])
def test_any_grid(grid):
    module = GroundingHead(WIDTH, AUDIO)
    sound = module.sound(torch.randn(2, AUDIO))
    assert module.ground(torch.randn(2, grid[0] * grid[1], WIDTH), sound).shape == (2, WIDTH)


def test_what_experts_copy_is_there():
    module = head()
    parts = [module.get_submodule(name) for name in module.fusion]
    assert [type(part) for part in parts] == [nn.Sequential, nn.Sequential, nn.Linear]
