"""The benchmark's plain formulations equal ours; a difference ends its run. Nothing here measures time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from avcl_avs.metrics import f_score
from avcl_avs.tpavi import Tpavi
from avcl_core.moe.adapter import MoeAdapter
from avcl_core.moe.experts import ExpertShape
from avcl_core.walk import Ctx

FOLDER = Path(__file__).parents[2] / "benchmarks" / "avmoe"


@pytest.fixture(scope="module", autouse=True)
def benchmark_modules():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return module.double()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("cross", "uni", "options"),
    [
        (1, 1, {"norm": True, "uni_attention": "none"}),
        (2, 2, {"uni_attention": "latent"}),
        (1, 2, {"uni_attention": "none", "uni_activation": True}),
        (1, 1, {"uni_attention": "temporal"}),
        (1, 1, {"uni_attention": "dense"}),
    ],
)
@pytest.mark.parametrize("source", [(5, 24), (20, 6)])  # tokens first, channels first
def test_the_direct_adapter_equals_ours_with_its_gradients(training, cross, uni, options, source) -> None:
    from direct_adapter import adapt

    adapter = MoeAdapter("audio 0 0 attn", source, 7, ExpertShape(12, 2, 2, 3, **options), cross, uni)
    randomised(adapter).train(training)
    for module in adapter.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    own, other = noise(6, 7, 12).requires_grad_(), noise(6, *source).requires_grad_()
    inputs = [own, other, *adapter.parameters()]
    found = []
    for call in (adapter, lambda *arguments: adapt(adapter, *arguments)):
        out = call(own, other, Ctx(frames=3, training=training))
        weights = noise(*out.shape)
        found.append([out.detach(), *torch.autograd.grad((out * weights).sum(), inputs, allow_unused=True)])
    for ours, direct in zip(*found, strict=True):
        assert (ours is None) == (direct is None)
        if ours is not None:
            torch.testing.assert_close(ours, direct, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("norm", ["batch", "clip"])
def test_direct_tpavi_and_direct_f_score_equal_ours(norm) -> None:
    from direct_parts import f_score as direct_f_score
    from direct_parts import tpavi

    block = randomised(Tpavi(8, 4, norm))
    grid, sound = noise(2, 3, 8, 4, 5), noise(2, 3, 4)
    for ours, direct in zip(block(grid, sound), tpavi(block, grid, sound), strict=True):
        torch.testing.assert_close(ours, direct, rtol=1e-9, atol=1e-10)
    prob, truth = noise(3, 9, 9).sigmoid().float(), noise(3, 9, 10)[:, :, :9] > 0.3
    truth[1] = False
    assert f_score(prob, truth) == pytest.approx(direct_f_score(prob, truth), abs=1e-9)


def test_the_whole_direct_step_equals_ours_and_a_difference_ends_the_run() -> None:
    from clock import Unequal, equal
    from direct_adapter import direct_adapters
    from models import batch_of, model_of, objective

    model = model_of("ave", "tiny", torch.device("cpu"))
    model.train()
    batch = batch_of("ave", "tiny", 1, torch.device("cpu"), training=True)
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = []
    for direct in (False, True):
        torch.manual_seed(0)
        if direct:
            with direct_adapters(model):
                loss = objective(model, batch, training=True)
        else:
            loss = objective(model, batch, training=True)
        gradients = torch.autograd.grad(loss, live, allow_unused=True)
        found.append([loss.detach(), torch.cat([g.flatten() for g in gradients if g is not None])])
    assert equal("step", found[0], found[1], 2e-3) < 2e-3
    assert "forward" not in next(iter(model.parts.values())).__dict__
    with pytest.raises(Unequal, match="differ by"):
        equal("step", found[0][0], found[1][0] * 1.1, 2e-3)
    with pytest.raises(Unequal, match="shapes"):
        equal("step", torch.zeros(2), torch.zeros(3), 1.0)
    with pytest.raises(Unequal):
        equal("step", torch.tensor(float("nan")), torch.zeros(()), 1.0)
