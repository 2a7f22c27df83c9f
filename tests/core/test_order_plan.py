"""The order of samples: every sample once per epoch, alternating experiences, and stable under removal of a sample."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avcl_core.errors import ConfigError
from avcl_core.seeding import derive, ordered
from avcl_core.stream import Experience, Session
from avcl_core.training.order import Pace, epoch_plan, shards


def session(*sizes):
    return Session(
        0,
        tuple(Experience(i, f"e{i}", "t", tuple(f"e{i}-{k}" for k in range(n)), (), ()) for i, n in enumerate(sizes)),
        (),
    )


def paces(given_, batch=4, **passes):
    return {e.name: Pace(batch, passes.get(e.name)) for e in given_.experiences}


@given(st.lists(st.integers(4, 30), min_size=1, max_size=3), st.integers(4, 9), st.integers(1, 4), st.integers(0, 3))
def test_every_sample_once_in_batches_of_one_experience(sizes, batch, least, epoch):
    given_ = session(*sizes)
    plan = epoch_plan(given_, 0, epoch, paces(given_, batch), least)
    for experience in given_.experiences:
        keys = [key for portion in plan if portion.experience is experience for key in portion.keys]
        assert sorted(keys) == sorted(experience.train)
    assert all(least <= len(portion.keys) <= batch + least - 1 for portion in plan)


def test_plans_follow_from_seed_and_epoch_and_have_equal_length():
    both = session(9, 5)
    plans = {(seed, epoch): tuple(epoch_plan(both, seed, epoch, paces(both))) for seed in (0, 1) for epoch in (0, 1)}
    assert plans[0, 0] == tuple(epoch_plan(both, 0, 0, paces(both)))
    assert len(set(plans.values())) == 4
    assert len({len(plan) for plan in plans.values()}) == 1


def test_experiences_of_a_session_alternate():
    names = [portion.experience.name for portion in epoch_plan(session(40, 40), 0, 0, paces(session(40, 40)))]
    assert names != sorted(names)
    assert names != sorted(names, reverse=True)


def test_too_few_samples_for_the_ranks_are_refused():
    with pytest.raises(ConfigError, match="experience e1 has 1 training samples; at least 2 are needed"):
        epoch_plan(session(4, 1), 0, 0, paces(session(4, 1)), least=2)
    with pytest.raises(ConfigError, match="experience e0 has 0 training samples"):
        epoch_plan(session(0), 0, 0, paces(session(0)))
    with pytest.raises(ConfigError, match=r"training\.batch_size is 2; 3 ranks"):
        epoch_plan(session(9), 0, 0, paces(session(9), 2), least=3)


def test_each_experience_is_cut_into_batches_of_its_own_size():
    both = session(24, 20)
    plan = epoch_plan(both, 0, 0, {"e0": Pace(4), "e1": Pace(10)})
    assert sorted(len(p.keys) for p in plan) == [4] * 6 + [10] * 2
    assert {len(p.keys) for p in plan if p.experience.name == "e1"} == {10}


@given(st.integers(0, 40), st.integers(1, 7))
def test_shards_are_contiguous_and_even(count, parts):
    found = shards(count, parts)
    assert [i for shard in found for i in shard] == list(range(count))
    assert max(map(len, found)) - min(map(len, found)) <= 1


@given(st.sets(st.text(min_size=1, max_size=4), min_size=2, max_size=12))
def test_removing_a_key_leaves_the_others_in_order(keys):
    order = ordered(keys, 7, "x")
    assert ordered(set(order[:1] + order[2:]), 7, "x") == order[:1] + order[2:]


def test_coordinates_are_kept_apart():
    assert len({derive("a", "bc"), derive("ab", "c"), derive("abc"), derive("a", "b", "c")}) == 4
    assert 0 <= derive(1) < 2**63


@pytest.mark.parametrize(("passes", "epochs"), [(2, 8), (1, 3), (3, 2), (8, 8)])
def test_an_experience_is_gone_through_as_often_as_it_says(passes, epochs):
    both = session(17, 5)
    name = both.experiences[0].name
    plans = [epoch_plan(both, 0, epoch, paces(both, **{name: passes}), 1, epochs) for epoch in range(epochs)]
    seen = [[k for p in plan if p.experience.name == name for k in p.keys] for plan in plans]
    other = [k for plan in plans for p in plan if p.experience.name != name for k in p.keys]
    assert sorted(k for part in seen for k in part) == sorted([*both.experiences[0].train] * passes)
    assert sorted(other) == sorted([*both.experiences[1].train] * epochs)
    assert max(map(len, seen)) - min(map(len, seen)) <= 1
    assert passes != epochs or plans == [epoch_plan(both, 0, epoch, paces(both)) for epoch in range(epochs)]


def test_an_experience_with_less_than_a_sample_per_epoch_has_no_step_in_some():
    both = session(3, 4)
    plans = [epoch_plan(both, 0, epoch, paces(both, e0=2), 1, 10) for epoch in range(10)]
    seen = [[k for p in plan if p.experience.name == "e0" for k in p.keys] for plan in plans]
    assert sorted(k for keys in seen for k in keys) == sorted([*both.experiences[0].train] * 2)
    assert sorted(map(len, seen)) == [0] * 4 + [1] * 6
    assert all(portion.keys for plan in plans for portion in plan)


def test_an_epoch_without_any_sample_is_refused_with_passes_and_epochs():
    with pytest.raises(ConfigError) as failure:
        epoch_plan(session(3), 0, 0, paces(session(3), e0=2), 1, 10)
    message = str(failure.value)
    assert "epoch 1 has no training sample (e0: 2 passes over 3 training samples in 10 epochs)" in message
    assert "set training.epochs lower, or training.tasks.t.epochs higher" in message


def test_a_share_of_an_epoch_that_is_smaller_than_the_ranks_is_refused_with_passes_and_epochs():
    both = session(3, 4)
    with pytest.raises(ConfigError, match=r"e0: 2 passes over 3 training samples in 10 epochs leave epoch 2 1 of them"):
        [epoch_plan(both, 0, epoch, paces(both, e0=2), 2, 10) for epoch in range(10)]


def test_samples_of_a_group_stand_together_in_an_order_of_the_groups_that_changes():
    one = session(40)
    name = one.experiences[0].name

    def group(key):
        return key[-1]

    orders = [
        [k for p in epoch_plan(one, 0, epoch, {name: Pace(4, None, group)}, 1, 2) for k in p.keys] for epoch in (0, 1)
    ]
    for order, epoch in zip(orders, (0, 1), strict=True):
        assert sorted(order) == sorted(one.experiences[0].train)
        places = [[i for i, k in enumerate(order) if group(k) == g] for g in sorted({group(k) for k in order})]
        assert len(places) > 1
        portions = epoch_plan(one, 0, epoch, {name: Pace(400, None, group)}, 1, 2)
        whole = [k for p in portions for k in p.keys]
        assert all(
            max(found) - min(found) == len(found) - 1
            for found in ([i for i, k in enumerate(whole) if group(k) == g] for g in {group(k) for k in whole})
        )
    assert orders[0] != orders[1]
