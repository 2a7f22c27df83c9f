"""Banks: one copy per slot, chosen per row, with owners and warm starts."""

import pytest
import torch
from torch import nn

from avcl_core.ownership import Owners
from avcl_core.sites import Bank
from avcl_core.walk import Ctx


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.randn(()))

    def forward(self, own, other, ctx):
        return own * self.value + (0 if other is None else other)


class Pairs(Scale):
    def forward(self, own, other, ctx):
        return own * self.value, own + self.value


def bank_of(kind=Scale, slots=("a", "b")):
    torch.manual_seed(0)
    bank = Bank(kind, "task")
    for slot in slots:
        bank.grow(slot)
    return bank


def test_rows_get_their_slot_in_their_order():
    bank, own, other = bank_of(), torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    slots = ("b", "a", "a", "b", "a")
    mixed = bank(own, other, Ctx(slots))
    for row, slot in enumerate(slots):
        assert torch.equal(mixed[row], bank.slots[slot](own[row : row + 1], other[row : row + 1], Ctx())[0])


def test_key_and_value_rows_stay_a_pair():
    bank, own = bank_of(Pairs), torch.randn(3, 2, 3)
    keys, values = bank(own, None, Ctx(("b", "a", "b")))
    assert torch.equal(keys[1], own[1] * bank.slots["a"].value)
    assert torch.equal(values[2], own[2] + bank.slots["b"].value)


def test_a_bank_inside_a_copy_gets_the_slots_of_its_rows():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = bank_of()

        def forward(self, own, other, ctx):
            return self.inner(own, other, ctx)

    bank = bank_of(Outer)
    own = torch.randn(3, 1, 1)
    assert bank(own, None, Ctx(("b", "a", "b"))).shape == own.shape


def test_copies_have_owners_of_their_own_also_after_a_warm_start():
    bank = bank_of(slots=("a",))
    bank.grow("b", like="a")
    assert torch.equal(bank.slots["a"].value, bank.slots["b"].value)
    model = nn.ModuleDict({"bank": bank})
    assert {row.owner for row in Owners(model).rows.values()} == {"task:a", "task:b"}


def test_growing_again_keeps_the_copy():
    bank = bank_of()
    before = bank.slots["a"]
    bank.grow("a")
    assert bank.slots["a"] is before


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (None, "2 rows, None slots"),
        (("a",), "2 rows, 1 slots"),
        (("a", "c"), r"slots \['c'\] were never grown; have \['a', 'b'\]"),
    ],
)
def test_wrong_slots_are_refused(slots, message):
    with pytest.raises(ValueError, match=message):
        bank_of()(torch.randn(2, 1, 1), None, Ctx(slots))
