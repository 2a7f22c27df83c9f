"""The result matrix: order, missing cells, exact round trips and refusals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl_core.errors import IntegrityError
from avcl_core.evaluation.matrix import ResultMatrix


def filled() -> ResultMatrix:
    matrix = ResultMatrix(["a", "b"])
    matrix.record("start", "b", "miou", {"miou": 0.1, "f": 0.2})
    matrix.record("a", "a", "acc", {"acc": 1 / 3, "rare": math.nan})
    matrix.record("b", "b", "miou", {"miou": 0.7, "f": 0.9})
    matrix.record("b", "a", "acc", {"acc": 5e-324, "rare": math.inf})
    return matrix


def test_rows_are_in_order_of_evaluation_and_columns_in_the_given_order():
    matrix = filled()
    assert matrix.rows == ["start", "a", "b"]
    assert matrix.columns == ["a", "b"]
    np.testing.assert_array_equal(matrix.array(), [[math.nan, 0.1], [1 / 3, math.nan], [5e-324, 0.7]])
    assert (matrix.primary("a"), matrix.primary("b"), matrix.primary("c")) == ("acc", "miou", None)
    assert ResultMatrix(["a"]).array().shape == (0, 1)


def test_square_takes_rows_and_columns_by_experience():
    matrix = filled()
    np.testing.assert_array_equal(matrix.square(["a", "b"]), [[1 / 3, math.nan], [5e-324, 0.7]])
    np.testing.assert_array_equal(matrix.square(["b", "a"], tests=["b", "a"]), [[0.7, 5e-324], [math.nan, 1 / 3]])
    assert np.isnan(matrix.square(["later", "a"])[0]).all()
    with pytest.raises(ValueError, match="expected one for each"):
        matrix.square(["a", "b"], tests=["a"])


def test_value_and_cell_tell_missing_from_undefined():
    matrix = filled()
    assert math.isnan(matrix.value("a", "b"))
    assert matrix.cell("a", "b") is None
    cell = matrix.cell("a", "a")
    assert cell is not None
    assert math.isnan(cell.metrics["rare"])


numbers = st.floats(allow_nan=True, allow_infinity=True)
names = st.text(min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, names, st.dictionaries(names, numbers, max_size=3), numbers), max_size=8))
def test_json_round_trip_is_exact(entries):
    matrix = ResultMatrix()
    for row, column, metrics, value in entries:
        if matrix.cell(row, column) is None:
            matrix.record(row, column, "primary", metrics | {"primary": value})
    text = json.dumps(matrix.to_json(), allow_nan=False)
    again = ResultMatrix.from_json(json.loads(text))
    assert again == matrix
    assert json.dumps(again.to_json(), allow_nan=False) == text


def test_csv_has_exact_floats_and_stable_bytes(tmp_path):
    filled().write_csv(tmp_path / "one.csv")
    assert (tmp_path / "one.csv").read_bytes() == b"after,a,b\nstart,,0.1\na,0.3333333333333333,\nb,5e-324,0.7\n"
    matrix = ResultMatrix()
    matrix.record('x, "y"', "ü", "m", {"m": np.float32(0.1)})
    matrix.write_csv(tmp_path / "two.csv")
    assert (tmp_path / "two.csv").read_bytes() == 'after,ü\n"x, ""y""",0.10000000149011612\n'.encode()


def test_repeating_an_evaluation_is_allowed_and_contradicting_it_is_not():
    matrix = filled()
    matrix.record("a", "a", "acc", {"acc": 1 / 3, "rare": math.nan})
    assert matrix == filled()
    with pytest.raises(IntegrityError, match="after 'a' on test set 'a': recorded twice with different values"):
        matrix.record("a", "a", "acc", {"acc": 0.5, "rare": math.nan})
    assert matrix == filled()


def test_the_primary_metric_must_exist_and_stay_the_same():
    matrix = filled()
    with pytest.raises(IntegrityError, match=r"primary metric 'acc' is not among the metrics \['f1'\]"):
        matrix.record("c", "a", "acc", {"f1": 1.0})
    with pytest.raises(IntegrityError, match="primary metric is 'f1', but the column has 'acc'"):
        matrix.record("c", "a", "f1", {"f1": 1.0})


def test_equality_sees_values_rows_and_columns():
    assert filled() != ResultMatrix(["a", "b"])
    other = filled()
    other.record("c", "a", "acc", {"acc": 1.0})
    assert other != filled()
    assert filled() != 3
