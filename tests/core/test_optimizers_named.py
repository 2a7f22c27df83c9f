"""Named optimisers: groups by owner, exact state, and a schedule with known values."""

import pytest
import torch
from torch import nn

from avcl_core.methods.base import Group
from avcl_core.ownership import Owners, own
from avcl_core.training.optimizers import NamedOptimizer, schedule
from avcl_core.training.options import TrainingOptions

OPTIONS = TrainingOptions(lr=0.1, weight_decay=0.3, schedule="constant", warmup=0)


def model():
    torch.manual_seed(0)
    made = nn.Module()
    made.one, made.two = own(nn.Linear(2, 2), "shared"), own(nn.Linear(2, 2), "task:a")
    return made


def stepped(made, optimizer, count, first=0):
    for index in range(first, first + count):
        torch.manual_seed(index)
        for parameter in made.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step(index)


def test_groups_take_their_owners_first_come_with_their_rate_and_decay():
    made = model()
    optimizer = NamedOptimizer((Group(("task:*",), 0.5, 0.0), Group()), Owners(made), OPTIONS, 10)
    assert list(optimizer.names) == ["two.weight", "two.bias", "one.weight", "one.bias"]
    optimizer.step(0)
    groups = optimizer.inner.param_groups
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [(0.05, 0.0, 2), (0.1, 0.3, 2)]


def test_the_first_pattern_that_matches_an_owner_scales_its_rate():
    found = TrainingOptions(rates={"head:b": 3.0, "head:*": 0.5})
    assert [found.factor(owner) for owner in ("head:a", "head:b", "shared")] == [0.5, 3.0, 1.0]
    with pytest.raises(ValueError, match="'heads:\\*' matches no owner"):
        TrainingOptions(rates={"heads:*": 2.0})


def test_rates_divide_a_group_by_owner():
    options = OPTIONS.model_copy(update={"rates": {"shared": 0.25}})
    optimizer = NamedOptimizer((Group(rate=2.0),), Owners(model()), options, 10)
    optimizer.step(0)
    found = {id(p): g["lr"] for g in optimizer.inner.param_groups for p in g["params"]}
    rates = {name: found[id(parameter)] for name, parameter in optimizer.names.items()}
    assert rates == pytest.approx({"one.weight": 0.05, "one.bias": 0.05, "two.weight": 0.2, "two.bias": 0.2})


def test_only_live_parameters_are_taken():
    made = model()
    owners = Owners(made)
    owners.set_trainable(("shared",))
    assert list(NamedOptimizer((Group(),), owners, OPTIONS, 10).names) == ["one.weight", "one.bias"]
    with pytest.raises(ValueError, match="no live parameter matches"):
        NamedOptimizer((Group(("task:*",)),), owners, OPTIONS, 10)


def test_a_state_by_name_continues_bit_for_bit_whatever_the_order_of_groups():
    straight, first, second = model(), model(), model()
    one = NamedOptimizer((Group(),), Owners(straight), OPTIONS, 10)
    stepped(straight, one, 6)
    two = NamedOptimizer((Group(),), Owners(first), OPTIONS, 10)
    stepped(first, two, 3)
    second.load_state_dict(first.state_dict())
    three = NamedOptimizer((Group(("task:*",)), Group()), Owners(second), OPTIONS, 10)
    three.load(two.state())
    stepped(second, three, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))
    forgetful = model()
    forgetful.load_state_dict(first.state_dict())
    stepped(forgetful, NamedOptimizer((Group(),), Owners(forgetful), OPTIONS, 10), 3, first=3)
    assert not torch.equal(straight.one.weight, forgetful.one.weight)


def test_a_state_that_does_not_fit_is_refused():
    made = model()
    optimizer = NamedOptimizer((Group(),), Owners(made), OPTIONS, 10)
    stepped(made, optimizer, 1)
    state = optimizer.state()
    with pytest.raises(ValueError, match="optimiser state of gone, which is not a live parameter"):
        optimizer.load({**state, "gone": state["one.bias"]})
    wrong = {"one.weight": {**state["one.weight"], "exp_avg": torch.zeros(3, 3)}}
    with pytest.raises(ValueError, match=r"one.weight.exp_avg: \(3, 3\), expected \(2, 2\)"):
        optimizer.load(wrong)


def test_the_schedule_warms_up_linearly_and_falls_to_zero():
    options = TrainingOptions(schedule="cosine", warmup=0.2)
    values = [schedule(options, index, 10) for index in range(10)]
    assert values[:3] == [0.5, 1.0, 1.0]
    assert values[6] == pytest.approx(0.5)
    assert values[2:] == sorted(values[2:], reverse=True)
    assert schedule(options, 10, 10) == pytest.approx(0)
    assert [schedule(OPTIONS, i, 10) for i in (0, 9)] == [1.0, 1.0]
