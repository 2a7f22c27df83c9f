"""Offline scorers of free-text answers against golden values and their own properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avcl_avqa.answers import NUMBERS, SCORERS, exact_match, normalised, normalised_match, rank_answers, token_f1


@pytest.mark.parametrize(
    ("prediction", "answer", "em", "em_norm", "f1"),
    [
        ("Cowbell ", "cowbell", 1, 1, 1),
        ("2", "two", 0, 1, 1),
        ("the street", "street", 0, 1, 1),
        ("on the street", "street", 0, 0, 2 / 3),
        ("", "street", 0, 0, 0),
        ("", "", 0, 0, 0),
        (" ", "", 0, 0, 0),
        ("street", "", 0, 0, 0),
        ("acoustic guitar", "acoustic_guitar", 0, 1, 1),
        ("ｃａｔ!", "cat", 0, 1, 1),
        ("the", "The ", 1, 1, 1),
        ("the", "a", 0, 0, 0),
        ("dog dog cat", "dog cat cat", 0, 0, 2 / 3),
        ("theatre", "atre", 0, 0, 0),
    ],
)
def test_golden_scores(prediction, answer, em, em_norm, f1):
    assert exact_match(prediction, answer) == em
    assert normalised_match(prediction, answer) == em_norm
    assert token_f1(prediction, answer) == pytest.approx(f1)


def test_normalised_text():
    assert normalised("  The Ⅳ dogs--of one's own, AN unit. ") == "iv dogs of 1 s own unit"
    assert normalised(" ".join(NUMBERS)).split() == [str(number) for number in range(21)]


texts = st.text(alphabet="aAtheTWO2 on.,_é\u3000\uff21", max_size=14)


@given(texts, texts)
def test_each_scorer_is_symmetric_and_at_least_as_lenient_as_the_one_before(one, two):
    scores = [score(one, two) for score in SCORERS.values()]
    assert 0 <= scores[0] <= scores[1] <= scores[2] <= 1
    if one.strip() and two.strip():
        assert scores == [score(two, one) for score in SCORERS.values()]


@given(st.text(max_size=20))
def test_an_answer_equals_itself_unless_it_is_empty(text):
    assert {score(text, text) for score in SCORERS.values()} == {float(bool(text.strip()))}


def test_answers_are_ranked_by_likelihood_per_token():
    order = rank_answers([[-2.0, -3.0, -3.0], [-1.0, -9.0, -np.inf]], [1, 2, 3])
    assert order.tolist() == [[2, 1, 0], [0, 1, 2]]
    assert rank_answers([[-2.0, -1.0, -2.0]], [2, 1, 2]).tolist() == [[0, 1, 2]]  # equal: list order


@pytest.mark.parametrize(
    ("scores", "lengths", "message"),
    [
        ([-1.0], [1], "expected"),
        ([[-1.0, -2.0]], [1], "expected"),
        ([[-1.0, -2.0]], [1, 0], "answer 1 has 0 tokens"),
        ([[-1.0, np.nan]], [1, 1], "NaN"),
        ([[]], [], "A ≥ 1"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, lengths, message):
    with pytest.raises(ValueError, match=message):
        rank_answers(scores, lengths)
