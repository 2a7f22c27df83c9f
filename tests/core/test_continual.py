"""Continual-learning definitions against golden values, independent loop formulations and their own properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl_core.evaluation import continual as c

N = math.nan
GOLDEN = [[80, N, N, N], [70, 75, N, N], [74, 60, 65, N], [85, 66, 70, 60]]
SMALL = [[80, N, N], [90, 75, N], [70, 60, 65]]


def value(R, name):
    """Return the definition called ``name``."""
    return c.forgetting(R, name) if name in c.FORGETTING else c.backward_transfer(R, name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("FM", -1 / 3),
        ("FM_clamped", 3.0),
        ("FM_stage", 121 / 18),
        ("FM_first", -1 / 3),
        ("BWT", 1 / 3),
        ("BWT_step", 22 / 3),
    ],
)
def test_golden_matrix(name, expected):
    assert value(GOLDEN, name) == pytest.approx(expected, abs=1e-12)


def test_golden_averages():
    assert c.average_curve(GOLDEN) == pytest.approx([80, 72.5, 199 / 3, 70.25])
    assert c.average(GOLDEN) == 70.25
    assert c.mean_average(GOLDEN) == pytest.approx(72.2708, abs=5e-5)
    assert c.learning_accuracy(GOLDEN) == 70
    assert c.retention(GOLDEN) == pytest.approx([85 / 80, 66 / 75, 70 / 65, 1])


def test_fm_and_fm_first_differ_where_learning_went_on():
    assert c.forgetting(SMALL) == 17.5
    assert c.forgetting(SMALL, "FM_first") == 12.5


def test_defaults_are_the_headlines():
    assert c.forgetting(GOLDEN) == c.forgetting(GOLDEN, "FM")
    assert c.backward_transfer(GOLDEN) == c.backward_transfer(GOLDEN, "BWT")


def test_forward_transfer_reads_the_entries_above_the_diagonal_only():
    R = [[80, 12, 99], [70, 75, 25], [1, 2, 3]]
    assert c.forward_transfer(R, [N, 10, 20]) == pytest.approx((2 + 5) / 2)
    with pytest.raises(ValueError, match=r"FWT needs R\[2,3\]"):
        c.forward_transfer([[80, 12, N], [70, 75, N], [1, 2, 3]], [0, 10, 20])
    with pytest.raises(ValueError, match=r"reference\[3\]"):
        c.forward_transfer(R, [0, 10, N])
    with pytest.raises(ValueError, match="reference has shape"):
        c.forward_transfer(R, [10, 20])


# Independent formulations: 1-based dictionaries and plain loops, straight from the table of definitions.
def oracle(R, name):
    T = len(R)
    r = {(t, i): R[t - 1][i - 1] for t in range(1, T + 1) for i in range(1, t + 1)}
    total = 0.0
    if name == "FM_stage":
        for k in range(2, T + 1):
            inner = 0.0
            for i in range(1, k):
                inner += max(r[t, i] for t in range(i, k)) - r[k, i]
            total += inner / (k - 1)
        return total / (T - 1)
    for i in range(1, T):
        before = [r[t, i] for t in range(i, T)]
        total += {
            "FM": max(before) - r[T, i],
            "FM_clamped": max([r.get((t, i), 0.0) for t in range(1, T + 1)]) - r[T, i],
            "FM_first": r[i, i] - r[T, i],
            "BWT": r[T, i] - r[i, i],
            "BWT_step": r[T, i] - r[T - 1, i],
        }[name]
    return total / (T - 1)


@st.composite
def matrices(draw, least=2):
    size = draw(st.integers(least, 6))
    numbers = st.floats(-100, 100, allow_nan=False, width=32)
    return np.array(draw(st.lists(st.lists(numbers, min_size=size, max_size=size), min_size=size, max_size=size)))


NAMES = (*c.FORGETTING, *c.BACKWARD_TRANSFER)


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from(NAMES))
def test_agrees_with_plain_loops(R, name):
    assert value(R, name) == pytest.approx(oracle(R.tolist(), name), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(matrices(), st.sampled_from(NAMES))
def test_zero_shot_entries_are_ignored(R, name):
    hidden = R.copy()
    hidden[np.triu_indices(len(R), 1)] = N
    assert value(R, name) == value(hidden, name)
    assert c.average(R) == c.average(hidden)
    assert c.mean_average(R) == c.mean_average(hidden)


@settings(max_examples=40, deadline=None)
@given(matrices())
def test_relations_between_definitions(R):
    assert c.forgetting(R, "FM_first") == pytest.approx(-c.backward_transfer(R, "BWT"), abs=1e-9)
    assert c.forgetting(R, "FM") >= c.forgetting(R, "FM_first") - 1e-9
    assert c.forgetting(R, "FM_clamped") >= max(0.0, c.forgetting(R, "FM")) - 1e-9


@settings(max_examples=40, deadline=None)
@given(matrices(), st.floats(-50, 50), st.floats(0.1, 10))
def test_differences_do_not_see_a_shift_and_scale_with_the_metric(R, shift, scale):
    for name in ("FM", "FM_stage", "FM_first", "BWT", "BWT_step"):
        assert value(R * scale + shift, name) == pytest.approx(value(R, name) * scale, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_last_row_raises_and_names_entry_and_definition(name):
    R = np.array(GOLDEN, float)
    R[3, 1] = N
    with pytest.raises(ValueError, match=rf"{name} needs R\[4,2\], which is not evaluated"):
        value(R, name)
    with pytest.raises(ValueError, match=r"A_T needs R\[4,2\]"):
        c.average(R)


@pytest.mark.parametrize(
    ("name", "needed"), [("FM", True), ("FM_stage", True), ("FM_first", False), ("BWT", False), ("BWT_step", True)]
)
def test_only_needed_entries_are_needed(name, needed):
    R = np.array(GOLDEN, float)
    R[2, 0] = N
    if needed:
        with pytest.raises(ValueError, match=rf"{name} needs R\[3,1\]"):
            value(R, name)
    else:
        assert math.isfinite(value(R, name))


def test_clamped_counts_missing_entries_as_zero():
    R = np.array([[-5.0, N, N], [-8.0, -6.0, N], [-9.0, -7.0, -1.0]])
    assert c.forgetting(R, "FM_clamped") == pytest.approx((4 + 7) / 2)  # column 1 has no missing entry, column 2 has
    R[1, 0] = N
    assert c.forgetting(R, "FM_clamped") == pytest.approx((9 + 7) / 2)


def test_one_experience_has_averages_but_no_forgetting_and_no_transfer():
    assert (c.average([[50]]), c.mean_average([[50]]), c.learning_accuracy([[50]])) == (50, 50, 50)
    assert c.retention([[50]]) == pytest.approx([1])
    for name in NAMES:
        with pytest.raises(ValueError, match=f"{name} is undefined for T = 1"):
            value([[50]], name)
    with pytest.raises(ValueError, match="FWT is undefined for T = 1"):
        c.forward_transfer([[50]], [0])


def test_retention_is_undefined_for_scores_that_are_not_positive():
    kept = c.retention([[0, N, N], [1, -2, N], [2, -1, 4]])
    assert np.isnan(kept[:2]).all()
    assert kept[2] == 1


@pytest.mark.parametrize("R", [[1, 2], [[1, 2]], np.zeros((0, 0)), np.zeros((2, 2, 2))])
def test_other_shapes_are_refused(R):
    with pytest.raises(ValueError, match="expected \\[T, T\\]"):
        c.average(R)


def test_unknown_names_and_infinite_entries_are_refused():
    with pytest.raises(ValueError, match="unknown definition of forgetting 'BWT'; known: FM, "):
        c.forgetting(GOLDEN, "BWT")
    with pytest.raises(ValueError, match="unknown definition of backward transfer 'FM'"):
        c.backward_transfer(GOLDEN, "FM")
    with pytest.raises(ValueError, match=r"A_T needs R\[2,1\], which is inf"):
        c.average([[1, N], [math.inf, 2]])


def test_every_definition_has_a_formula():
    assert set(NAMES) <= set(c.FORMULAS)


AVQACL = [[0.9, N, N], [0.8, 0.7, N], [0.85, 0.6, 0.8]]


def test_golden_matrix_of_avqacl_moe():
    assert c.average(AVQACL) == pytest.approx(0.75)
    assert c.forgetting_curve(AVQACL) == pytest.approx([0.1, 0.075])
    found = {name: value(AVQACL, name) for name in NAMES}
    assert found == pytest.approx(
        {"FM": 0.075, "FM_clamped": 0.075, "FM_stage": 0.0875, "FM_first": 0.075, "BWT": -0.075, "BWT_step": -0.025}
    )
    assert (c.learning_accuracy(AVQACL), c.mean_average(AVQACL)) == pytest.approx((0.8, 0.8))


def test_the_forgetting_curve_ends_in_fm_and_its_mean_is_fm_stage():
    curve = c.forgetting_curve(GOLDEN)
    assert curve.shape == (3,)
    assert curve[-1] == pytest.approx(c.forgetting(GOLDEN, "FM"))
    assert curve.mean() == pytest.approx(c.forgetting(GOLDEN, "FM_stage"))
    with pytest.raises(ValueError, match=r"f\[t\] is undefined for T = 1"):
        c.forgetting_curve([[50]])
    with pytest.raises(ValueError, match=r"f\[t\] needs R\[2,1\], which is not evaluated"):
        c.forgetting_curve([[1, N], [N, 2]])


def test_the_micro_average_weighs_test_sets_by_their_size():
    assert c.micro_average(SMALL, [1, 1, 2]) == pytest.approx((70 + 60 + 2 * 65) / 4)
    assert c.micro_average(SMALL, [5, 5, 5]) == pytest.approx(c.average(SMALL))
    for counts in ([1, 1], [1, 0, 1], [1, N, 1]):
        with pytest.raises(ValueError, match="expected 3 positive numbers of samples"):
            c.micro_average(SMALL, counts)
    with pytest.raises(ValueError, match=r"micro average needs R\[2,1\]"):
        c.micro_average([[1, N], [N, 2]], [1, 1])
