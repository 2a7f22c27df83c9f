"""Judged accuracy: what is asked, what is counted, what is kept, and what never is written down."""

import json
import sys
from pathlib import Path

import pytest

from avcl_avqa.judge_command import RUBRIC, Failure, JudgeCommand, Verdict, verdict_of
from avcl_avqa.judged import CACHE, Answered, Judged, JudgedAccuracy, judge_answers, judged_accuracy, write_judgements
from avcl_core.errors import ConfigError

# Reads what is asked, appends it to the file named first, then runs the code that follows.
JUDGE = """
import json, os, sys
asked = json.load(sys.stdin)
with open({log!r}, "a") as log:
    log.write(json.dumps(asked) + chr(10))
calls = len(open({log!r}).readlines())
{body}
"""
AGREE = 'print(json.dumps({"score": 4, "pred": "yes" if asked["predicted"] == "auto" else "no", "reason": "as told"}))'


class Tried:
    """A judge of one file of Python, what it was asked, and how long was waited between its calls."""

    def __init__(self, folder: Path, body: str, **options) -> None:
        self.log, self.waits = folder / "asked.jsonl", []
        script = folder / "judge.py"
        script.write_text(JUDGE.format(log=str(self.log), body=body))
        command = (sys.executable, "-S", str(script))
        self.judge = JudgeCommand(command, "judge-1", **options, sleep=self.waits.append)

    @property
    def asked(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


def answered(id: str, predicted: str, answer: str = "car") -> Answered:
    return Answered(id, "What is it?", answer, predicted)


def test_golden_counts():
    found = judged_accuracy([Judged("yes", 5, "")] * 3 + [Judged("no", 1, ""), Judged("failed", None, "")])
    assert found == JudgedAccuracy(yes=3, no=1, empty=0, failed=1)
    assert (found.accuracy, found.accuracy_of_all) == (0.75, 0.6)
    assert str(found) == "75.00 % of 4 judged (60.00 % of all 5; 0 empty, 1 failed)"
    assert str(judged_accuracy([])).startswith("nan % of 0 judged")


def test_only_what_is_neither_equal_nor_empty_is_asked(tmp_path):
    tried = Tried(tmp_path, AGREE)
    answers = [answered("a", "CAR "), answered("b", " "), answered("c", "auto"), answered("d", "bus")]
    found = judge_answers(answers, tried.judge, tmp_path / "run", workers=2)
    assert list(found) == ["a", "b", "c", "d"]
    assert [(j.pred, j.score) for j in found.values()] == [("yes", 5), ("empty", None), ("yes", 4), ("no", 4)]
    assert sorted(asked["predicted"] for asked in tried.asked) == ["auto", "bus"]
    assert tried.asked[0] | {"predicted": "auto"} == {
        "question": "What is it?",
        "answer": "car",
        "predicted": "auto",
        "rubric": RUBRIC,
        "model": "judge-1",
        "temperature": 0.01,
    }
    assert str(judged_accuracy(found.values())) == "66.67 % of 3 judged (50.00 % of all 4; 1 empty, 0 failed)"


def test_a_verdict_is_asked_for_once_and_only_for_the_same_inputs(tmp_path):
    tried = Tried(tmp_path, AGREE)
    folder = tmp_path / "run"
    first = judge_answers([answered("a", "auto"), answered("b", "auto")], tried.judge, folder)
    assert first["a"] == first["b"]
    assert len(tried.asked) == 1  # two records, one question about the same words
    assert judge_answers([answered("z", "auto")], tried.judge, folder)["z"] == first["a"]
    assert len(tried.asked) == 1
    for _ in range(2):
        judge_answers([answered("a", "auto", answer="van")], tried.judge, folder)
        assert len(tried.asked) == 2
    judge_answers([answered("a", "auto")], JudgeCommand(tried.judge.command, "judge-2"), folder)
    assert len(tried.asked) == 3


def test_a_line_that_was_cut_off_costs_its_verdict_alone(tmp_path):
    tried = Tried(tmp_path, AGREE)
    (tmp_path / CACHE).write_bytes('{"digest": "é'.encode()[:-1])
    for _ in range(2):
        assert judge_answers([answered("a", "auto")], tried.judge, tmp_path)["a"].pred == "yes"
        assert len(tried.asked) == 1


MALFORMED = {
    "no JSON": ("yes", "is no JSON"),
    "no object": ("[]", "is no JSON object"),
    "score out of range": ('{"score": 6, "pred": "yes", "reason": ""}', "score 6"),
    "score is true": ('{"score": true, "pred": "yes", "reason": ""}', "score True"),
    "other pred": ('{"score": 5, "pred": "Yes", "reason": ""}', "pred 'Yes'"),
    "no reason": ('{"score": 5, "pred": "yes"}', "reason None"),
}
FAILING = {
    "malformed": ("print('yes')", "reply 'yes' is no JSON"),
    "exit code": ("sys.stderr.write('no quota'); sys.exit(4)", "exit code 4: no quota"),
}


@pytest.mark.parametrize("name", FAILING)
def test_an_answer_without_a_verdict_is_counted_and_asked_again_next_time(tmp_path, name):
    body, reason = FAILING[name]
    tried = Tried(tmp_path, body, pause=0.5)
    found = judge_answers([answered("a", "auto"), answered("b", "car")], tried.judge, tmp_path)
    assert (found["a"].pred, found["a"].score) == ("failed", None)
    assert found["a"].reason.startswith("3 calls failed; the last: ")
    assert reason in found["a"].reason
    assert (len(tried.asked), tried.waits) == (3, [0.5, 1.0])
    assert judged_accuracy(found.values()) == JudgedAccuracy(yes=1, no=0, empty=0, failed=1)
    judge_answers([answered("a", "auto")], tried.judge, tmp_path)
    assert len(tried.asked) == 6


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_reply_is_no_verdict(name):
    reply, reason = MALFORMED[name]
    found = verdict_of(reply)
    assert isinstance(found, Failure)
    assert reason in found.reason


def test_a_later_attempt_counts(tmp_path):
    tried = Tried(tmp_path, f"if calls < 3: sys.exit(1)\n{AGREE}")
    assert tried.judge.ask("What is it?", "car", "auto") == Verdict(4, "yes", "as told")
    assert tried.waits == [1.0, 2.0]


def test_a_call_that_takes_too_long_is_a_failure(tmp_path):
    tried = Tried(tmp_path, "import time; time.sleep(60)", seconds=0.2)
    found = tried.judge.ask("What is it?", "car", "auto")
    assert isinstance(found, Failure)
    assert "no reply within 0.2 s" in found.reason


def test_a_credential_reaches_the_judge_and_is_never_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "s3cret-value")
    body = 'print(json.dumps({"score": 5, "pred": "yes", "reason": "with " + os.environ["JUDGE_KEY"]}))'
    tried = Tried(tmp_path, body, credentials=("JUDGE_KEY",))
    found = judge_answers([answered("a", "auto")], tried.judge, tmp_path / "run")
    assert found["a"].reason == "with ***"
    failing = Tried(tmp_path, "sys.exit('bad key ' + os.environ['JUDGE_KEY'])", credentials=("JUDGE_KEY",))
    assert failing.judge.ask("?", "car", "auto") == Failure("3 calls failed; the last: exit code 1: bad key ***")
    assert "s3cret" not in (tmp_path / "run" / CACHE).read_text() + repr(tried.judge) + json.dumps(tried.asked)


