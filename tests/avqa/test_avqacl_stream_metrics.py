"""Metrics of the benchmark's stream: the union of what was seen, forgetting per stage, and their relation to FM_stage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl_avqa.benchmark_metrics import benchmark_scores
from avcl_core.evaluation.continual import forgetting


def test_golden_stream():
    increments = {"A_1": ("a", "b"), "A_2": ("b", "c", "d", "e"), "B_1": ("f",)}
    stages = [
        {"a": True, "b": True},
        {"a": True, "b": False, "c": True, "d": True, "e": False},
        {"a": True, "b": True, "c": False, "d": False, "e": False, "f": True},
    ]
    scores = benchmark_scores(stages, increments)
    assert scores.accuracy == pytest.approx([1, 3 / 5, 3 / 6])  # b is in two increments and counts once
    assert scores.mean_accuracy == pytest.approx(0.7)
    expected = [[1, math.nan, math.nan], [0.5, 0.5, math.nan], [1, 0.25, 1]]
    np.testing.assert_allclose(scores.matrix, expected)
    assert scores.forgetting == pytest.approx([0.5, (0 + 0.25) / 2])
    assert scores.average_forgetting == pytest.approx(0.3125)


def best_so_far(matrix: np.ndarray) -> list[float]:
    """The published procedure: the best so far is updated after it was subtracted from."""
    best: dict[int, float] = {}
    found = []
    for s, row in enumerate(matrix):
        found.append([best[i] - row[i] for i in range(s)])
        best |= {i: max(best.get(i, -1.0), row[i]) for i in range(s + 1)}
    return [float(np.mean(drops)) for drops in found[1:]]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_forgetting_is_the_published_procedure_and_its_mean_fm_stage(data):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    increments = {f"A_{i}": [f"{i}/{n}" for n in range(size)] for i, size in enumerate(sizes)}
    keys = [key for members in increments.values() for key in members]
    stages = [{key: data.draw(st.booleans()) for key in keys} for _ in sizes]
    scores = benchmark_scores(stages, increments)
    assert scores.forgetting == pytest.approx(best_so_far(scores.matrix))
    assert scores.average_forgetting == pytest.approx(forgetting(scores.matrix, "FM_stage"))
    assert scores.accuracy[-1] == pytest.approx(np.mean([stages[-1][key] for key in keys]))


def test_one_increment_has_nothing_to_forget():
    scores = benchmark_scores([{"a": True}], {"A_1": ["a"]})
    assert scores.forgetting.shape == (0,)
    assert (scores.mean_accuracy, math.isnan(scores.average_forgetting)) == (1, True)


@pytest.mark.parametrize(
    ("stages", "increments", "message"),
    [
        ([{"a": True}], {"A_1": ["a"], "A_2": ["b"]}, "1 stages for 2 increments"),
        ([], {}, "0 stages for 0 increments"),
        ([{"a": True}], {"A_1": []}, "without test questions: A_1"),
        ([{"a": True}, {"b": True}], {"A_1": ["a"], "A_2": ["b"]}, "stage 2 lacks 1 answers, the first a of A_1"),
    ],
)
def test_what_has_no_score_is_refused(stages, increments, message):
    with pytest.raises(ValueError, match=message):
        benchmark_scores(stages, increments)
