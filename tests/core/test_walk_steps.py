"""Steps of a walk: every sublayer once and in order, exchanges where they are declared, shapes known ahead of time."""

import pytest
import torch

from avcl_core.testing.check_towers import sample_input
from avcl_core.testing.toy_towers import clip, htsat, resnet, swin
from avcl_core.walk import Ctx, DualStream


def embedded(towers):
    found = {name: tower.embed(tower.frontend(sample_input(tower, 2))) for name, tower in towers.items()}
    return {n: t for n, (t, _) in found.items()}, {n: a for n, (_, a) in found.items()}


@pytest.mark.parametrize("second", ["split", "whole"])
@pytest.mark.parametrize("pairs", [[], [(0, 0)], [(1, 2)], [(0, 0), (1, 1), (2, 2), (3, 3)], [(0, 2), (3, 3)]])
def test_every_sublayer_runs_once_and_in_order(pairs, second):
    towers = {"visual": clip(), "audio": htsat()}
    walk = DualStream.lockstep(towers, pairs, second)
    names = [step.name for step in walk.steps]
    assert len(set(names)) == len(names)
    for name, tower in towers.items():
        assert tuple(sub for step in walk.steps for sub in step.advance.get(name, ())) == tower.subs


def test_whole_blocks_run_before_the_first_exchange_of_a_pair():
    towers = {"visual": clip(), "audio": htsat()}
    steps = {step.name: step for step in DualStream.lockstep(towers, [(0, 2)], "whole").steps}
    assert [sub.kind for sub in steps["0.attn"].advance["audio"]] == ["merge", "attn", "mlp"]
    assert steps["0.mlp"].advance["audio"] == ()
    assert [sub.kind for sub in steps["0.mlp"].advance["visual"]] == ["mlp"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(1, 1), (1, 2)], "must ascend strictly"),
        ([(1, 1), (2, 0)], "must ascend strictly"),
        ([(-1, 0)], "must ascend strictly"),
        ([(0, 4)], "does not exist"),
        ([(4, 0)], "does not exist"),
    ],
)
def test_bad_pairs_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        DualStream.lockstep({"visual": clip(), "audio": htsat()}, pairs)


def test_lockstep_refuses_one_tower_and_convolutional_stages():
    with pytest.raises(ValueError, match="pairs two towers"):
        DualStream.lockstep({"visual": clip()}, [])
    with pytest.raises(ValueError, match=r"visual \(resnet18\) has convolutional stages"):
        DualStream.lockstep({"visual": resnet(), "audio": htsat()}, [(0, 0)])


@pytest.mark.parametrize("make", [swin, htsat, clip, resnet])
def test_spec_tells_the_shapes_of_features(make):
    walk = DualStream.solo("it", make())
    tokens, aux = embedded(walk.towers)
    with torch.no_grad():
        features = walk.walk(tokens, aux, {}, Ctx())
    spec = walk.spec()
    final = spec.final["it"]
    assert tuple(features.final["it"].shape[2:]) == (final.tokens, final.width)
    stages = [(shape.tokens, shape.width) for shape in spec.stages["it"]]
    assert [tuple(value.shape[2:]) for value in features.stages["it"]] == stages


class Recorder:
    """A site module that keeps what it was given and adds a constant."""

    def __init__(self, reads="entry", value=0.0):
        self.reads, self.value, self.calls = reads, value, []

    def __call__(self, own, other, ctx):
        self.calls.append((own.clone(), None if other is None else other.clone()))
        return torch.full_like(own, self.value)


def test_an_entry_site_reads_what_enters_both_towers_and_an_exit_site_what_leaves_them():
    towers = {"visual": clip(), "audio": htsat()}
    walk = DualStream.lockstep(towers, [(0, 0)])
    tokens, aux = embedded(towers)
    entry, exit_ = Recorder("entry", 1.0), Recorder("exit")
    sites = {("visual", "0.attn", "add"): [entry, exit_], ("audio", "0.attn", "add"): [Recorder("entry", 5.0)]}
    with torch.no_grad():
        walk.walk(tokens, aux, sites, Ctx())
        moved = {
            name: tokens[name] + towers[name].run(towers[name].subs[0], tokens[name], aux[name]) for name in towers
        }
    assert torch.equal(entry.calls[0][0], tokens["visual"])
    assert torch.equal(entry.calls[0][1], tokens["audio"])
    # Residuals of the step are added after all its sites have read, so the exit sees the sublayers' result alone.
    assert torch.equal(exit_.calls[0][0], moved["visual"])
    assert torch.equal(exit_.calls[0][1], moved["audio"])


def test_an_input_site_acts_after_the_merge_and_before_the_attention():
    tower = htsat()
    walk = DualStream.solo("audio", tower)
    tokens, aux = embedded({"audio": tower})
    first = Recorder(value=0.5)
    after = Recorder("entry")
    with torch.no_grad():
        walk.walk(tokens, aux, {("audio", "2.attn", "input"): [first], ("audio", "2.attn", "add"): [after]}, Ctx())
    grid = next(sub for sub in tower.subs if sub.kind == "merge").grid
    assert first.calls[0][0].shape[1] == grid[0] * grid[1]
    assert torch.allclose(after.calls[0][0], first.calls[0][0] + 0.5)


def test_two_modules_cannot_replace_one_mlp():
    tower = clip()
    tokens, aux = embedded({"visual": tower})
    with pytest.raises(ValueError, match="one module at most can replace an MLP, got 2"):
        DualStream.solo("visual", tower).walk(
            tokens, aux, {("visual", "0.mlp", "swap"): [Recorder(), Recorder()]}, Ctx()
        )


def test_a_context_repeats_slots_per_frame_and_shares_the_rest():
    ctx = Ctx(("a", "b"))
    inner = ctx.per_frame(2)
    assert inner.slots == ("a", "a", "b", "b")
    inner.aux["x"], inner.memo["y"] = torch.ones(()), 1
    assert set(ctx.aux) == {"x"}
    assert ctx.memo == {"y": 1}
