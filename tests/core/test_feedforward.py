"""Feed-forward experts: they start as the tower's own MLP, rows find their own, and what they share stays frozen."""

import pytest
import torch
from torch import nn

from avcl_core.errors import ConfigError
from avcl_core.moe.feedforward import Experts, blocks_of
from avcl_core.ownership import Owners
from avcl_core.routing import BASE
from avcl_core.walk import Ctx


class Mlp(nn.Module):
    """A gated MLP of the kind that LLaMA has."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 10), nn.Linear(6, 10, bias=False), nn.Linear(10, 6, bias=False)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


def bank(rank=None, slots=("a", "b"), moved=True):
    torch.manual_seed(0)
    base = Mlp().requires_grad_(False)
    experts = Experts(base, rank, 0.5)
    for slot in slots:
        experts.grow(slot)
    if moved:
        with torch.no_grad():
            for parameter in experts.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return base, experts


KINDS = pytest.mark.parametrize("rank", [None, 2], ids=["whole", "low rank"])


@KINDS
def test_an_expert_begins_as_the_frozen_mlp(rank):
    base, experts = bank(rank, moved=False)
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(experts(x, None, Ctx(slots=("a", "a"))), base(x), atol=0, rtol=0)
    torch.testing.assert_close(experts(x, None, Ctx(slots=("a", "b"))), base(x))


@KINDS
def test_every_row_goes_through_its_own_expert_or_through_none(rank):
    base, experts = bank(rank)
    x = torch.randn(5, 3, 6)
    slots = ("b", BASE, "a", "b", BASE)
    found = experts(x, None, Ctx(slots=slots))
    for row, slot in enumerate(slots):
        alone = base(x[row : row + 1]) if slot == BASE else experts(x[row : row + 1], None, Ctx(slots=(slot,)))
        torch.testing.assert_close(found[row : row + 1], alone)
    torch.testing.assert_close(experts(x, None, Ctx(slots=(BASE,) * 5)), base(x), atol=0, rtol=0)
    assert float((found[1:2] - experts(x[1:2], None, Ctx(slots=("a",)))).detach().abs().max()) > 1e-2


def test_a_low_rank_expert_adds_a_scaled_product_to_every_map():
    base, experts = bank(2, ("a",))
    x = torch.randn(2, 3, 6)
    whole = Mlp()
    whole.load_state_dict(base.state_dict())
    with torch.no_grad():
        for name, low in experts.slots["a"].maps.items():
            whole.get_submodule(name).weight.add_(0.5 * low.up @ low.down)
    torch.testing.assert_close(experts(x, None, Ctx(slots=("a", "a"))), whole(x))


@KINDS
def test_the_frozen_mlp_is_nobodys_and_learns_nothing(rank):
    base, experts = bank(rank)
    owners = Owners(nn.ModuleDict({"experts": experts}))
    expected = {None: 2 * sum(p.numel() for p in base.parameters()), 2: 2 * 2 * 3 * (6 + 10)}[rank]
    assert sum(row.tensor.numel() for row in owners.rows.values()) == expected
    assert {row.owner for row in owners.rows.values()} == {"expert:a", "expert:b"}
    experts(torch.randn(2, 3, 6), None, Ctx(slots=("a", "a"))).sum().backward()
    assert all(parameter.grad is None for parameter in base.parameters())
    assert all(parameter.grad is not None for parameter in experts.slots["a"].parameters())
    assert all(parameter.grad is None for parameter in experts.slots["b"].parameters())


def test_blocks_by_name_or_by_number():
    assert blocks_of("even", 5) == (0, 2, 4)
    assert blocks_of("odd", 5) == (1, 3)
    assert blocks_of("all", 2) == (0, 1)
    assert blocks_of((3, 1), 4) == (1, 3)
    for wrong in ((4,), (1, 1), (-1,)):
        with pytest.raises(ConfigError, match=r"expected different blocks from 0 to 3"):
            blocks_of(wrong, 4)
    with pytest.raises(ConfigError, match="GELU has no linear maps"):
        Experts(nn.GELU(), 2).grow("a")
