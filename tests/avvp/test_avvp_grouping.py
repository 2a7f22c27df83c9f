"""Every block of the grouping head equals its equations, written here with loops and einsum in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from avcl_avvp.grouping import Assignment, CrossAttentionBlock, GroupingBlock, ModalityTrans, TransformerBlock

D, HEADS = 16, 8


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn, also those that start at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5
    return module


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, module.weight) + module.bias


def norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight + module.bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def mlp(module: nn.Sequential, x: Tensor) -> Tensor:
    return linear(module[2], gelu(linear(module[0], x)))  # pyright: ignore[reportArgumentType]


def heads_attention(module: nn.MultiheadAttention, x: Tensor, y: Tensor) -> Tensor:
    """Softmax attention of x to y, head by head and sample by sample."""
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    q, k, v = (s @ w.T + b for s, w, b in zip((x, y, y), weights, biases, strict=True))
    size = D // HEADS
    rows = []
    for sample in range(len(x)):
        found = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = q[sample][:, part] @ k[sample][:, part].T / math.sqrt(size)
            exponent = (scores - scores.max()).exp()
            found.append(exponent / exponent.sum(1, keepdim=True) @ v[sample][:, part])
        rows.append(torch.cat(found, 1))
    return linear(module.out_proj, torch.stack(rows))


def block(module: TransformerBlock, x: Tensor) -> Tensor:
    y = norm(module.attention_norm, x)
    x = x + heads_attention(module.attention, y, y)
    return x + mlp(module.mlp, norm(module.mlp_norm, x))


def read(module: CrossAttentionBlock, p: Tensor, x: Tensor) -> Tensor:
    p = p + heads_attention(module.attention, p, x)
    p = p + mlp(module.mlp, norm(module.mlp_norm, p))
    return norm(module.norm, p)


def assign(module: Assignment, p: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """One segment after the other chooses among the groups."""
    q, k, v = linear(module.query, p), linear(module.key, x), linear(module.value, x)
    scores = torch.einsum("bgd,bnd->bgn", q, k) / math.sqrt(D)
    chosen = torch.zeros_like(scores)
    for sample in range(scores.shape[0]):
        for segment in range(scores.shape[2]):
            over_groups = scores[sample, :, segment]
            if module.hard:
                chosen[sample, over_groups.argmax(), segment] = 1
            else:
                chosen[sample, :, segment] = over_groups.exp() / over_groups.exp().sum()
    gathered = torch.zeros_like(p)
    for sample in range(scores.shape[0]):
        for group in range(scores.shape[1]):
            share = chosen[sample, group] / (chosen[sample, group].sum() + 1)
            gathered[sample, group] = sum(share[n] * v[sample, n] for n in range(len(share)))
    return linear(module.project, gathered), chosen


def group(module: GroupingBlock, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    t, x = norm(module.token_norm, t), norm(module.segment_norm, x)
    first, last = module.token_mlp[0], module.token_mlp[2]
    hidden = gelu(torch.einsum("bgd,hg->bhd", t, first.weight) + first.bias[:, None])
    p = norm(module.query_norm, torch.einsum("bhd,gh->bgd", hidden, last.weight) + last.bias[:, None])
    p = read(module.read, p, x)
    gathered, chosen = assign(module.assign, p, x)
    new = gathered + p
    return new + mlp(module.mlp, norm(module.mlp_norm, new)), chosen


def trans(module: ModalityTrans, x: Tensor, t: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
    both = torch.cat([x, t], 1)
    for each in module.blocks:
        both = block(each, both)  # pyright: ignore[reportArgumentType]
    x, t = both[:, : x.shape[1]], both[:, x.shape[1] :]
    if module.cross is not None:
        x, _ = group(module.cross, x, other)  # pyright: ignore[reportArgumentType]
    groups, chosen = group(module.group, x, t)
    return groups, 1 + chosen.exp() / chosen.exp().sum(2, keepdim=True)


def close(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_transformer_block():
    module = randomised(TransformerBlock(D))
    x = draw(2, 7, D)
    close(module(x), block(module, x))


def test_cross_attention_block():
    module = randomised(CrossAttentionBlock(D))
    p, x = draw(2, 5, D), draw(2, 7, D, seed=2)
    close(module(p, x), read(module, p, x))


@pytest.mark.parametrize("hard", [False, True])
def test_assignment(hard):
    module = randomised(Assignment(D, hard))
    p, x = draw(2, 5, D), draw(2, 7, D, seed=2)
    found, chosen = module(p, x)
    expected = assign(module, p, x)
    close((found, chosen), expected)
    close(chosen.sum(1), torch.ones(2, 7, dtype=torch.float64))
    assert chosen.shape == (2, 5, 7)


@pytest.mark.parametrize("hard", [False, True])
def test_grouping_block(hard):
    module = randomised(GroupingBlock(D, 5, hard))
    x, t = draw(2, 7, D), draw(2, 5, D, seed=2)
    close(module(x, t), group(module, x, t))


@pytest.mark.parametrize("others", [0, 7])
def test_modality_trans(others):
    module = randomised(ModalityTrans(D, 2, 5, others))
    x, t, other = draw(2, 7, D), draw(2, 5, D, seed=2), draw(2, 7, D, seed=3)
    groups, found = module(x, t, other)
    close((groups, found), trans(module, x, t, other))
    assert groups.shape == (2, 5, D)
    assert found.shape == (2, 5, 7)
    close(found.mean(2), torch.full((2, 5), 1 + 1 / 7, dtype=torch.float64))
    assert bool(((found > 1) & (found < 2)).all())
    changed = module(x, t, -other)[0]
    assert torch.equal(changed, groups) == (others == 0)


def test_hard_assignment_is_noisy_in_training_alone_and_straight_through():
    module = randomised(Assignment(D, hard=True))
    p, x = 0.1 * draw(4, 5, D), 0.1 * draw(4, 7, D, seed=2)
    once, again = (module(p, x)[1] for _ in range(2))
    assert torch.equal(once, again)
    module.train()
    torch.manual_seed(0)
    noisy = [module(p, x)[1] for _ in range(200)]
    for chosen in noisy[:3]:
        close(chosen.round(), chosen)
        close(chosen.sum(1), torch.ones(4, 7, dtype=torch.float64))
    # Gumbel noise of temperature 1 draws each group with its softmax probability.
    module.hard = False
    shares = module(p, x)[1]
    assert (torch.stack(noisy).mean(0) - shares).abs().max() < 0.15
    module.hard = True
    for mode in (True, False):
        module.train(mode).zero_grad()
        module(p, x)[0].square().sum().backward()
        for name in ("query", "key", "value"):
            assert module.get_submodule(name).weight.grad.abs().sum() > 0, (name, mode)
    # In evaluation the gradient is that of the soft assignment.
    weights = draw(4, 5, 7, seed=4)
    gradients = []
    for module.hard in (True, False):
        module.zero_grad()
        (module(p, x)[1] * weights).sum().backward()
        gradients.append(module.query.weight.grad.clone())
    close(*gradients)


def test_soft_assignment_has_no_noise():
    module = randomised(Assignment(D, hard=False)).train()
    p, x = draw(2, 5, D), draw(2, 7, D, seed=2)
    assert torch.equal(module(p, x)[0], module(p, x)[0])


def test_stochastic_depth_drops_a_tenth_of_the_residuals_of_single_samples():
    module = randomised(TransformerBlock(D)).train()
    x = draw(1, 3, D).expand(2000, 3, D)
    torch.manual_seed(0)
    kept = (module(x) - x).flatten(1).abs().sum(1) > 1e-9
    assert (~kept).double().mean() == pytest.approx(0.1 * 0.1, abs=0.007)  # both residuals dropped
    module.mlp.apply(lambda m: [p.data.zero_() for p in m.parameters()] and None)
    alone = module(x) - x
    kept = alone.flatten(1).abs().sum(1) > 1e-9
    assert (~kept).double().mean() == pytest.approx(0.1, abs=0.02)
    module.eval()
    close(alone[kept], ((module(x) - x) / 0.9)[kept])


@pytest.mark.parametrize(("width", "tokens", "count"), [(128, 25, 400_345), (128, 10, 398_410)])
def test_parameters_of_a_grouping_block(width, tokens, count):
    module = GroupingBlock(width, tokens)
    assert sum(p.numel() for p in module.parameters()) == count
    assert [tuple(module.token_mlp[i].weight.shape) for i in (0, 2)] == [(64, tokens), (tokens, 64)]
