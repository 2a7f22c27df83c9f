"""The routing of hidden experiences: told and chosen results side by side, and every number in the files that a run leaves."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from avcl_core.errors import IntegrityError
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.routing_summary import RoutingSummary, summarise_routing
from avcl_core.evaluation.routing_words import median_gap, say_alone, say_experts, say_gaps, say_results
from avcl_core.evaluation.summary import summarise, write_results
from avcl_core.evaluation.usage_file import Gaps, read_usage, usage_file

from .routing_runs import TESTS, line, put, routed, stream_of, write


def summary_of(folder: Path) -> RoutingSummary:
    found = summarise_routing(RunRecord.load(folder), read_usage(usage_file(folder)))
    assert found is not None
    return found


def test_the_told_matrix_is_kept_for_every_row_and_apart(tmp_path):
    record = RunRecord.load(write(tmp_path))
    assert record.matrix.rows == record.given.rows == list(TESTS)
    assert [record.given.value(row, "a") for row in TESTS] == [80.0] * 3
    assert [record.matrix.value(row, "a") for row in TESTS] == [80.0, 64.0, 48.0]
    assert record.ablations["a"]["experience given"] == {"acc": 80.0}


def test_forgetting_of_both_matrices(tmp_path):
    found = {d.name: (d.routed.value, d.given.value) for d in summary_of(write(tmp_path)).definitions}
    # routed: a 80 64 48, b 60 54, c 70
    assert found["A_T"] == pytest.approx(((48 + 54 + 70) / 3, 70))
    assert found["FM"] == pytest.approx(((32 + 6) / 2, 0))
    assert found["FM_stage"] == pytest.approx(((16 + 19) / 2, 0))
    assert found["BWT_step"] == pytest.approx(((-16 - 6) / 2, 0))
    assert {found[name][1] for name in ("FM", "FM_clamped", "FM_stage", "FM_first", "BWT", "BWT_step")} == {0.0}


def test_what_each_table_says(tmp_path):
    found = summary_of(write(tmp_path))
    assert found.accuracy == pytest.approx(100 * 25 / 30)
    said = say_results(found)
    assert "After c 83.3 % of all samples" in said
    assert "A_T is 57.33 as routed and 70.00 with the experience given: choosing costs 12.67." in said
    assert "FM is 19.00 as routed and 0.00 with the experience given: all of it is wrong choices" in said
    assert "40.0 % of a (4 of 10) go to c" in say_experts(found)
    pooled = (6 * 80 + 9 * 60 + 10 * 70) / 25
    assert f"acc is {pooled:.2f} where the choice is right and 0.00 where it is wrong" in say_experts(found)
    assert "on 2 of 3 test sets (most missed on b: c has 65.00, its own 60.00)" in say_alone(found)
    assert "above the frozen base model on 3 of 3" in say_alone(found)
    assert "0.75 where the choice is right and 0.25 where it is wrong: wrong choices are close ones" in say_gaps(found)


def test_the_median_is_read_off_bins_of_different_widths():
    one = Gaps(edges=[0.0, 1.0, 2.0], right=[2, 0], wrong=[0, 0])
    two = Gaps(edges=[0.0, 2.0, 4.0], right=[0, 2], wrong=[0, 0])
    assert median_gap([one], "right") == pytest.approx(0.5)
    assert median_gap([one, two, two], "right") == pytest.approx(2.5)
    assert median_gap([one], "wrong") is None


def test_files_have_every_number_and_equal_bytes(tmp_path):
    write_results(write(tmp_path))
    results = tmp_path / "results"
    once = (results / "routing.csv").read_bytes(), (results / "routing.json").read_bytes()
    record = json.loads(once[1])
    assert record["tests"]["a"]["as_routed"] == {"a": 80.0, "b": 64.0, "c": 48.0}
    assert record["tests"]["a"]["experience_given"] == dict.fromkeys(TESTS, 80.0)
    assert record["tests"]["a"]["choices"]["c"]["experts"]["c"] == {"samples": 4, "score": 0.0}
    assert record["tests"]["b"]["single_expert"] == {"a": 7.0, "b": 60.0, "c": 65.0}
    assert record["tests"]["b"]["base_model"] == 1.25
    with (results / "routing.csv").open() as handle:
        rows = list(csv.DictReader(handle))

    def value(**wanted):
        (only,) = [row for row in rows if all(row[key] == text for key, text in wanted.items())]
        return only["value"]

    assert value(table="results", after="c", test="a", name="as routed") == "48.0"
    assert value(table="results", after="c", test="a", name="experience given") == "80.0"
    assert value(table="routing accuracy", after="c", test="b") == "90.0"
    assert value(table="definitions as routed", name="FM") == "19.0"
    assert value(table="experts", after="c", test="a", expert="c", name="samples") == "4"
    assert value(table="choices", after="c", test="a", name="wrong score") == "0.0"
    assert value(table="single expert", test="b", expert="c") == "65.0"
    assert value(table="base model", test="b") == "1.25"
    assert value(table="gaps", after="b", test="a", name="wrong", high="0.5") == "2"
    write_results(tmp_path)
    assert once == ((results / "routing.csv").read_bytes(), (results / "routing.json").read_bytes())


def test_the_main_tables_show_two_ablations_and_the_section_the_others(tmp_path):
    summary = write_results(write(tmp_path))
    assert summary.tests[0].ablations == {"experience given": 80.0, "without experts": 1.25}
    assert summary.ablations["a"]["b for all"] == {"acc": 7.0}  # nothing is lost from summary.json
    table = (tmp_path / "results" / "table.md").read_text()
    assert "for all |" not in table
    assert "| experience given | 80.00 | 60.00 | 70.00 |" in table
    section = table.split("## Routing")[1].split("\n## ")[0]
    assert "| c | 60.0 | 90.0 | 100.0 |" in section  # routing accuracy
    assert "| FM | 19.00 | 0.00 |" in section
    assert "| a | 60.0 (80.00) | 0.0 | 40.0 (0.00) | 60.0 (80.00) | 40.0 (0.00) |" in section
    assert "| c | 7.00 | 65.00 | 70.00 |" in section
    assert "| without experts | 1.25 | 1.25 | 1.25 |" in section


def test_a_run_that_is_not_finished(tmp_path):
    lines = [line(*place) for place in (("a", "a"), ("b", "a"), ("b", "b"))]
    summary = write_results(write(tmp_path, lines))
    assert summary.tests[0].ablations == {}  # there is no final score that it could stand beside
    found = summary_of(tmp_path)
    assert [test.name for test in found.tests] == ["a", "b"]
    assert found.accuracy == pytest.approx(90.0)
    assert "After b 90.0 %" in say_results(found)
    assert say_alone(found) == ""


def test_a_run_that_is_told_or_routes_nothing_has_none_of_it(tmp_path):
    lines = [line(*place) for place in (("a", "a"), ("b", "a"), ("b", "b"))]
    told = write(tmp_path / "told", lines, stream_of("given"))
    assert summarise_routing(RunRecord.load(told), read_usage(usage_file(told))) is None
    for entry in lines:
        del entry["metrics"]["routing_accuracy"], entry["ablations"]
    plain = write(tmp_path / "plain", lines)
    usage_file(plain).unlink()
    write_results(plain)
    assert not list((plain / "results").glob("routing*"))
    assert "Routing" not in (plain / "results" / "table.md").read_text()


def test_a_router_without_scores_still_tells_shares(tmp_path):
    """As a model that routes inside its batches does: only the gates of its router are known."""
    lines = [line("a", "a")]
    del lines[0]["ablations"]
    folder = write(tmp_path, lines)
    told = {"rows": 10, "gates": [0.7, 0.3], "first": [7, 3], "constants": {"experts": ["a", "b"]}}
    put(folder, {("a", "a"): {**routed("a", "a"), "sites": {"router": told}, "routing": None}})
    (test,) = summary_of(folder).tests
    assert test.last is not None
    assert {name: part.samples for name, part in test.last.experts.items()} == {"a": 7, "b": 3}
    assert (test.last.right.samples, test.last.wrong.samples) == (7, 3)
    write_results(folder)
    assert "| a | 70.0 | 30.0 | 70.0 | 30.0 |" in (folder / "results" / "table.md").read_text()


def test_a_damaged_histogram_is_refused(tmp_path):
    entry = routed("b", "a")
    entry["routing"]["gap"]["wrong"] = [1]
    folder = write(tmp_path)
    put(folder, {("b", "a"): entry})
    with pytest.raises(IntegrityError, match=r"expert_usage\.json: field b\.a\.routing\.gap: .* 3 edges"):
        write_results(folder)


def test_told_results_that_differ_between_lines_are_refused(tmp_path):
    other = line("a", "a")
    other["ablations"]["experience given"]["acc"] = 3.0
    with pytest.raises(IntegrityError, match=r"line 2: experience given: .* twice"):
        summarise(RunRecord.load(write(tmp_path, [line("a", "a"), other])))
