"""A walk is its encoder: for every tower, alone and in lock-step, with closed gates, and for mixed slots."""

import pytest
import torch
from torch import nn

import shared_backbones
from avcl_core.sites import Bank
from avcl_core.testing.check_towers import check_tower, sample_input
from avcl_core.testing.toy_towers import clip, htsat, resnet, stir, swin
from avcl_core.walk import Ctx, DualStream

TOYS = {
    "swin": swin, "htsat": htsat, "clip": clip, "resnet": resnet,
    "beats": lambda: stir(shared_backbones.create("beats", size="tiny", pretrained=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", shared_backbones.names())
def test_every_tower_keeps_the_contract(name):
    check_tower(stir(shared_backbones.create(name, size="tiny", pretrained=False, seed=0)))


@pytest.mark.parametrize("block", ["split", "whole"])
def test_lockstep_equals_both_encoders_bit_for_bit(block):
    towers = {"visual": swin(), "audio": htsat()}
    walk = DualStream.lockstep(towers, [(0, 0), (2, 2), (3, 3)], block)
    raw = {name: sample_input(tower, 2) for name, tower in towers.items()}
    with torch.no_grad():
        embedded = {name: tower.embed(tower.frontend(raw[name])) for name, tower in towers.items()}
        found = walk.walk({n: e[0] for n, e in embedded.items()}, {n: e[1] for n, e in embedded.items()}, {}, Ctx())
    for name, tower in towers.items():
        assert torch.equal(found.final[name].squeeze(1), tower.encode(raw[name]))


class Gate(nn.Module):
    """A residual with a gate that is closed at first."""

    reads = "entry"

    def __init__(self, width, reads="entry"):
        super().__init__()
        self.reads, self.map, self.gate = reads, nn.Linear(width, width), nn.Parameter(torch.zeros(()))

    def forward(self, own, other, ctx):
        return self.gate * self.map(own)


def walked(name, tower, sites, ctx, count=3):
    tokens, aux = tower.embed(tower.frontend(sample_input(tower, count)))
    return DualStream.solo(name, tower).walk({name: tokens}, {name: aux}, sites, ctx).final[name]


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("reads", ["entry", "exit"])
def test_closed_gates_equal_no_site_bit_for_bit_and_open_ones_do_not(name, reads):
    tower = TOYS[name]()
    walk = DualStream.solo(name, tower)
    shapes = walk.shapes()[name]
    steps = [s.name for s in walk.steps if not any(sub.kind == "stage" and reads == "entry" for sub in s.advance[name])]
    gates = {step: Gate(shapes[step].width, reads) for step in steps}
    sites = {(name, step, "add"): [gate] for step, gate in gates.items()}
    with torch.no_grad():
        plain, closed = walked(name, tower, {}, Ctx()), walked(name, tower, sites, Ctx())
        assert torch.equal(plain, closed)
        for gate in gates.values():
            gate.gate.fill_(0.1)
        if gates:
            assert not torch.equal(plain, walked(name, tower, sites, Ctx()))
            assert not torch.equal(plain, walked(name, tower, sites, Ctx(without=frozenset({"prefix"}))))
            assert torch.equal(plain, walked(name, tower, sites, Ctx(without=frozenset({"add"}))))


class Rows(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(2, 2, width))

    def forward(self, own, other, ctx):
        assert ctx.slots == ctx.slots[:1] * len(own)
        keys, values = self.rows[:, None].expand(-1, len(own), -1, -1)
        return keys, values


class Swap(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, own, other, ctx):
        return self.map(own)


@pytest.mark.parametrize("name", ["swin", "htsat", "clip", "beats"])
def test_mixed_slots_equal_separate_slots(name):
    torch.manual_seed(0)
    tower = TOYS[name]()
    width = DualStream.solo(name, tower).shapes()[name]["1.attn"].width
    banks = {
        ("1.attn", "prefix"): Bank(lambda: Rows(width), "task"),
        ("1.mlp", "swap"): Bank(lambda: Swap(width), "expert"),
        ("0.mlp", "add"): Bank(lambda: Swap(width), "task", reads="exit"),
    }
    for bank in banks.values():
        for slot in ("a", "b"):
            bank.grow(slot)
    sites = {(name, step, place): [bank] for (step, place), bank in banks.items()}
    with torch.no_grad():
        mixed = walked(name, tower, sites, Ctx(("a", "b", "a")))
        for slot, rows in (("a", [0, 2]), ("b", [1])):
            alone = walked(name, tower, sites, Ctx((slot,) * 3))
            assert torch.allclose(mixed[rows], alone[rows], atol=1e-5)
            assert not torch.allclose(
                mixed[rows], walked(name, tower, sites, Ctx(("ab".replace(slot, ""),) * 3))[rows], atol=1e-3
            )
