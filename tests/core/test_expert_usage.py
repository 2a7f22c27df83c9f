"""Usage statistics against a direct computation: means, counts, entropy, agreement, groups, ranks, and the file."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from avcl_core.collective import Collective
from avcl_core.errors import IntegrityError
from avcl_core.evaluation.usage import UsageCounter
from avcl_core.evaluation.usage_file import add_usage, prune_usage, read_usage, usage_file
from avcl_core.trace import Trace

SITES = ("visual 0 0 attn", "audio 0 0 attn", "visual 2 1 mlp", "audio 2 1 mlp")
KEYS = tuple(f"k{i}" for i in range(7))
GROUPS = {"k0": ("dog",), "k1": ("dog", "bell"), "k2": (), "k3": ("bell",), "k4": ("dog",), "k5": (), "k6": ("bell",)}
FRAMES = 3


def told(seed=0, experts=3):
    """Site → name → values of all samples."""
    random = torch.Generator().manual_seed(seed)
    rows = len(KEYS) * FRAMES
    found = {}
    for site in SITES:
        gates = torch.randn(rows, experts, generator=random).mul(2).softmax(-1)
        found[site] = {"gates": gates, "residual": torch.rand(rows, generator=random)}
    return found


def trace_of(found, samples):
    """The trace of some samples by index."""
    rows = torch.tensor([i * FRAMES + f for i in samples for f in range(FRAMES)])
    trace = Trace()
    trace.frames = FRAMES
    for site, values in found.items():
        for name, value in values.items():
            trace.put(site, name, value[rows])
        trace.keep(site, "experts", ["cross 0", "cross 1", "uni 0"])
        trace.keep(site, "output_gates", torch.tensor([0.5, 0.0, -0.25]))
    return trace


def count(found, *batches, groups=GROUPS):
    """A counter that saw these batches of sample indices."""
    counter = UsageCounter(groups)
    for samples in batches:
        counter.add(trace_of(found, samples), [KEYS[i] for i in samples])
    return counter


class Ranks(Collective):
    """Joins what other counters would send."""

    def __init__(self, *others):
        self.others = others

    def join(self, value):
        return [value, *((c.columns, c._read(), c._constants()) for c in self.others)]


def test_statistics_equal_a_direct_computation():
    found = told()
    usage = count(found, (0, 1, 2), (3, 4, 5), (6,)).usage(Collective())
    assert list(usage["sites"]) == list(SITES)
    assert usage["samples"] == 7
    for site, values in found.items():
        gates = values["gates"].double().numpy()
        entry = usage["sites"][site]
        entropy = float(-(gates * np.log(gates)).sum(1).mean())
        assert entry["rows"] == 21
        assert entry["gates"] == pytest.approx(gates.mean(0).tolist(), rel=1e-5)
        assert entry["first"] == np.bincount(gates.argmax(1), minlength=3).tolist()
        assert entry["entropy"] == pytest.approx(entropy, rel=1e-5)
        assert entry["evenness"] == pytest.approx(entropy / math.log(3), rel=1e-5)
        assert entry["residual"] == pytest.approx(float(values["residual"].double().mean()), rel=1e-5)
        assert entry["constants"] == {"experts": ["cross 0", "cross 1", "uni 0"], "output_gates": [0.5, 0.0, -0.25]}


def test_agreement_is_between_towers_at_one_place_beside_its_chance():
    found = told()
    found["audio 2 1 mlp"]["gates"] = found["visual 2 1 mlp"]["gates"]
    entries = count(found, (0, 1, 2, 3, 4, 5, 6)).usage(Collective())["agreement"]
    assert [e["place"] for e in entries] == ["0 0 attn", "2 1 mlp"]
    audio, visual = (found[f"{tower} 0 0 attn"]["gates"].argmax(1).numpy() for tower in ("audio", "visual"))
    shares = [np.bincount(side, minlength=3) / 21 for side in (audio, visual)]
    assert entries[0]["towers"] == ["audio", "visual"]
    assert entries[0]["agreement"] == pytest.approx((audio == visual).mean(), rel=1e-5)
    assert entries[0]["chance"] == pytest.approx(float(shares[0] @ shares[1]), rel=1e-5)
    assert entries[0]["agreement"] != entries[0]["chance"]
    assert entries[1]["agreement"] == 1.0


def test_sites_of_one_tower_have_nobody_to_agree_with():
    found = {site: values for site, values in told().items() if site.startswith("audio")}
    assert count(found, (0, 1)).usage(Collective())["agreement"] == []


def test_samples_count_for_each_of_their_groups():
    found = told()
    usage = count(found, (0, 1, 2, 3), (4, 5, 6)).usage(Collective())
    assert {name: entry["samples"] for name, entry in usage["groups"].items()} == {"dog": 3, "bell": 3}
    for name, members in (("dog", (0, 1, 4)), ("bell", (1, 3, 6))):
        rows = [i * FRAMES + f for i in members for f in range(FRAMES)]
        gates = torch.cat([found[site]["gates"][rows] for site in SITES if site.startswith("audio")]).double()
        entry = usage["groups"][name]["total"]["audio"]
        assert (entry["sites"], entry["rows"]) == (2, 18)
        assert entry["experts"] == ["cross 0", "cross 1", "uni 0"]
        assert entry["gates"] == pytest.approx(gates.mean(0).tolist(), rel=1e-5)
        assert entry["first"] == torch.bincount(gates.argmax(1), minlength=3).tolist()
    assert usage["total"]["visual"]["rows"] == 42


def test_ranks_and_batches_make_no_difference():
    found = told()
    one = count(found, range(7)).usage(Collective())
    assert count(found, (0,), (1, 2, 3), (4, 5), (6,)).usage(Collective()) == one
    first, second = count(found, (0, 2), (4, 6)), count(found, (1, 3), (5,))
    assert first.usage(Ranks(second)) == one
    # A rank may have no samples at all.
    assert UsageCounter(GROUPS).usage(Ranks(first, second)) == one
    assert first.usage(Ranks(second, UsageCounter(GROUPS))) == one


def test_rows_may_be_samples_and_names_may_differ_between_sites():
    trace = Trace()
    trace.frames = FRAMES
    trace.put("text", "gates", torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    trace.put("clip", "gates", torch.tensor([[0.25, 0.75], [0.5, 0.5]]))  # labels without a place face nobody
    trace.put("audio 0", "gates", torch.ones(6, 1))
    trace.put("audio 0", "saturation", torch.arange(6.0))
    counter = UsageCounter({"a": ("x",), "b": ()})
    counter.add(trace, ("a", "b"))
    usage = counter.usage(Collective())
    assert usage["sites"]["text"]["gates"] == [0.375, 0.625]
    assert usage["sites"]["audio 0"]["saturation"] == 2.5
    assert usage["sites"]["audio 0"]["evenness"] is None  # one expert has no choice
    assert usage["groups"]["x"]["total"]["text"]["gates"] == [0.25, 0.75]
    assert usage["groups"]["x"]["total"]["audio"]["saturation"] == 1.0
    assert usage["agreement"] == []


def test_certain_gates_have_no_entropy_and_numbers_that_are_not_finite_stay_visible():
    trace = Trace()
    trace.put("audio 0", "gates", torch.tensor([[1.0, 0.0]]))
    trace.put("audio 0", "residual", torch.tensor([float("inf")]))
    counter = UsageCounter({"a": ()})
    counter.add(trace, ("a",))
    entry = counter.usage(Collective())["sites"]["audio 0"]
    assert (entry["entropy"], entry["residual"]) == (0.0, "Infinity")


def test_a_model_that_diverged_can_be_evaluated():
    trace = Trace()
    for tower in ("audio", "visual"):
        trace.put(f"{tower} 0", "gates", torch.full((1, 2), torch.nan))
    counter = UsageCounter({"a": ("x",)})
    counter.add(trace, ("a",))
    usage = counter.usage(Collective())
    assert usage["sites"]["audio 0"] == {
        "rows": 1, "gates": ["NaN"] * 2, "first": ["NaN"] * 2, "entropy": "NaN", "evenness": "NaN"
    }  # fmt: skip
    assert (usage["agreement"][0]["rows"], usage["agreement"][0]["agreement"]) == (1, "NaN")
    json.dumps(usage, allow_nan=False)


def test_equal_weights_share_the_first_place():
    trace = Trace()
    trace.put("audio 0", "gates", torch.tensor([[0.4, 0.2, 0.4], [0.1, 0.1, 0.8]]))
    trace.put("visual 0", "gates", torch.full((2, 3), 1 / 3))
    counter = UsageCounter({"a": (), "b": ()})
    counter.add(trace, ("a", "b"))
    usage = counter.usage(Collective())
    assert usage["sites"]["audio 0"]["first"] == [0.5, 0, 1.5]
    assert usage["sites"]["visual 0"]["first"] == pytest.approx([2 / 3] * 3, rel=1e-5)
    assert usage["agreement"][0]["agreement"] == usage["agreement"][0]["chance"] == pytest.approx(1 / 3, rel=1e-5)


def test_nothing_told_is_nothing_to_report():
    counter = UsageCounter(GROUPS)
    counter.add(Trace(), KEYS)
    assert counter.usage(Collective()) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(5, 2), r"gates.*\(5, 2\).*2 rows \(samples\) or 6 rows|expected \[rows, experts\] with 2 rows"),
        (torch.ones(6), r"expected \[rows, experts\]"),
    ],
)
def test_values_of_another_shape_are_refused(value, message):
    trace = Trace()
    trace.frames = 3
    trace.put("audio 0", "gates", value)
    with pytest.raises(ValueError, match=message):
        UsageCounter({"a": (), "b": ()}).add(trace, ("a", "b"))


def test_a_site_that_changes_what_it_tells_is_refused():
    counter = count(told(), (0, 1))
    trace = trace_of(told(), (2,))
    del trace.observed[SITES[0]]["residual"]
    with pytest.raises(ValueError, match=r"visual 0 0 attn.*but told"):
        counter.add(trace, KEYS[2:3])


def test_a_label_is_told_once():
    trace = Trace()
    trace.put("audio 0", "gates", torch.ones(1, 1))
    with pytest.raises(ValueError, match="'audio 0' tells 'gates' twice"):
        trace.put("audio 0", "gates", torch.ones(1, 1))


def test_copies_that_run_on_some_rows_tell_of_them_in_place():
    trace = Trace()
    for rows, value in ((torch.tensor([2, 0]), 1.0), (torch.tensor([1]), 2.0)):
        part = trace.of(rows, 4)
        part.put("audio 0", "residual", torch.full((len(rows),), value))
        part.keep("audio 0", "experts", ["a"])
    assert trace.observed["audio 0"]["residual"].tolist()[:3] == [1.0, 2.0, 1.0]
    assert trace.observed["audio 0"]["residual"][3].isnan()  # a row that no copy took
    assert trace.constants == {"audio 0": {"experts": ["a"]}}


def test_what_is_told_holds_no_graph():
    trace = Trace()
    trace.put("audio 0", "residual", torch.ones(1, requires_grad=True) * 2)
    assert not trace.observed["audio 0"]["residual"].requires_grad


# ---------------------------------------------------------------- the file
def test_the_file_comes_back_and_an_entry_is_replaced(tmp_path):
    path, usage = usage_file(tmp_path), count(told(), range(7)).usage(Collective())
    add_usage(path, "one", "t", usage)
    add_usage(path, "two", "t", usage)
    once = path.read_bytes()
    add_usage(path, "one", "t", usage)
    assert path.read_bytes() == once
    add_usage(path, "one", "t", {**usage, "samples": 8})
    assert read_usage(path)["one"]["t"].samples == 8
    add_usage(path, "one", "t", usage)
    assert json.loads(once) == {"one": {"t": usage}, "two": {"t": usage}}
    entry = read_usage(path)["two"]["t"]
    assert entry.sites["audio 0 0 attn"].gates == usage["sites"]["audio 0 0 attn"]["gates"]
    assert entry.sites["audio 0 0 attn"].number("residual") == usage["sites"]["audio 0 0 attn"]["residual"]
    assert entry.groups["dog"].total["visual"].experts == ["cross 0", "cross 1", "uni 0"]


def test_entries_without_a_result_are_dropped(tmp_path):
    path, usage = usage_file(tmp_path), count(told(), range(7)).usage(Collective())
    for row, test in (("one", "t"), ("two", "t"), ("two", "u")):
        add_usage(path, row, test, usage)
    prune_usage(path, {("one", "t"), ("two", "u")})
    assert {row: list(tests) for row, tests in read_usage(path).items()} == {"one": ["t"], "two": ["u"]}
    prune_usage(path, set())
    assert not path.exists()
    prune_usage(path, set())  # a run whose model tells nothing
    assert read_usage(path) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"row": 3}', '{"row": {"t": {"samples": 1}}}'])
def test_a_damaged_file_is_refused_and_named(text, tmp_path):
    path = usage_file(tmp_path)
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(IntegrityError, match=r"expert_usage\.json"):
        read_usage(path)
