"""Segment accuracy against a count by hand, and AVE's trivial predictors on the real labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avcl_ave.data import segment_labels
from avcl_ave.metrics import class_accuracies, relevance_accuracy, segment_accuracy

rows = st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=6)


@given(rows, st.data())
def test_accuracies_equal_counts_by_hand(target, data):
    pred = data.draw(
        st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=len(target), max_size=len(target))
    )
    pairs = [(p, t) for ps, ts in zip(pred, target, strict=True) for p, t in zip(ps, ts, strict=True)]
    assert segment_accuracy(pred, target) == pytest.approx(sum(p == t for p, t in pairs) / len(pairs))
    assert relevance_accuracy(pred, target, 4) == pytest.approx(
        sum((p == 4) == (t == 4) for p, t in pairs) / len(pairs)
    )
    by_class = class_accuracies(pred, target, ["a", "b", "c", "d", "background"])
    for index, name in enumerate(["a", "b", "c", "d", "background"]):
        hits = [p == t for p, t in pairs if t == index]
        assert by_class.get(name) == (pytest.approx(sum(hits) / len(hits)) if hits else None)


@pytest.mark.parametrize(
    ("pred", "target"),
    [([[1, 2]], [[1, 2, 3]]), ([1, 2], [1, 2]), (np.zeros((0, 10), int), np.zeros((0, 10), int)), ([[0.5]], [[1]])],
)
def test_unusable_arrays_are_refused(pred, target):
    with pytest.raises(ValueError, match="expected"):
        segment_accuracy(pred, target)


TRIVIAL = {"train": (16.86, 83.14, 3.99), "val": (18.21, 81.79, 4.18), "test": (17.79, 82.21, 3.48)}


@pytest.mark.realdata
@pytest.mark.parametrize("split", TRIVIAL)
def test_trivial_predictors_on_ave(real_data, split):
    folder = real_data / "annotations" / "ave"
    _, labels = segment_labels(folder / "Annotations.txt", folder / f"{split}Set.txt")
    # The degenerate training row has no foreground second; its class does not matter for any of the three.
    everywhere = np.repeat(labels.min(1, keepdims=True), 10, axis=1)
    found = [
        segment_accuracy(pred, labels) for pred in (np.full_like(labels, 28), everywhere % 28, np.zeros_like(labels))
    ]
    assert [round(100 * value, 2) for value in found] == list(TRIVIAL[split])
