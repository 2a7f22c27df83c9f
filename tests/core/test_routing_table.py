"""What routing costs: shares and scores by expert, right and wrong choices, and how close they were."""

import json
import math

from avcl_core.evaluation.predicting import Choice
from avcl_core.evaluation.routing_table import BINS, routing_table


class Counted:
    """A task whose score is the share of predictions that are 1."""

    primary = "score"

    def score(self, predictions, targets):
        assert predictions.keys() == targets.keys()
        return {"score": 100 * sum(predictions.values()) / len(predictions)}


def choice(slot, **scores):
    return Choice(slot, {"all": scores})


def table(choices, predictions, own="a"):
    return routing_table(choices, own, Counted(), predictions, dict.fromkeys(predictions, 0))


def test_shares_and_scores_by_expert_and_by_right_and_wrong():
    choices = {
        "1": choice("a", a=0.9, b=0.5, c=0.1), "2": choice("a", a=0.7, b=0.6, c=0.0),
        "3": choice("b", a=0.5, b=0.5, c=0.2), "4": choice("base", a=math.nan, b=math.nan, c=math.nan),
    }  # fmt: skip
    found = table(choices, {"1": 1, "2": 0, "3": 1, "4": 0})
    assert found["experts"] == {
        "a": {"samples": 2, "score": 50}, "b": {"samples": 1, "score": 100}, "c": {"samples": 0, "score": None},
        "base": {"samples": 1, "score": 0},
    }  # fmt: skip
    assert found["right"] == {"samples": 2, "score": 50}
    assert found["wrong"] == {"samples": 2, "score": 50}
    gap = found["gap"]
    assert (gap["edges"][0], gap["edges"][-1], len(gap["edges"])) == (0, 0.4, BINS + 1)
    assert gap["right"] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 1]  # 0.1 and 0.4
    assert gap["wrong"] == [1, *[0] * 9]  # 0; the lost sample has none
    assert json.loads(json.dumps(found)) == found


def test_one_candidate_leaves_no_gap():
    found = table({"1": choice("a", a=0.9)}, {"1": 1})
    assert found["gap"] is None
    assert found["right"] == {"samples": 1, "score": 100}


def test_equal_scores_leave_a_histogram_of_zeros():
    gap = table({"1": choice("a", a=0.5, b=0.5)}, {"1": 1})["gap"]
    assert sum(gap["right"]) == 1
    assert gap["right"][0] == 1


def test_nothing_where_nothing_was_chosen_by_scores():
    assert table({"1": Choice("a")}, {"1": 1}) is None
    assert table({}, {}) is None
