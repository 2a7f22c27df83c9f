"""Named optimisers: groups by owner, exact state, and a schedule with known values."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from avcl_core.methods.base import Group
from avcl_core.ownership import Owners, own
from avcl_core.training.optimizers import NamedOptimizer, named_optimizers, schedule
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
    optimizer = NamedOptimizer((Group(("task:*",), 0.5, 0.0), Group()), Owners(made), OPTIONS, [10])
    assert list(optimizer.names) == ["two.weight", "two.bias", "one.weight", "one.bias"]
    optimizer.step(0)
    groups = optimizer.inner.param_groups
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [(0.05, 0.0, 2), (0.1, 0.3, 2)]
    assert optimizer.rates() == [0.05, 0.1]


def test_the_first_pattern_that_matches_an_owner_scales_its_rate():
    found = TrainingOptions(rates={"head:b": 3.0, "head:*": 0.5})
    assert [found.factor(owner) for owner in ("head:a", "head:b", "shared")] == [0.5, 3.0, 1.0]
    with pytest.raises(ValueError, match="'heads:\\*' matches no owner"):
        TrainingOptions(rates={"heads:*": 2.0})


def test_rates_divide_a_group_by_owner():
    options = OPTIONS.model_copy(update={"rates": {"shared": 0.25}})
    optimizer = NamedOptimizer((Group(rate=2.0),), Owners(model()), options, [10])
    optimizer.step(0)
    found = {id(p): g["lr"] for g in optimizer.inner.param_groups for p in g["params"]}
    rates = {name: found[id(parameter)] for name, parameter in optimizer.names.items()}
    assert rates == pytest.approx({"one.weight": 0.05, "one.bias": 0.05, "two.weight": 0.2, "two.bias": 0.2})


def test_in_a_session_of_several_tasks_what_a_task_owns_learns_at_the_rate_of_the_task():
    made = model()
    made.three = own(nn.Linear(2, 2), "head:b")
    options = OPTIONS.model_copy(
        update={"rates": {"shared": 0.5}, "tasks": {"b": {"lr": 0.02, "rates": {"head:*": 2.0}}}}
    )
    method = SimpleNamespace(model=made, optimizers=lambda session: {"all": (Group(),)})
    session = SimpleNamespace(experiences=[SimpleNamespace(name="a", task="a"), SimpleNamespace(name="b-1", task="b")])
    optimizer = named_optimizers(method, session, options, [10])["all"]  # pyright: ignore[reportArgumentType]
    optimizer.step(0)
    found = {id(p): g["lr"] for g in optimizer.inner.param_groups for p in g["params"]}
    rates = {name: found[id(parameter)] for name, parameter in optimizer.names.items() if "weight" in name}
    assert rates == pytest.approx({"one.weight": 0.05, "two.weight": 0.1, "three.weight": 0.04})


def test_only_live_parameters_are_taken():
    made = model()
    owners = Owners(made)
    owners.set_trainable(("shared",))
    assert list(NamedOptimizer((Group(),), owners, OPTIONS, [10]).names) == ["one.weight", "one.bias"]
    with pytest.raises(ValueError, match="no live parameter matches"):
        NamedOptimizer((Group(("task:*",)),), owners, OPTIONS, [10])


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_a_state_by_name_continues_bit_for_bit_whatever_the_order_of_groups(name):
    options = OPTIONS.model_copy(update={"optimizer": name})
    straight, first, second = model(), model(), model()
    one = NamedOptimizer((Group(),), Owners(straight), options, [10])
    stepped(straight, one, 6)
    two = NamedOptimizer((Group(),), Owners(first), options, [10])
    stepped(first, two, 3)
    second.load_state_dict(first.state_dict())
    three = NamedOptimizer((Group(("task:*",)), Group()), Owners(second), options, [10])
    three.load(two.state())
    stepped(second, three, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))
    forgetful = model()
    forgetful.load_state_dict(first.state_dict())
    stepped(forgetful, NamedOptimizer((Group(),), Owners(forgetful), options, [10]), 3, first=3)
    assert not torch.equal(straight.one.weight, forgetful.one.weight)


def test_a_state_that_does_not_fit_is_refused():
    made = model()
    optimizer = NamedOptimizer((Group(),), Owners(made), OPTIONS, [10])
    stepped(made, optimizer, 1)
    state = optimizer.state()
    with pytest.raises(ValueError, match="optimiser state of gone, which is not a live parameter"):
        optimizer.load({**state, "gone": state["one.bias"]})
    wrong = {"one.weight": {**state["one.weight"], "exp_avg": torch.zeros(3, 3)}}
    with pytest.raises(ValueError, match=r"one.weight.exp_avg: \(3, 3\), expected \(2, 2\)"):
        optimizer.load(wrong)


def test_the_schedule_warms_up_linearly_and_falls_to_zero():
    options = TrainingOptions(schedule="cosine", warmup=0.2)
    values = [schedule(options, index, [10]) for index in range(10)]
    assert values[:3] == [0.5, 1.0, 1.0]
    assert values[6] == pytest.approx(0.5)
    assert values[2:] == sorted(values[2:], reverse=True)
    assert schedule(options, 10, [10]) == pytest.approx(0)
    assert [schedule(OPTIONS, i, [10]) for i in (0, 9)] == [1.0, 1.0]


PUBLISHED = TrainingOptions(
    epochs=10, lr=3e-4, lr_min=1e-6, schedule_by="epoch", warmup=0, optimizer="adam", weight_decay=1e-5
)
"""PHP's optimisation (php.md 4.3)."""
TABLE = """3.000000e-4 2.926829e-4 2.714480e-4 2.383739e-4 1.966980e-4
1.505000e-4 1.043020e-4 6.262610e-5 2.955196e-5 8.317051e-6"""
"""Learning rates of its ten epochs (php.md 9.1)."""


