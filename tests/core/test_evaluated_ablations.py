"""What avcl eval finds of a trained model without its prompts or adapters: where the run had it, in the same place."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from avcl_core.collective import Collective
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.running import launch
from avcl_core.running.tested import write_evaluation
from avcl_core.stream import Experience, Session, concatenation
from avcl_core.testing import toy_task

TASK = toy_task("labels")
FIRST, SECOND = (Experience(i, name, "labels", ("a",), ("b",), ("c",)) for i, name in enumerate(("first", "second")))
STREAM = concatenation("s", (FIRST, SECOND))
SCORE = {TASK.primary: 25.0}


@pytest.mark.parametrize(("row", "ablated"), [("first", False), ("second", True)])
def test_the_model_of_the_last_row_is_evaluated_without_its_parts(row, ablated, monkeypatch, tmp_path):
    asked = []

    def evaluate(method, task, experience, split, features, ablate):
        asked.append((experience.name, split, ablate))
        return Evaluation(SCORE, {}, {})

    sessions = tuple(Session(e.index, (e,), ()) for e in (FIRST, SECOND))
    assembly = SimpleNamespace(stream=STREAM, sessions=sessions, tasks={"labels": TASK})
    trainer = SimpleNamespace(evaluator=SimpleNamespace(evaluate=evaluate), method=None)
    run = launch.Restored(assembly, trainer, Collective(), launch.Console(), "tag", row, STREAM.tests[:1])
    monkeypatch.setattr(launch, "restore", lambda *arguments: run)
    launch.evaluate(tmp_path, None, launch.Console(), split="val")
    assert asked == [("first", "val", ablated)]
    run.evaluate(STREAM.tests[0], None, None)  # as under corruptions
    assert asked[1:] == [("first", "test", False)]


def test_what_was_found_is_written_and_said(tmp_path):
    said = []
    found = Evaluation({TASK.primary: 50.0}, {"always": SCORE}, {}, ablations={"without prompts": SCORE})
    folder = write_evaluation(tmp_path, "v", {"first": launch.Tested(TASK, found, None)}, said.append)
    (line,) = (folder / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["ablations"] == {"without prompts": SCORE}
    at = said.index(f"ablations ({TASK.primary}):")
    assert said[at + 1].split(":")[0] == "  without prompts"
    assert said[at + 2].startswith("controls")
    said.clear()
    write_evaluation(tmp_path, "v", {"first": launch.Tested(TASK, replace(found, ablations={}), None)}, said.append)
    assert not [line for line in said if "ablations" in line]
