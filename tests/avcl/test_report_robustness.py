"""The section on missing and corrupted modalities: every number as recorded, what is not above a control marked, nothing invented."""

import json
import math
import re
from pathlib import Path

import pytest

from avcl.report.robustness import run_robustness
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.evaluation.robustness import (
    FILE,
    Finished,
    Robustness,
    Score,
    TestEntry,
    expert_kinds,
    read_robustness,
    score_of,
    signed,
    write_robustness,
)

CONTROLS = {"majority": {"accuracy": 20.0}, "oracle": {"accuracy": 95.0}, "shuffled predictions": {"accuracy": 12.5}}


def finished(text: str, title: str, accuracy: float, iou: float, weights=None) -> Finished:
    usual = {"none": {"mean_iou": 0.25}}
    return Finished(
        corruption=text,
        title=title,
        scores={
            "ave": Score(metrics={"accuracy": accuracy}, controls=CONTROLS, weights=weights or {}),
            "<avs>": Score(metrics={"mean_iou": iou, "f_score": math.nan}, controls=usual),
        },
    )


def made(*results: Finished) -> Robustness:
    entry = {"samples": 5, "unchanged": []}
    return Robustness(
        format=1,
        digest="0" * 64,
        commit="000012-after-avs",
        when="after avs",
        split=None,
        modalities=["visual", "audio"],
        tests=[
            TestEntry(name="ave", task="ave", primary="accuracy", ideal=100, oracles=["oracle"], **entry),
            TestEntry(name="<avs>", task="avs", primary="mean_iou", ideal=1, oracles=[], **entry),
        ],
        results=list(results),
    )


def weights(cross: float) -> dict[str, dict[str, float]]:
    return {"audio": {"cross": cross, "uni": 1 - cross}}


CLEAN = finished("clean", "clean samples", 70.5, 0.6, weights(0.7))
DEAF = finished("missing:audio", "vision only (no sound)", 19.0, 0.55, weights(0.4))
NOISY = finished("audio_noise:0", "white noise, SNR 0 dB", 71.0, math.nan, weights(0.6))


def stored(folder: Path, record: Robustness) -> Path:
    (folder / FILE.parent).mkdir(parents=True)
    (folder / FILE).write_text(record.model_dump_json())
    return folder


def test_the_record_comes_back_as_it_was_written_undefined_scores_included(tmp_path):
    record = made(CLEAN, DEAF, NOISY)
    json.loads(record.model_dump_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    found = read_robustness(stored(tmp_path, record) / FILE)
    assert found is not None
    assert found.model_dump_json() == record.model_dump_json()
    assert math.isnan(found.value("audio_noise:0", found.tests[1]))
    assert read_robustness(tmp_path / "none.json") is None


def test_the_table_has_scores_differences_and_controls():
    table = write_robustness(made(CLEAN, DEAF, NOISY), "er")
    lines = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if line.startswith("|")}
    assert lines["clean samples (`clean`)"].split(" | ")[1:] == ["70.50", "0.6000 |"]
    deaf = lines["vision only (no sound) (`missing:audio`)"].split(" | ")[1:]
    assert deaf == ["19.00 (−51.50) †", "0.5500 (−0.0500) |"], "below majority, not below the oracle"
    assert lines["white noise, SNR 0 dB (`audio_noise:0`)"].split(" | ")[1:] == ["71.00 (+0.50)", "undefined (–) † |"]
    assert lines["*majority*"].split(" | ")[1:] == ["20.00", "– |"]
    assert "oracle" not in table, "an oracle is no trivial predictor"
    assert "&lt;avs>" in table
    assert lines["vision only (no sound)"].split(" | ")[1:] == ["0.400", "0.600 |"], "the router's weights"


def test_differences_have_a_sign_and_the_precision_of_their_score():
    assert [signed(v, 100) for v in (1.234, -1.234, 0.0, -0.001)] == ["+1.23", "−1.23", "+0.00", "+0.00"]
    assert signed(-0.01234, 1) == "−0.0123"


def test_weights_of_experts_of_one_kind_are_added_up():
    total = {"experts": ["cross 0", "cross 1", "uni 0"], "gates": [0.25, 0.25, 0.5], "rows": 3}
    assert expert_kinds(total) == {"cross": 0.5, "uni": 0.5}
    assert expert_kinds({"gates": [0.5, 0.5]}) == {}
    usage = {"total": {"audio": total, "visual": {"sites": 1}}}
    score = score_of(Evaluation({"accuracy": 1.0}, {}, {}, (), usage))
    assert score.weights == {"audio": {"cross": 0.5, "uni": 0.5}}
    assert score_of(Evaluation({"accuracy": 1.0}, {}, {})).weights == {}


def test_the_section_says_what_the_record_says(tmp_path):
    found = run_robustness(stored(tmp_path, made(CLEAN, DEAF, NOISY)))
    assert found is not None
    assert [row.text for row in found.rows] == ["clean", "missing:audio", "audio_noise:0"]
    deaf = found.rows[1]
    assert [(c.value, c.change, c.beaten) for c in deaf.cells] == [
        ("19.00", "−51.50", False),
        ("0.5500", "−0.0500", True),
    ]
    assert found.rows[0].cells[0].change == "–"
    assert found.controls == {
        "majority": ("20.00", "–"),
        "shuffled predictions": ("12.50", "–"),
        "none": ("–", "0.2500"),
    }
    assert found.columns == (("ave", "audio", "cross"), ("ave", "audio", "uni"))
    assert deaf.weights == ("0.400", "0.600")
    assert found.figure is not None
    assert all(text in found.figure for text in ("vision only (no sound)", "mean_iou", "&lt;avs&gt;"))
    assert "clean samples" not in found.figure, "clean is the line, not a row"
    assert found.figure == run_robustness(tmp_path).figure, "the same bytes every time"


@pytest.mark.parametrize(("latest", "last"), [("000012-after-avs", True), ("000013", False)])
def test_a_section_of_an_earlier_commit_says_so(tmp_path, latest, last):
    stored(tmp_path, made(CLEAN, DEAF))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "LATEST").write_text(f"{latest}\n")
    assert run_robustness(tmp_path).last is last


def test_there_is_no_section_without_results_and_no_figure_of_clean_samples_alone(tmp_path):
    assert run_robustness(tmp_path) is None
    assert run_robustness(stored(tmp_path, made(CLEAN))).figure is None


def test_clean_scores_that_are_not_what_the_run_stored_are_said_below_the_table(tmp_path):
    record = made(CLEAN, DEAF)
    assert run_robustness(stored(tmp_path / "plain", record)).note == ""
    record.stored = {"ave": {"accuracy": 71.0}, "<avs>": {"mean_iou": 0.6, "f_score": 0.5}}
    note = run_robustness(stored(tmp_path / "other", record)).note
    assert "ave: clean samples scored 70.50 here, the run stored 71.00 accuracy; " in note
    assert "<avs>: clean samples scored undefined here, the run stored 0.5000 f_score. " in note
    assert note in write_robustness(record, "er")


def test_inputs_that_no_corruption_reaches_are_named():
    record = made(CLEAN, DEAF)
    record.tests[0].unchanged = ["motion"]
    assert re.search(r"As stored under noise, blur and occlusion: motion of ave\.", write_robustness(record, "er"))
