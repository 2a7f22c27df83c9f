"""A run under corruptions: one table that says what is left, the same after a stop, and nothing evaluated twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from avcl_core.data.corruptions import CLEAN, parse_corruption
from avcl_core.errors import ConfigError, IntegrityError, Stopped
from avcl_core.evaluation.robustness import FILE, read_robustness
from avcl_core.running.launch import Console, Restored, restore
from avcl_core.running.robustness import evaluate_corrupted
from avcl_core.training.position import Position

ASKED = "[missing:audio, clean, audio_noise:0, missing_segments:visual:1]"
TEXTS = ["clean", "missing:audio", "audio_noise:0", "missing_segments:visual:1"]


@pytest.fixture
def run(straight: Path, tmp_path: Path) -> Path:
    """A copy, because the page of a run shows its evaluations."""
    return Path(shutil.copytree(straight, tmp_path / "run"))


def evaluate(run: Path, asked: str = ASKED, **how) -> Path:
    folder = evaluate_corrupted(run, None, asked, Console(), **how)
    assert folder is not None
    return folder


def files(folder: Path) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The test sets that are evaluated, with the corruption."""
    made: list[str] = []
    inner = Restored.evaluate

    def watched(self, test, split, matrix):
        corruption = self.assembly.loader.corruption
        made.append(f"{CLEAN if corruption is None else corruption.text} {test.name}")
        return inner(self, test, split, matrix)

    monkeypatch.setattr(Restored, "evaluate", watched)
    return made


def test_every_corruption_is_evaluated_once_on_all_test_sets_and_clean_equals_the_run(run: Path, calls: list[str]):
    folder = evaluate(run)
    assert calls == [f"{text} {test}" for text in TEXTS for test in ("ave", "avvp")]
    assert folder == run / FILE.parent
    record = read_robustness(run / FILE)
    assert record is not None
    assert [found.corruption for found in record.results] == TEXTS
    assert record.when == "after avvp"
    stored = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    for test in record.tests:
        last = next(line for line in reversed(stored) if line["test"] == test.name)
        assert record.value(CLEAN, test) == last["metrics"][test.primary]
        assert record.controls(test).keys() == last["controls"].keys() - set(last["oracles"])
    assert any(record.difference("missing:audio", test) for test in record.tests), "sound matters"
    table = (folder / "table.md").read_text()
    for text in TEXTS:
        assert f"`{text}`" in table

    calls.clear()
    before = files(folder)
    evaluate(run)
    assert (calls, files(folder)) == ([], before)
    evaluate(run, "[frame_occlusion:1.0]")
    assert calls == ["frame_occlusion:1 ave", "frame_occlusion:1 avvp"]
    assert len(read_robustness(run / FILE).results) == 5


def test_a_stopped_list_goes_on_where_it_was_and_ends_in_the_same_bytes(
    run: Path, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    config = (other / "config.yaml").read_text()
    assert "workers: 0" in config
    (other / "config.yaml").write_text(config.replace("workers: 0", "workers: 2"))
    whole = files(evaluate(other))
    calls.clear()
    watched = Restored.evaluate

    def interrupted(self, test, split, matrix):
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return watched(self, test, split, matrix)

    with monkeypatch.context() as patch:
        patch.setattr(Restored, "evaluate", interrupted)
        with pytest.raises(Stopped, match="SIGINT; 1 of 4 corruptions were finished and are kept: the same command"):
            evaluate(run)
    assert [found.corruption for found in read_robustness(run / FILE).results] == [CLEAN]
    calls.clear()
    assert files(evaluate(run)) == whole
    assert "clean ave" not in calls
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("phase", "session", "when"),
    [("before", 0, "before ave"), ("train", 0, "during ave"), ("evaluate", 0, "after ave"), ("before", 1, "after ave")],
)
def test_a_commit_says_where_in_the_stream_it_was_made(phase: str, session: int, when: str):
    trainer = SimpleNamespace(at=Position(session=session, phase=phase))
    assert Restored(None, trainer, None, None, "000001", "ave", ()).when == when


def test_predictions_under_a_corruption_do_not_depend_on_the_batch(run: Path):
    restored = restore(run, None, Console())
    found = []
    for size in (4, 3, 1):
        restored.trainer.evaluator.size = size
        with restored.assembly.loader.corrupted(parse_corruption("audio_noise:0")):
            evaluation = restored.evaluate(restored.tests[0], None, None).evaluation
        found.append({key: {n: v.tolist() for n, v in value.items()} for key, value in evaluation.predictions.items()})
    assert found[0] == found[1] == found[2]


def test_results_of_another_model_are_not_mixed_in_and_a_damaged_file_is_named(run: Path, calls: list[str]):
    folder = evaluate(run, "clean")
    record = json.loads((folder / FILE.name).read_text())
    record["digest"] = "0" * 64
    (folder / FILE.name).write_text(json.dumps(record))
    calls.clear()
    evaluate(run, "clean")
    assert calls == ["clean ave", "clean avvp"]
    assert evaluate(run, "clean", split="val").name == "robustness-val"
    (folder / FILE.name).write_text('{"format": 1}')
    with pytest.raises(IntegrityError, match=r"robustness\.json: field digest"):
        evaluate(run, "clean")


def test_a_run_that_stored_other_results_is_found_out_and_evaluated_all_the_same(run: Path):
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    lines[-1]["metrics"][lines[-1]["primary"]] += 1
    (run / "results.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    folder = evaluate(run, "[missing:audio]")
    record = read_robustness(run / FILE)
    assert list(record.stored) == ["avvp"]
    assert record.stored["avvp"][lines[-1]["primary"]] == lines[-1]["metrics"][lines[-1]["primary"]]
    assert [found.corruption for found in record.results] == [CLEAN, "missing:audio"]
    assert "Not what the run stored: avvp: clean samples scored" in (folder / "table.md").read_text()


def test_what_does_not_fit_is_refused_before_anything_is_evaluated(run: Path, calls: list[str]):
    for asked, how, message in (
        ("[audio_nois:3]", {}, "did you mean 'audio_noise'"),
        ("[missing_segments:audio:11]", {}, "the clips have 10 seconds"),
        ("[missing:audio]", {"modalities": ("visual",)}, "the run does not use audio"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(run, asked, **how)
    assert calls == []
    assert not (run / "evaluations").exists()


def test_the_command_lines_evaluate_and_the_report_shows_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from avcl.cli import main as avcl
    from avcl.report import render

    def call(main, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    assert "Missing and corrupted modalities" not in render([run]).read_text()
    assert call(avcl, "eval", str(run), "corruptions=[missing:vision]") == 0
    assert "audio only (no vision)" in capsys.readouterr().out
    page = render([run]).read_text()
    assert "Missing and corrupted modalities" in page
    assert "audio only (no vision)" in page
    assert (run / "results" / "figures" / "robustness.svg").is_file()

    from avcl_avvp.cli import main as avvp

    assert call(avvp, "test", f"run={run}", "corruptions=missing:audio") == 0
    assert "vision only (no sound)" in capsys.readouterr().out
    for main, arguments, named in (
        (avcl, ("eval", str(run), "corruption=standard"), "did you mean 'corruptions'"),
        (avcl, ("eval", str(run), "corruptions=[missing:audoi]"), "did you mean 'audio'"),
        (avcl, ("eval", str(run), "split=vla"), "expected one of val, test"),
        (avvp, ("test", f"run={run}", "corruptions="), "is empty"),
    ):
        assert call(main, *arguments) == 2
        shown = capsys.readouterr().err
        assert named in shown
        assert len(shown.strip().splitlines()) == 1
