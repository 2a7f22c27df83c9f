"""Pools of prompts, components and centres: what is chosen, by what, per sample, and what learns from it."""

import pytest
import torch
import torch.nn.functional as F

from avcl_core.errors import RunError
from avcl_core.prompts.centres import Centres
from avcl_core.prompts.components import Components, mix, orthogonalise, orthogonality
from avcl_core.prompts.kmeans import kmeans
from avcl_core.prompts.pool import PromptPool, reduce, split
from avcl_core.trace import Trace
from avcl_core.walk import Ctx

WIDTHS = (4, 6)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pool(**options):
    torch.manual_seed(0)
    return PromptPool("visual pool", 8, WIDTHS, 3, **({"size": 4, "top_k": 2} | options))


def naive(found, tokens, frames):
    """Rows by loops: sample → block → (keys, values), in the order of the cosines."""
    result = []
    for sample in tokens.split(frames):
        query = sample.mean((0, 1))
        cosines = [float(query @ key / (query.norm() * key.norm())) for key in found.keys.detach()]
        chosen = sorted(range(len(cosines)), key=lambda i: -cosines[i])[: found.top_k]
        result.append([[torch.cat([rows[kind][i] for i in chosen]) for kind in (0, 1)] for rows in found.rows])
    return result


def test_the_chosen_rows_are_those_of_loops():
    found, tokens = pool(), drawn(10, 5, 8)
    pairs = split(found(tokens, None, Ctx(frames=2)), WIDTHS, 2 * 3)
    expected = naive(found, tokens, 2)
    for block, (keys, values) in enumerate(pairs):
        assert keys.shape == values.shape == (10, 6, WIDTHS[block])
        for row in range(10):
            assert torch.equal(keys[row], expected[row // 2][block][0])
            assert torch.equal(values[row], expected[row // 2][block][1])
    assert len({tuple(rows[0][0].flatten().tolist()) for rows in expected}) > 1  # samples do choose differently


def test_the_choice_does_not_depend_on_the_batch():
    found, tokens = pool(top_k=1), drawn(12, 5, 8)
    whole = found(tokens, None, Ctx(frames=2))
    for sample in range(6):
        rows = slice(2 * sample, 2 * sample + 2)
        assert torch.equal(found(tokens[rows], None, Ctx(frames=2)), whole[rows])


def test_near_keys_are_told_apart_in_mixed_precision():
    """Cosines of 0.9998 and 0.99995 are the same number in bfloat16."""
    found, query = pool(size=2, top_k=1), drawn(1, 1, 8)
    away = drawn(8, seed=4)
    for nearest in (0, 1):
        with torch.no_grad():
            found.keys[nearest].copy_(query[0, 0] + 0.01 * away)
            found.keys[1 - nearest].copy_(query[0, 0] + 0.02 * away)
        with torch.autocast("cpu", torch.bfloat16):
            keys, _ = split(found(query, None, Ctx()), WIDTHS, 3)[0]
        assert torch.equal(keys[0], found.rows[0][0, nearest])


def test_tied_rows_are_keys_and_values():
    found = pool(tied=True)
    for keys, values in split(found(drawn(2, 5, 8), None, Ctx()), WIDTHS, 6):
        assert torch.equal(keys, values)
    assert [tuple(rows.shape) for rows in found.rows] == [(1, 4, 3, 4), (1, 4, 3, 6)]


def test_the_pull_is_one_minus_the_cosines_and_trains_keys_alone():
    found, tokens = pool(pull=0.3), drawn(6, 5, 8).requires_grad_()
    ctx = Ctx(frames=2, training=True)
    found(tokens, None, ctx)
    queries = F.normalize(tokens.unflatten(0, (3, 2)).mean((1, 2)), dim=1)
    cosines = (queries @ F.normalize(found.keys, dim=1).T).sort(1, descending=True).values[:, :2]
    assert ctx.aux.keys() == {"visual pool pull"}
    torch.testing.assert_close(ctx.aux["visual pool pull"], 0.3 * (2 - cosines.sum(1)).mean())
    ctx.aux["visual pool pull"].backward()
    assert float(found.keys.grad.abs().sum()) > 0
    assert tokens.grad is None
    assert all(rows.grad is None for rows in found.rows)


def test_only_training_pulls():
    ctx = Ctx()
    pool()(drawn(2, 5, 8), None, ctx)
    assert ctx.aux == {}
    ctx = Ctx(training=True)
    pool(pull=0.0)(drawn(2, 5, 8), None, ctx)
    assert ctx.aux == {}


def test_one_entry_chooses_nothing_and_may_have_a_key():
    plain, keyed = pool(size=1, top_k=1), pool(size=1, top_k=1, keyed=True)
    assert plain.keys is None
    ctx, trace = Ctx(training=True), Trace()
    for found in (plain, keyed):
        out = found(drawn(3, 5, 8), None, Ctx(trace=trace))
        for rows, (keys, _) in zip(found.rows, split(out, WIDTHS, 3), strict=True):
            assert torch.equal(keys, rows[0].expand(3, -1, -1))
    assert trace.observed == {}
    keyed(drawn(3, 5, 8), None, ctx)
    assert float(ctx.aux["visual pool pull"]) > 0
    with pytest.raises(ValueError, match="without keys"):
        pool(keyed=False)


def test_shares_are_told():
    trace = Trace()
    pool()(drawn(6, 5, 8), None, Ctx(frames=2, trace=trace))
    gates = trace.observed["visual pool"]["gates"]
    assert gates.shape == (6, 4)
    assert torch.equal(gates.sort(1).values, torch.tensor([0, 0, 0.5, 0.5]).expand(6, -1))
    assert torch.equal(gates[0], gates[1])
    assert trace.constants["visual pool"]["experts"] == [f"entry {i}" for i in range(4)]


def test_queries():
    tokens = drawn(4, 3, 8)
    both = tokens.reshape(2, 6, 8)
    assert torch.allclose(reduce(tokens, 2, "mean"), both.mean(1))
    assert torch.equal(reduce(tokens, 2, "max"), both.amax(1))
    assert torch.allclose(reduce(tokens, 2, "mean_max"), both.amax(1) + both.mean(1))
    assert torch.allclose(reduce(tokens, 2, "cls"), tokens.reshape(2, 2, 3, 8)[:, :, 0].mean(1))


@pytest.mark.parametrize(("how", "low", "high"), [("zero", 0, 0), ("uniform", 0.9, 1)])
def test_first_values(how, low, high):
    found = PromptPool("x", 64, (64,), 8, 4, init=how, key_init=how)
    for value in (found.rows[0], found.keys):
        assert low <= float(value.abs().max()) <= high


# ---------------------------------------------------------------------- components
def sets(*counts, width=5):
    torch.manual_seed(1)
    return [Components(count, 4, (width, 7), 9) for count in counts]


def test_prompts_are_sums_over_the_components_of_all_tasks():
    known, query = sets(2, 3), drawn(6, 9)
    with torch.no_grad():
        for part in known:
            for parameter in part.parameters():
                parameter.add_(0.5 * drawn(*parameter.shape, seed=3))
    for block, width in enumerate((5, 7)):
        prompts, weights = mix(known, query, block)
        assert prompts.shape == (6, 4, width)
        for row in range(6):
            total, number = torch.zeros(4, width), 0
            for part in known:
                for rows, key, attention in zip(*(kind[block] for kind in part.kinds()), strict=True):
                    weight = F.cosine_similarity(query[row] * attention, key, dim=0)
                    torch.testing.assert_close(weights[row, number], weight)
                    total, number = total + weight * rows, number + 1
            torch.testing.assert_close(prompts[row], total)


def test_weights_and_penalty_of_components_are_those_of_full_precision():
    known, query = sets(2, 3), drawn(6, 9)
    _, expected = mix(known, query, 0)
    penalty = float(orthogonality(known).detach())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mix(known, query, 0)[1], expected)
        assert mix(known, query.bfloat16(), 0)[1].dtype == torch.float32
        assert float(orthogonality(known).detach()) == penalty


def test_new_components_are_orthonormal_and_stay_so_beside_learnt_ones():
    old, new = sets(2, 3)
    assert float(orthogonality([old])) < 1e-12
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(drawn(*parameter.shape, seed=5))
    before = [parameter.clone() for parameter in old.parameters()]
    orthogonalise(new, [old])
    assert all(torch.equal(a, b) for a, b in zip(before, old.parameters(), strict=True))
    for mine, others in zip(new.parameters(), old.parameters(), strict=True):
        one, two = mine.flatten(1), others.flatten(1)
        torch.testing.assert_close(one @ one.T, torch.eye(3), atol=1e-5, rtol=0)
        assert float((one @ two.T).abs().max()) < 1e-5
    again = [parameter.clone() for parameter in new.parameters()]
    orthogonalise(new, [old])
    for one, two in zip(again, new.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_the_penalty_is_that_of_all_components_together():
    known, total = sets(2, 2), 0.0
    with torch.no_grad():
        known[1].keys[0].copy_(known[0].keys[0])
    flat = torch.cat([known[0].keys[0], known[1].keys[0]])
    for index in range(2):
        for kind in zip(*(part.kinds() for part in known), strict=True):
            joined = torch.cat([part[index].flatten(1) for part in kind])
            total += float((joined @ joined.T - torch.eye(4)).square().mean())
    assert float((flat @ flat.T - torch.eye(4)).square().mean()) == pytest.approx(4 / 16, abs=1e-5)
    assert float(orthogonality(known)) == pytest.approx(total, rel=1e-5)


def test_more_components_than_dimensions_are_refused():
    with pytest.raises(ValueError, match="10 components cannot be orthogonal in 9 dimensions"):
        Components(10, 4, (5,), 9)
    old, new = sets(5, 5)
    with pytest.raises(ValueError, match="10 components cannot be orthogonal in 9 dimensions"):
        orthogonalise(new, [old])


# ---------------------------------------------------------------------- centres
def clusters(count=3, each=20, width=6, spread=0.05):
    middle = 4 * drawn(count, width, seed=2)
    return middle, torch.cat([m + spread * drawn(each, width, seed=10 + i) for i, m in enumerate(middle)])


def test_kmeans_finds_clusters_and_is_the_same_every_time():
    middle, points = clusters()
    centres = kmeans(points, 3, "a")
    assert torch.equal(centres, kmeans(points, 3, "a"))
    nearest = torch.cdist(middle, centres).argmin(1)
    assert sorted(nearest.tolist()) == [0, 1, 2]
    for index in range(3):
        torch.testing.assert_close(centres[nearest[index]], points[20 * index : 20 * index + 20].mean(0))


def test_kmeans_of_few_points():
    assert torch.equal(kmeans(torch.ones(4, 2), 3, "a"), torch.ones(3, 2))
    found = kmeans(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), 3, "a")
    assert {tuple(row) for row in found.tolist()} == {(0.0, 0.0), (2.0, 0.0)}
    with pytest.raises(ValueError, match="no training samples"):
        kmeans(torch.zeros(0, 2), 3, "a")


def test_the_nearest_centre_of_each_metric():
    centres = Centres(2, 1)
    for slot in ("far", "flat", "unknown"):
        centres.grow(slot)
    with pytest.raises(RunError, match="no task has centres"):
        centres.nearest(torch.zeros(1, 2))
    centres.fit("far", [torch.tensor([[3.0, 3.0]])])
    centres.fit("flat", [torch.tensor([[4.2, 0.0]]), torch.tensor([[3.8, 0.0]])])
    # The centre of the second is (4, 0).
    assert centres.nearest(torch.tensor([[0.0, 0.0], [3.0, 2.0]])) == ("flat", "far")
    assert float(centres.slots["flat"].samples) == 2
    # L1: 2.0 against 2.4; by L2, 1.81 against 1.70, it would be the other one.
    assert centres.nearest(torch.tensor([[4.2, 1.8]])) == ("flat",)
    assert centres.nearest(torch.tensor([[3.0, 0.9]])) == ("flat",)
    centres.metric = "cosine"
    assert centres.nearest(torch.tensor([[0.1, 0.1], [0.5, 0.1]])) == ("far", "flat")
    centres.fit("far", [torch.tensor([[3.0, 0.06]])])
    with torch.autocast("cpu", torch.bfloat16):
        assert centres.nearest(torch.tensor([[3.0, 0.02], [3.0, 0.05]])) == ("flat", "far")


def test_centres_of_one_slot_are_all_its_own():
    centres = Centres(6, 2)
    middle, points = clusters(4)
    for index, slot in enumerate(("a", "b")):
        centres.grow(slot)
        centres.fit(slot, points[40 * index : 40 * index + 40].split(7))
    assert centres.nearest(middle) == ("a", "a", "b", "b")
    before = centres.slots["a"].centres.clone()
    centres.grow("a")
    assert torch.equal(centres.slots["a"].centres, before)
