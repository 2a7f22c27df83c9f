"""The replay memory: equal quotas, stable choices, exact state, and draws that follow from the generator."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avcl_core.errors import ConfigError
from avcl_core.replay.memory import Memory


@given(st.integers(5, 20), st.lists(st.integers(1, 15), min_size=1, max_size=5), st.integers(0, 3))
def test_capacity_is_never_exceeded_and_shared_equally(capacity, sizes, seed):
    memory = Memory(capacity, seed)
    for number, size in enumerate(sizes):
        memory.add(f"e{number}", [f"e{number}-{i}" for i in range(size)])
        assert len(memory) <= capacity
        quota = capacity // (number + 1)
        assert [len(group) for group in memory.groups.values()] == [min(quota, s) for s in sizes[: number + 1]]


def test_a_memory_smaller_than_the_number_of_experiences_is_refused():
    memory = Memory(1, 0)
    memory.add("a", ["a0", "a1"])
    with pytest.raises(ConfigError, match=r"method\.memory: 1 samples for 2 experiences"):
        memory.add("b", ["b0"])


def test_what_stays_is_a_prefix_of_what_was_kept_before():
    memory = Memory(8, 0)
    memory.add("a", [f"a{i}" for i in range(20)])
    before = [e.key for e in memory.groups["a"]]
    memory.add("b", [f"b{i}" for i in range(20)])
    assert [e.key for e in memory.groups["a"]] == before[:4]


def test_candidates_are_what_add_keeps_and_do_not_depend_on_the_order_of_keys():
    memory, keys = Memory(6, 3), [f"k{i}" for i in range(9)]
    memory.add("a", keys)
    chosen = memory.candidates("b", keys)
    assert memory.candidates("b", reversed(keys)) == chosen
    memory.add("b", keys, {key: {"z": torch.tensor([float(key[1:])])} for key in chosen})
    assert [(e.key, float(e.stored["z"])) for e in memory.groups["b"]] == [(k, float(k[1:])) for k in chosen]
    assert Memory(6, 4).candidates("b", keys) != chosen


def test_draws_do_not_repeat_and_follow_from_the_generator():
    memory = Memory(10, 0)
    for name in ("a", "b"):
        memory.add(name, [f"{name}{i}" for i in range(9)])
    draw = lambda seed, count: [e.key for e in memory.draw(count, torch.Generator().manual_seed(seed))]  # noqa: E731
    assert draw(1, 6) == draw(1, 6)
    assert draw(1, 6) != draw(2, 6)
    assert len(set(draw(1, 6))) == 6
    assert sorted(draw(1, 99)) == sorted(e.key for e in memory.exemplars)
    assert Memory(4, 0).draw(3, torch.Generator()) == []


def test_state_comes_back_exactly_and_draws_go_on_the_same():
    memory = Memory(5, 1)
    memory.add("b", ["b1", "b2"], {k: {"x": torch.rand(3)} for k in ("b1", "b2")})
    memory.add("a", ["a1", "a2", "a3"])
    again = Memory(5, 1)
    again.load(memory.state())
    first, second = (m.draw(4, torch.Generator().manual_seed(0)) for m in (memory, again))
    assert [e.key for e in first] == [e.key for e in second]
    assert all(torch.equal(x.stored[n], y.stored[n]) for x, y in zip(first, second, strict=True) for n in x.stored)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_every_exemplar_has_its_chance(count):
    memory = Memory(6, 0)
    memory.add("a", [f"a{i}" for i in range(6)])
    seen = {e.key for seed in range(60) for e in memory.draw(count, torch.Generator().manual_seed(seed))}
    assert len(seen) == 6
