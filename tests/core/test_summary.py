"""Run records and summaries: definitions only where defined, reasons instead of failures, bytes from numbers alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from avcl_core.errors import IntegrityError
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.summary import summarise, write_results
from avcl_core.evaluation.table import ABLATIONS
from avcl_core.stream import Experience, Stream, TestSet, concatenation

GOLDEN = {("a", "a"): 80, ("b", "a"): 70, ("b", "b"): 75, ("c", "a"): 74, ("c", "b"): 60, ("c", "c"): 65} | {
    ("d", test): value for test, value in zip("abcd", (85, 66, 70, 60), strict=True)
}


def stream_of(names="abcd", tasks=None) -> Stream:
    tasks = tasks or ["task"] * len(names)
    parts = [Experience(0, n, t, (f"{n}1",), (f"{n}2",), (f"{n}3",)) for n, t in zip(names, tasks, strict=True)]
    return concatenation("s", parts)


def line(row, test, value, task="task", primary="acc", **more):
    controls = {"chance": {primary: 25.0}, "majority": {primary: 40.0}}
    metrics = {primary: value, "other": value}
    return {
        "row": row,
        "test": test,
        "task": task,
        "primary": primary,
        "metrics": metrics,
        "controls": controls,
        "samples": 9,
    } | more


def write(folder: Path, lines, stream=None, log=(), **run) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    run = {"method": "er", "model": "avmoe", "seed": 0} | run
    owned = [{"name": "x", "owner": "shared", "numel": 12, "kind": "parameter"}]
    owned += [{"name": n, "owner": "task:a", "numel": 3, "kind": k} for n, k in (("y", "parameter"), ("z", "buffer"))]
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "stream.json").write_text(json.dumps((stream or stream_of()).to_json()))
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "ownership.json").write_text(json.dumps(owned))
    (folder / "results.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    return folder


def summary_of(folder, cells, stream=None, **more):
    return summarise(RunRecord.load(write(folder, [line(r, t, v) for (r, t), v in cells.items()], stream, **more)))


def definitions(summary):
    return {d.name: d.value for d in summary.definitions}


def test_incremental_run_with_one_metric_has_all_definitions(tmp_path):
    summary = summary_of(tmp_path, GOLDEN)
    assert summary.setting == "incremental"
    values = definitions(summary)
    expected = {
        "A_T": 70.25,
        "LA": 70,
        "FM": -1 / 3,
        "FM_clamped": 3,
        "FM_stage": 121 / 18,
        "FM_first": -1 / 3,
        "BWT": 1 / 3,
    }
    expected |= {"mean A": (80 + 72.5 + 199 / 3 + 70.25) / 4, "BWT_step": 22 / 3}
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert values["FWT"] is None
    first, second, *_, last = summary.tests
    assert (first.learnt.value, first.final.value, first.best.value, first.drop.value) == (80, 85, 80, -5)
    assert second.drop.value == 9
    assert second.retention.value == pytest.approx(66 / 75)
    assert last.drop.value is None
    assert last.drop.reason == "learnt last: nothing follows it"
    assert first.controls == {"chance": 25.0, "majority": 40.0}
    assert first.samples == 9
    assert summary.parameters == {"shared": {"parameter": 12}, "task:a": {"parameter": 3, "buffer": 3}}


def test_forward_transfer_uses_the_start_row(tmp_path):
    cells = {("start", t): 10.0 for t in "abcd"} | GOLDEN | {("a", "b"): 12, ("b", "c"): 14, ("c", "d"): 19}
    assert definitions(summary_of(tmp_path, cells))["FWT"] == pytest.approx((2 + 4 + 9) / 3)


def test_drop_is_from_the_best_before_the_end_not_from_the_first(tmp_path):
    cells = dict(GOLDEN) | {("b", "a"): 95}
    test = summary_of(tmp_path, cells).tests[0]
    assert (test.best.value, test.drop.value, test.retention.value) == (95, 10, 85 / 80)


def test_zero_shot_results_are_no_best_before(tmp_path):
    cells = GOLDEN | {("a", "b"): 99, ("start", "b"): 99}
    assert summary_of(tmp_path, cells).tests[1].best.value == 75


def test_joint_has_only_the_last_row(tmp_path):
    summary = summary_of(tmp_path, {cell: v for cell, v in GOLDEN.items() if cell[0] == "d"} | {("start", "a"): 1})
    assert summary.setting == "joint"
    values = definitions(summary)
    assert values.pop("A_T") == 70.25
    assert set(values.values()) == {None}
    reason = "joint training is one session: there is no result right after each experience"
    assert {d.reason for d in summary.definitions if d.name != "A_T"} == {reason}
    assert [test.final.value for test in summary.tests] == [85, 66, 70, 60]
    assert summary.tests[0].retention.reason == reason


def test_several_sessions_judged_once_at_the_end_are_not_joint(tmp_path):
    log = [{"session": s, "experience": n, "epoch": 0, "step": s, "loss": {"nll": 1.0}} for s, n in enumerate("abcd")]
    summary = summary_of(tmp_path, {cell: v for cell, v in GOLDEN.items() if cell[0] == "d"}, log=log)
    assert summary.setting == "partial"
    assert summary.tests[0].learnt.reason == "not evaluated after a"
    by_name = {d.name: d for d in summary.definitions}
    assert by_name["FM"].reason.startswith("FM needs R[1,1], which is not evaluated")
    assert by_name["FM_clamped"].value is None  # zero padding would make it a perfect 0
    assert by_name["FM_clamped"].reason == "not every entry with i ≤ t was evaluated"


def test_separate_models_have_only_the_diagonal(tmp_path):
    summary = summary_of(tmp_path, {cell: v for cell, v in GOLDEN.items() if cell[0] == cell[1]})
    assert summary.setting == "separate"
    assert definitions(summary)["LA"] == 70
    assert {name for name, value in definitions(summary).items() if value is not None} == {"LA"}
    assert [test.final.value for test in summary.tests] == [80, 75, 65, 60]
    assert "new model per experience" in summary.tests[0].drop.reason


def test_one_experience(tmp_path):
    summary = summary_of(tmp_path, {("a", "a"): 50}, stream_of("a"))
    assert summary.setting == "incremental"
    assert {name: value for name, value in definitions(summary).items() if value is not None} == {
        "A_T": 50,
        "mean A": 50,
        "LA": 50,
    }
    assert {d.reason for d in summary.definitions if d.name == "FM"} == {
        "forgetting and transfer need at least two experiences"
    }


def test_a_run_that_has_not_finished_or_not_begun_still_has_a_summary(tmp_path):
    summary = summary_of(tmp_path / "half", {cell: v for cell, v in GOLDEN.items() if cell[0] in "ab"})
    assert summary.setting == "partial"
    assert summary.tests[0].final.reason == "not evaluated after d"
    folder = write(tmp_path / "new", [])
    for name in ("results.jsonl", "metrics.jsonl", "ownership.json"):
        (folder / name).unlink()
    empty = write_results(folder)
    assert empty.rows == ()
    assert (folder / "results" / "matrix.csv").read_text() == "after,a,b,c,d\n"


def test_different_metrics_are_never_averaged(tmp_path):
    stream = stream_of("ab", ["ave", "avs"])
    lines = [
        line("a", "a", 70.0, "ave"),
        line("b", "a", 63.0, "ave"),
        line("b", "b", 0.5, "avs", "miou", ideal=1.0),
    ]
    summary = summarise(RunRecord.load(write(tmp_path, lines, stream)))
    assert set(definitions(summary).values()) == {None}
    assert {d.reason for d in summary.definitions} == {
        "the test sets have different primary metrics (acc, miou), which are not averaged"
    }
    assert summary.tests[0].drop.value == 7
    assert summary.tests[0].retention.value == pytest.approx(0.9)
    text = (write_results(tmp_path), (tmp_path / "results" / "table.md").read_text())[1]
    assert "0.5000" in text  # a unit scale has four decimals
    assert "63.00" in text
    assert "35.25" not in text  # (70 + 0.5) / 2
    assert "31.75" not in text  # (63 + 0.5) / 2


def test_undefined_primary_metric_is_named_not_fatal(tmp_path):
    cells = GOLDEN | {("b", "a"): math.nan}
    summary = summary_of(tmp_path, cells)
    assert summary.tests[0].best.value is None
    assert summary.tests[0].best.reason == "acc undefined after b"
    assert summary.tests[0].retention.value == pytest.approx(85 / 80)
    write_results(tmp_path)
    assert "| b | undefined | 75.00 |" in (tmp_path / "results" / "table.md").read_text()
    record = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert record["tests"][0]["values"]["b"] == "NaN"


def test_an_experience_with_several_test_sets_needs_one_of_its_own_name(tmp_path):
    base = stream_of("ab")
    tests = (TestSet("a", "a"), TestSet("a-extra", "a", "val"), TestSet("b", "b"))
    stream = Stream("s", base.experiences, tests)
    cells = {("a", "a"): 80, ("a", "a-extra"): 1, ("b", "a"): 60, ("b", "a-extra"): 2, ("b", "b"): 50}
    assert definitions(summary_of(tmp_path / "x", cells, stream))["FM"] == 20
    odd = Stream("s", base.experiences, (TestSet("p", "a"), TestSet("q", "a", "val"), TestSet("b", "b")))
    cells = {("a", "p"): 80, ("a", "q"): 1, ("b", "p"): 60, ("b", "q"): 2, ("b", "b"): 50}
    summary = summary_of(tmp_path / "y", cells, odd)
    assert summary.definitions[0].reason == "experience a has 2 test sets and none of its own name: R is not square"
    assert summary.tests[1].drop.value == -1


def test_retention_to_a_score_that_is_not_positive_is_no_share(tmp_path):
    test = summary_of(tmp_path, {("a", "a"): -0.1, ("b", "a"): -0.2, ("b", "b"): 1}, stream_of("ab")).tests[0]
    assert test.retention.value is None
    assert "not positive" in test.retention.reason
    assert test.drop.value == pytest.approx(0.1)


def results(folder):
    return {p.name: p.read_bytes() for p in sorted((folder / "results").iterdir())}


def test_files_depend_on_numbers_alone(tmp_path):
    lines = [line(r, t, v) for (r, t), v in GOLDEN.items()]
    one = write(tmp_path / "one", lines, id="2025-a", started="noon", duration=3.5, command=["avcl", "run"])
    # An interrupted run repeats what came after its last checkpoint, and has another id, time and command.
    other = write(tmp_path / "deep" / "two", [*lines, *lines[-3:]], id="2026-b", duration=99.0, command="avcl resume")
    write_results(one)
    write_results(other)
    assert list(results(one)) == ["matrix.csv", "summary.json", "table.md"]
    assert results(one) == results(other)
    before = results(one)
    write_results(one)
    assert results(one) == before
    changed = write(tmp_path / "three", [*lines[:-1], line("d", "d", 60.000001)])
    write_results(changed)
    assert results(changed)["matrix.csv"] != before["matrix.csv"]
    for text in before.values():
        assert str(tmp_path).encode() not in text
        assert b"2025-a" not in text


def test_summary_json_is_strict_and_complete(tmp_path):
    folder = write(tmp_path, [line(r, t, v) for (r, t), v in GOLDEN.items()], notes=["n1", "n1"], skipped=[
        {"task": "ave", "split": "train", "key": "k", "reason": "no audio"}
    ])  # fmt: skip
    write_results(folder)
    record = json.loads((folder / "results" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert record["protocol"] == "clean"
    assert record["notes"] == ["n1"]
    assert record["skipped"] == ["ave train k: no audio"]
    assert record["controls"]["a"]["majority"] == {"acc": 40.0}
    assert len(record["matrix"]["cells"]) == len(GOLDEN)
    assert {d["name"]: d["value"] for d in record["definitions"]}["BWT_step"] == pytest.approx(22 / 3)


def test_table_has_every_number_and_escapes_names(tmp_path):
    stream = stream_of(["a|b", "<b>"])
    cells = {("a|b", "a|b"): 12.34, ("<b>", "a|b"): 56.78, ("<b>", "<b>"): 90.12}
    write(tmp_path, [line(r, t, v) for (r, t), v in cells.items()], stream, notes=["use <script> | here"])
    write_results(tmp_path)
    text = (tmp_path / "results" / "table.md").read_text()
    for number in ("12.34", "56.78", "90.12", "25.00", "40.00", "-44.44", "4.6013"):
        assert number in text
    assert "| a\\|b | 12.34 | – |" in text
    assert "<b>" not in text
    assert "<script>" not in text
    widths = {
        line.replace("\\|", "").count("|") for line in text.split("## Test sets")[0].splitlines() if line[:1] == "|"
    }
    assert widths == {4}


def test_ablations_stand_beside_the_controls_and_are_none_of_them(tmp_path):
    lines = [line(r, t, v, ablations={}) for (r, t), v in GOLDEN.items()]
    lines[-4]["ablations"] = {"without adapters": {"acc": 84.5, "other": 3.0}}
    summary = write_results(write(tmp_path, lines))
    first, second, *_ = summary.tests
    assert (first.ablations, second.ablations) == ({"without adapters": 84.5}, {})
    assert first.controls == second.controls == {"chance": 25.0, "majority": 40.0}
    record = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert record["ablations"] == {"a": {"without adapters": {"acc": 84.5, "other": 3.0}}}
    assert record["tests"][0]["ablations"] == {"without adapters": 84.5}
    table = (tmp_path / "results" / "table.md").read_text()
    assert "| without adapters | 84.50 | – | – | – |" in table.splitlines()
    assert "*without adapters*" not in table  # italics are trivial predictors
    assert ABLATIONS in table
    write_results(write(tmp_path, [line(r, t, v) for (r, t), v in GOLDEN.items()]))  # an earlier run tells none
    assert "ithout adapters" not in (tmp_path / "results" / "table.md").read_text()


BAD = [
    ("results.jsonl", '{"row": "a"', "results.jsonl line 1: is not JSON"),
    ("results.jsonl", "[1]", "results.jsonl line 1: found list, expected an object"),
    ("results.jsonl", json.dumps(line("a", "x", 1)), "test 'x' is not in stream s; expected one of"),
    ("results.jsonl", json.dumps(line("z", "a", 1)), "row 'z' is not in stream s"),
    ("results.jsonl", json.dumps(line("a", "a", "many")), "field metrics.acc: found 'many'"),
    ("results.jsonl", json.dumps(line("a", "a", 1, "avs")), "is 'avs', stream.json says 'task'"),
    ("results.jsonl", json.dumps(line("a", "a", 1, controls={"chance": {"f": 1}})), "control 'chance' lacks"),
    ("results.jsonl", json.dumps(line("a", "a", 1, ablations={"without x": {"f": 1}})), "ablation 'without x' lacks"),
    ("results.jsonl", json.dumps(line("a", "a", 1)) + "\n" + json.dumps(line("a", "a", 2)), "line 2: .* twice"),
    ("metrics.jsonl", '{"session": 0, "epoch": 0, "validation": 3, "selected": true}', "line 1: field validation"),
    ("metrics.jsonl", '{"session": 0}', "metrics.jsonl line 1: field experience"),
    ("ownership.json", '{"a": 1}', "ownership.json: found dict, expected a list"),
    ("ownership.json", '[{"name": "x"}]', "ownership.json entry 0: field owner"),
    ("run.json", '{"method": "er", "model": "m"}', "run.json: field seed"),
    ("stream.json", '{"name": "s"}', "stream.json: is not a stream record"),
    ("stream.json", "{", "stream.json: is not JSON"),
    ("config.yaml", None, "config.yaml: not found; expected a run folder"),
    ("run.json", None, "run.json: not found"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_malformed_files_are_named(tmp_path, name, text, message):
    folder = write(tmp_path, [line(r, t, v) for (r, t), v in GOLDEN.items()])
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    with pytest.raises(IntegrityError, match=message) as caught:
        RunRecord.load(folder)
    assert "\n" not in str(caught.value)


def test_logs_are_read_once_and_in_order(tmp_path):
    step = {"session": 0, "experience": "a", "epoch": 0, "loss": {"nll": 1.0}}
    log = [step | {"step": n} for n in (0, 1, 2, 1, 2, 3)]
    log.append({"session": 0, "epoch": 0, "validation": {"a": {"acc": 3.0}}, "selected": True, "seconds": 3})
    record = RunRecord.load(write(tmp_path, [], log=log))
    assert [entry.step for entry in record.steps] == [0, 1, 2, 3]
    assert record.epochs[0].validation == {"a": {"acc": 3.0}}


def test_line_separators_inside_strings_do_not_cut_a_line(tmp_path):
    stream = stream_of(["a\u2028b"])
    folder = write(tmp_path, [], stream)
    (folder / "results.jsonl").write_text(json.dumps(line("a\u2028b", "a\u2028b", 1.0), ensure_ascii=False) + "\n")
    assert RunRecord.load(folder).matrix.value("a\u2028b", "a\u2028b") == 1.0
