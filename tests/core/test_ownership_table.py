"""The ownership table: nearest declaration, patterns, freezing, state and its refusals."""

import pytest
import torch
from torch import nn

from avcl_core.ownership import Owners, digest_tensors, matches, own


def example():
    model = nn.Module()
    model.shared = own(nn.Sequential(nn.Linear(2, 2), own(nn.Linear(2, 2), "router")), "shared")
    model.norm = own(nn.BatchNorm1d(2), "task:a")
    model.frozen = nn.Linear(2, 2).requires_grad_(False)
    return model


def test_the_nearest_declaration_counts_and_buffers_are_owned():
    rows = {name: (row.owner, row.kind) for name, row in Owners(example()).rows.items()}
    assert rows["shared.0.weight"] == ("shared", "parameter")
    assert rows["shared.1.weight"] == ("router", "parameter")
    assert rows["norm.running_mean"] == ("task:a", "buffer")
    assert not [name for name in rows if name.startswith("frozen")]


def test_a_trainable_tensor_without_an_owner_is_refused():
    model = example()
    model.orphan = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"without an owner: \['orphan.weight', 'orphan.bias'\]"):
        Owners(model)


@pytest.mark.parametrize("owner", ["", "task", "task:", "tasks:a", "Shared", "head"])
def test_owners_of_another_form_are_refused(owner):
    with pytest.raises(ValueError, match="expected shared, shared:<part>, router"):
        own(nn.Linear(1, 1), owner)


def test_patterns_are_shell_style_and_case_sensitive():
    assert matches("task:a", ("head:*", "task:*"))
    assert matches("task:a", ("*:a",))
    assert not matches("task:ab", ("task:a",))
    assert not matches("task:A", ("task:a",))


def test_exactly_the_matching_parameters_learn():
    model = example()
    Owners(model).set_trainable(("router", "task:*"))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "shared.1.weight", "shared.1.bias", "norm.weight", "norm.bias",
    }  # fmt: skip
    Owners(model).set_trainable(("shared",))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"shared.0.weight", "shared.0.bias"}


def test_state_is_a_copy_and_comes_back():
    model = example()
    owners = Owners(model)
    state = owners.state()
    with torch.no_grad():
        for row in owners.rows.values():
            row.tensor.add_(1)
    assert not torch.equal(state["norm.running_mean"], model.norm.running_mean)
    owners.load(state)
    assert torch.equal(state["norm.running_mean"], model.norm.running_mean)
    assert set(owners.state(("task:*",))) == {n for n in state if n.startswith("norm")}


def test_other_names_and_shapes_are_refused_before_anything_is_copied():
    model = example()
    owners, state = Owners(model), Owners(model).state()
    before = digest_tensors(state)
    with pytest.raises(ValueError, match=r"missing \['norm.bias'\], unexpected \['x'\]"):
        owners.load({**{n: t + 1 for n, t in state.items() if n != "norm.bias"}, "x": torch.ones(1)})
    with pytest.raises(ValueError, match=r"norm.bias: shape \(3,\), expected \(2,\)"):
        owners.load({**{n: t + 1 for n, t in state.items()}, "norm.bias": torch.ones(3)})
    assert digest_tensors(owners.state()) == before


def test_a_module_at_two_places_is_owned_once():
    model = nn.Module()
    model.one = own(nn.Linear(1, 1), "shared")
    model.two = model.one
    assert list(Owners(model).rows) == ["one.weight", "one.bias"]


def test_digests_of_frozen_tensors_name_what_changed():
    model = example()
    before = Owners(model).frozen_digests()
    with torch.no_grad():
        model.frozen.bias.add_(1e-7)
        model.norm.weight.add_(1)
    after = Owners(model).frozen_digests()
    assert [name for name in before if before[name] != after[name]] == ["frozen.bias"]


def test_a_digest_covers_names_shapes_types_and_values():
    base = {"a": torch.zeros(2, 3)}
    variants = [
        {"b": base["a"]},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3).double()},
        {"a": torch.zeros(2, 3) + 1},
    ]
    assert len({digest_tensors(v) for v in [base, *variants]}) == 5
    assert digest_tensors(base) == digest_tensors({"a": torch.zeros(3, 2).T})
