"""Accuracy per question type: micro averages of groups, NaN without items, raw strings and pairs alike."""

import math

import numpy as np
import pytest

from avcl_avqa.metrics import KEYS, TYPES, accuracy_by_type, type_index


def test_groups_are_micro_averages():
    types = [TYPES[0]] * 3 + [TYPES[1]] + [TYPES[4]] * 2
    found = accuracy_by_type(["a", "b", "c", "d", "e", "f"], ["a", "x", "x", "d", "e", "x"], types)
    assert found["audio_counting"] == pytest.approx(100 / 3)
    assert found["audio_comparative"] == 100
    assert found["audio"] == 50
    assert found["av_existential"] == found["av"] == 50
    assert found["overall"] == 50
    assert all(math.isnan(found[name]) for name in ("visual", "visual_counting", "av_temporal"))


def test_order_of_keys_is_that_of_the_published_table():
    found = accuracy_by_type([0], [0], [TYPES[0]])
    expected = (
        "audio_counting audio_comparative audio visual_counting visual_location visual av_existential av_counting "
    )
    assert list(found) == (expected + "av_location av_comparative av_temporal av overall").split()
    assert tuple(name for name in found if "_" in name) == KEYS


def test_raw_strings_and_pairs_are_the_same():
    raw = ['["Audio-Visual", "Temporal"]', '["Visual", "Location"]']
    one = accuracy_by_type(np.array([1, 2]), np.array([1, 3]), raw)
    two = accuracy_by_type([1, 2], [1, 3], [("Audio-Visual", "Temporal"), ["Visual", "Location"]])
    np.testing.assert_equal(one, two)
    assert one["av_temporal"] == 100
    assert one["visual_location"] == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("Audio Counting", "expected a JSON list"),
        ('["Audio", "Countin"]', "did you mean 'Audio Counting'"),
        (("Audio", "Location"), "unknown"),
        ('[["Audio"], "Counting"]', "unknown"),
    ],
)
def test_unknown_type_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        type_index(wrong)


@pytest.mark.parametrize(("pred", "target", "types"), [([1], [1, 2], [TYPES[0]] * 2), ([], [], []), ([1], [1], [])])
def test_lengths_must_agree(pred, target, types):
    with pytest.raises(ValueError, match="one length N > 0"):
        accuracy_by_type(pred, target, types)