def test_a_judge_that_cannot_be_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="found no command"):
        JudgeCommand((), "judge-1")
    with pytest.raises(ConfigError, match="found no model"):
        JudgeCommand(("judge",), "")
    with pytest.raises(ConfigError, match="credentials JUDGE_KEY are not set"):
        JudgeCommand(("judge",), "judge-1", credentials=("JUDGE_KEY",))
    monkeypatch.setenv("JUDGE_KEY", "s3cret-value")
    with pytest.raises(ConfigError, match="a credential stands in the command") as error:
        JudgeCommand(("judge", "--key=s3cret-value"), "judge-1", credentials=("JUDGE_KEY",))
    assert "s3cret" not in str(error.value)
    with pytest.raises(ConfigError, match="No such file"):
        judge_answers([answered("a", "auto")], JudgeCommand((str(tmp_path / "none"),), "judge-1"), tmp_path)


def test_ids_are_unique(tmp_path):
    with pytest.raises(ValueError, match="1 ids repeat, the first 'a'"):
        judge_answers([answered("a", "x"), answered("a", "y")], JudgeCommand(("judge",), "judge-1"), tmp_path)


def test_judgements_are_written_in_the_published_form(tmp_path):
    answers = [answered("7", "car"), answered("8", "")]
    found = judge_answers(answers, JudgeCommand(("judge",), "judge-1"), tmp_path)
    write_judgements(tmp_path / "task0.json", answers, found)
    assert json.loads((tmp_path / "task0.json").read_text()) == {
        "7": [
            {"score": 5, "pred": "yes", "reason": "equal to the answer"},
            {"question": "What is it?", "answer": "car", "predicted": "car"},
        ],
        "8": [
            {"score": None, "pred": "empty", "reason": "nothing was predicted"},
            {"question": "What is it?", "answer": "car", "predicted": ""},
        ],
    }
