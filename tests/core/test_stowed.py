"""Experts on disk: the same answers, one of them in memory at a time, and nothing that is learnt is lost."""

import pytest
import torch
from torch import nn

from avcl_core.moe.feedforward import Experts
from avcl_core.ownership import Owners
from avcl_core.walk import Ctx


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.down(self.up(x).relu())


def bank(disk):
    torch.manual_seed(0)
    base = Mlp().requires_grad_(False)
    experts = Experts(base, disk=disk)
    for number, slot in enumerate("abc"):
        experts.grow(slot)
        with torch.no_grad():  # what an experience teaches, while its expert is in use
            for parameter in experts.slots[slot].parameters():
                parameter.add_(number + torch.randn_like(parameter))
    return experts


@pytest.fixture
def pair(tmp_path):
    """The same experts in memory and on disk."""
    return bank(None), bank(tmp_path / "experts")


def resting(experts):
    return [s for s, module in experts.slots.items() if all(experts.stowed.rests(p) for p in module.parameters())]


def test_answers_do_not_depend_on_where_experts_rest(pair):
    plain, stowed = pair
    x = torch.randn(3, 2, 4)
    for slots in (("a", "a", "a"), ("c", "c", "c"), ("b", "a", "c"), ("b", "b", "b")):
        torch.testing.assert_close(stowed(x, None, Ctx(slots=slots)), plain(x, None, Ctx(slots=slots)), atol=0, rtol=0)


def test_one_expert_is_out_beside_the_one_that_learns(pair):
    _, experts = pair
    assert resting(experts) == ["a", "b"]
    x = torch.randn(1, 2, 4)
    for slot, rest in (("a", ["b"]), ("b", ["a"]), ("c", ["a", "b"])):
        experts(x, None, Ctx(slots=(slot,)))
        assert resting(experts) == rest


def test_what_rests_is_stored_loaded_and_kept_as_it_was(pair):
    plain, experts = pair
    model, other = nn.ModuleDict({"experts": experts}), nn.ModuleDict({"experts": plain})
    before = Owners(model).state()
    assert all(torch.equal(value, Owners(other).state()[name]) for name, value in before.items())
    x = torch.randn(1, 2, 4)
    for slot in "abca":
        experts(x, None, Ctx(slots=(slot,)))
    assert all(torch.equal(value, before[name]) for name, value in Owners(model).state().items())
    Owners(model).load({name: value + 1 for name, value in before.items()})  # some rest, one is out
    for slot in "bac":
        experts(x, None, Ctx(slots=(slot,)))
    assert all(torch.equal(value, before[name] + 1) for name, value in Owners(model).state().items())


def test_what_rests_does_not_follow_the_model(pair):
    _, experts = pair
    experts.to(torch.float64)  # stands for another device
    kinds = {slot: next(module.parameters()).dtype for slot, module in experts.slots.items()}
    assert kinds == {"a": torch.float32, "b": torch.float32, "c": torch.float64}


def test_the_folder_goes_with_the_experts(tmp_path):
    experts = bank(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    del experts
    assert not list(tmp_path.iterdir())