def equal(options, total):
    """Equally long epochs."""
    assert total % options.epochs == 0
    return [total // options.epochs] * options.epochs


def used(options, total, indices, rate=1.0):
    """Learning rates with which steps are made."""
    optimizer = NamedOptimizer((Group(rate=rate),), Owners(model()), options, equal(options, total))
    found = []
    for index in indices:
        optimizer.step(index)
        found += {group["lr"] for group in optimizer.inner.param_groups}
    return found


@pytest.mark.parametrize("steps", [1, 7])
def test_the_cosine_by_epoch_has_the_published_values(steps):
    rates = used(PUBLISHED, 10 * steps, range(10 * steps))
    expected = [text for text in TABLE.split() for _ in range(steps)]
    assert [f"{rate:.6e}".replace("e-0", "e-") for rate in rates] == expected


def test_by_epoch_and_by_step_agree_at_the_first_step_of_an_epoch():
    by_step = PUBLISHED.model_copy(update={"schedule_by": "step"})
    starts = range(0, 50, 5)
    assert used(by_step, 50, starts) == used(PUBLISHED, 50, starts)
    rates = used(by_step, 50, range(50))
    assert len(set(rates)) == 50
    assert rates == sorted(rates, reverse=True)
    assert schedule(by_step, 50, equal(by_step, 50)) * 3e-4 == pytest.approx(1e-6)


def test_the_cosine_by_epoch_begins_where_the_warm_up_ends():
    options = PUBLISHED.model_copy(update={"warmup": 0.3, "epochs": 5})
    found = [schedule(options, index, [4] * 5) for index in range(20)]
    assert found[:6] == pytest.approx([n / 6 for n in range(1, 7)])
    assert found[6:8] == [1.0, 1.0]
    assert all(len(set(found[at : at + 4])) == 1 for at in (8, 12, 16))
    assert 1 > found[8] > found[12] > found[16] > 1 / 300


LENGTHS = [3, 4, 3]
"""Epochs of a session of several tasks, one of which is gone through less often than there are epochs."""


def test_by_epoch_each_of_unequal_epochs_has_one_rate():
    options = PUBLISHED.model_copy(update={"epochs": 3, "lr_min": 0.0})
    found = [schedule(options, index, LENGTHS) for index in range(10)]
    starts = [0.5 * (1 + math.cos(math.pi * start / 10)) for start in (0, 3, 7)]
    assert found == [starts[0]] * 3 + [starts[1]] * 4 + [starts[2]] * 3


def test_steps_fall_between_unequal_epochs():
    options = TrainingOptions(epochs=3, schedule="step", decay=0.1, decay_every=1, warmup=0)
    found = [schedule(options, index, LENGTHS) for index in range(10)]
    assert found == [1.0] * 3 + [0.1] * 4 + [0.1**2] * 3


@pytest.mark.parametrize("warmup", [0, 0.05, 0.3])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_equally_long_epochs_have_the_rates_of_their_division(steps, warmup):
    """With equal lengths, the number of an epoch is that of its step divided by the length, bit for bit."""
    epochs = 7
    total, lengths = steps * epochs, [steps] * epochs
    warm = math.ceil(warmup * total)
    cosine = PUBLISHED.model_copy(update={"epochs": epochs, "warmup": warmup})
    falling = TrainingOptions(epochs=epochs, schedule="step", decay=0.3, decay_every=2, warmup=warmup)
    floor = cosine.lr_min / cosine.lr
    for index in range(warm, total):
        at = max(warm, index // steps * steps)
        old = floor + (1 - floor) * (0.5 * (1 + math.cos(math.pi * (at - warm) / max(1, total - warm))))
        assert schedule(cosine, index, lengths) == old
        assert schedule(falling, index, lengths) == 0.3 ** (index * epochs // total // 2)


def test_a_factor_on_the_rate_is_a_factor_on_its_floor():
    plain = used(PUBLISHED, 10, range(10))
    scaled = used(PUBLISHED.model_copy(update={"rates": {"*": 0.001}}), 10, range(10), rate=2.0)
    assert scaled == pytest.approx([0.002 * rate for rate in plain], rel=1e-12)


def test_without_a_floor_and_by_step_the_cosine_is_what_it_was_bit_for_bit():
    options = TrainingOptions(warmup=0.05, lr=7e-4)
    for total in (40, 97, 1000):
        warm = math.ceil(0.05 * total)
        old = [0.5 * (1 + math.cos(math.pi * (index - warm) / max(1, total - warm))) for index in range(warm, total)]
        assert [schedule(options, index, [total]) for index in range(warm, total)] == old


@pytest.mark.parametrize(("name", "after"), [("adamw", 2 - 0.1 * 0.3 * 2), ("adam", 2 - 0.1)])
def test_decay_without_a_gradient_shrinks_by_a_share_or_is_a_gradient_of_its_own(name, after):
    """Decoupled: p (1 - lr wd). As an L2 term: Adam's first step of a gradient wd p, which is lr whatever its size."""
    made = model()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(2.0)
            parameter.grad = torch.zeros_like(parameter)
    NamedOptimizer((Group(),), Owners(made), OPTIONS.model_copy(update={"optimizer": name}), [10]).step(0)
    assert made.one.weight.flatten().tolist() == pytest.approx([after] * 4)
    assert made.one.bias.tolist() == pytest.approx([after] * 2)
