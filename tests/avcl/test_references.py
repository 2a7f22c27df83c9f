"""A run beside the runs that judge it: what is made, what is repeated, which numbers stand in its report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from avcl.references import add_references, at_once, finish_references
from avcl.report import format_result_table, render
from avcl.sweep_jobs import run_jobs
from avcl_core.config.load import read
from avcl_core.config.presets import find_config
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError, IntegrityError, RunError, Stopped
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.summary import summarise, write_results
from avcl_core.running.references import make_references, places, references_of

from .sweep_runs import spawned
from .test_report import make_run, shown, text_of

NAMES = ("single", "joint")


def judged(root: Path, method: str = "er", **more: Any) -> Path:
    """A run of two tasks with both references, all done; further arguments for the run itself."""
    folders = {name: make_run(root, name, 0) for name in NAMES}
    run = make_run(root, method, 0, **more)
    for folder in (run, *folders.values()):
        record = json.loads((folder / "run.json").read_text()) | {"status": "done"}
        if folder == run:
            record["references"] = places(NAMES, run.name)
        (folder / "run.json").write_text(json.dumps(record))
    return run


def finals(run: Path) -> list[float]:
    return [test.final.value or 0.0 for test in summarise(RunRecord.load(run)).tests]


def test_gaps_are_the_final_scores_against_those_of_the_references(tmp_path: Path) -> None:
    run = judged(tmp_path)
    summary = summarise(RunRecord.load(run))
    assert list(summary.references) == list(NAMES)
    own = finals(run)
    for name, against in summary.references.items():
        other = finals(tmp_path / "ave-avvp" / name / run.name)
        assert own != other
        assert [gap.reference.value for gap in against.gaps] == other
        assert [gap.difference.value for gap in against.gaps] == pytest.approx(
            [a - b for a, b in zip(own, other, strict=True)]
        )
        ratios = [a / b for a, b in zip(own, other, strict=True)]
        assert [gap.ratio.value for gap in against.gaps] == pytest.approx(ratios)
        assert against.ratio.value == pytest.approx(sum(ratios) / 2)
        assert against.difference.value is None
        assert "different primary metrics" in against.difference.reason
    assert summary.retention.value == pytest.approx(summary.tests[0].retention.value)


def test_differences_of_one_metric_are_averaged(tmp_path: Path) -> None:
    from .test_report import _stream

    run = judged(tmp_path)
    shutil.rmtree(tmp_path)
    stream = _stream("classes", ("ave",) * 2, names=("first", "second"))
    for name in (*NAMES, "er"):
        folder = make_run(tmp_path, name, 0, stream)
        record = json.loads((folder / "run.json").read_text()) | {"status": "done"}
        (folder / "run.json").write_text(
            json.dumps(record | {"references": places(NAMES, run.name)} if name == "er" else record)
        )
    against = summarise(RunRecord.load(folder)).references["joint"]
    assert against.difference.value == pytest.approx(sum(gap.difference.value or 0.0 for gap in against.gaps) / 2)
    assert (against.difference.value or 0.0) < 0


def test_the_same_gaps_stand_in_table_terminal_and_page(tmp_path: Path) -> None:
    run = judged(tmp_path)
    summary = write_results(run)
    table = (run / "results" / "table.md").read_text()
    page, screen = text_of(render([run])), shown(format_result_table(RunRecord.load(run)))
    assert "## Against the references" in table
    assert "Against the references" in page
    for against in summary.references.values():
        for gap in against.gaps:
            number = f"{abs(gap.difference.value or 0.0):.2f}"
            sign = "−" if (gap.difference.value or 0.0) < 0 else "+"
            for text in (table, page, screen):
                assert f"{sign}{number}" in text
            for text in (table, page):
                assert f"{gap.ratio.value:.4f}" in text
                assert f"{gap.reference.value:.2f}" in text
        assert f"{against.ratio.value:.4f}" in table
    record = json.loads((run / "results" / "summary.json").read_text())
    assert record["references"]["joint"]["gaps"][0]["ratio"]["value"] == summary.references["joint"].gaps[0].ratio.value
    plain = make_run(tmp_path / "plain", "er", 0)
    assert "Against the references" not in text_of(render([plain]))


def test_plain_means_are_labelled_and_in_percent(tmp_path: Path) -> None:
    def small(entry: dict) -> None:
        if entry["test"] == "avvp":
            entry["ideal"] = 1.0
            for values in (entry["metrics"], *entry["controls"].values()):
                for name in values:
                    values[name] /= 100.0

    plain, scaled = make_run(tmp_path / "a", "er", 0), make_run(tmp_path / "b", "er", 0, edit=small)
    first, second = (summarise(RunRecord.load(run)) for run in (plain, scaled))
    means = {d.name: d.value for d in first.plain_means}
    assert means["A_T"] == pytest.approx(sum(finals(plain)) / 2)
    assert means["FM"] == pytest.approx(first.tests[0].drop.value)
    assert {d.name: d.value for d in second.plain_means} == pytest.approx(means), "in percent of the ideal"
    assert {d.value for d in second.definitions} == {None}
    write_results(scaled)
    table = (scaled / "results" / "table.md").read_text()
    assert "Plain means over different metrics" in table
    assert f"| A_T | {means['A_T']:.2f} |" in table


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: shutil.rmtree(path), "joint: its run folder is not where it was made"),
        (lambda path: edit(path, status="stopped"), "joint: its run is not done yet"),
        (lambda path: edit(path, seed=1), "joint: its run is of another stream or seed"),
    ],
)
def test_a_reference_that_cannot_be_used_is_a_reason(tmp_path: Path, change: Callable, reason: str) -> None:
    run = judged(tmp_path)
    change(tmp_path / "ave-avvp" / "joint" / run.name)
    summary = summarise(RunRecord.load(run))
    assert summary.references["single"].ratio.value is not None
    against = summary.references["joint"]
    assert {entry.reason for gap in against.gaps for entry in (gap.reference, gap.difference, gap.ratio)} == {reason}
    assert against.ratio.reason == reason
    assert reason in text_of(render([run]))
    write_results(run)
    assert reason in (run / "results" / "table.md").read_text()


def edit(path: Path, **values: Any) -> None:
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(record | values))


def test_results_depend_on_numbers_not_on_places(tmp_path: Path) -> None:
    run = judged(tmp_path / "a")
    write_results(run)
    moved = tmp_path / "b" / "c"
    shutil.copytree(tmp_path / "a", moved)
    again = moved / run.relative_to(tmp_path / "a")
    for name in ("summary.json", "table.md"):
        (again / "results" / name).unlink()
    write_results(again)
    for name in ("summary.json", "table.md"):
        assert (again / "results" / name).read_bytes() == (run / "results" / name).read_bytes()
        assert run.name.encode() not in (run / "results" / name).read_bytes()


# ------------------------------------------------------------------ making and training them


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of the embedded stream as ``avcl run`` leaves it before anything is trained."""
    monkeypatch.chdir(tmp_path)
    overrides = ["references=[single,joint]", "stream.tasks=[ave,avvp]", "threads=1", "model.bottleneck=8", "runs=runs"]
    options, _ = load_run(read(find_config("embedded", "avcl"), overrides))
    source = make_run(tmp_path / "source", "er", 0)
    run = Path("runs") / "ave-avvp" / "er" / "x-s0"
    run.mkdir(parents=True)
    shutil.copyfile(source / "stream.json", run / "stream.json")
    (run / "config.yaml").write_text(yaml.safe_dump(json.loads(options.model_dump_json()), sort_keys=False))
    record = {
        "status": "stopped",
        "method": "er",
        "model": "residual_adapters",
        "label": None,
        "seed": 0,
        "cwd": str(tmp_path),
        "digests": {"configuration": options.digest, "stream": "s", "data of ave": "d"},
        "references": places(NAMES, "x-s0"),
    }
    (run / "run.json").write_text(json.dumps(record))
    return run


def test_a_reference_is_the_configuration_with_another_method(main: Path) -> None:
    made = make_references(main)
    assert made == {name: Path("runs/ave-avvp") / name / "x-s0" for name in NAMES}
    for name, folder in made.items():
        options, _ = load_run(read(folder / "config.yaml"))
        given = ["stream.tasks=[ave,avvp]", "threads=1", "model.bottleneck=8", f"method.name={name}"]
        straight, _ = load_run(read(find_config("embedded", "avcl"), given))
        assert options.digest == straight.digest
        record = json.loads((folder / "run.json").read_text())
        assert record["digests"] == {"configuration": straight.digest, "stream": "s", "data of ave": "d"}
        assert (record["method"], record["status"], record.get("references")) == (name, "stopped", None)
        assert (folder / "stream.json").read_bytes() == (main / "stream.json").read_bytes()


def test_making_them_is_repeated_until_complete_and_then_never(main: Path) -> None:
    joint = references_of(main)["joint"]
    joint.mkdir(parents=True)
    (joint / "config.yaml").write_text("half of a f")
    made = make_references(main)
    assert load_run(read(joint / "config.yaml"))[0].method == {"name": "joint"}
    edit(made["single"], status="done")
    make_references(main)
    assert json.loads((made["single"] / "run.json").read_text())["status"] == "done"


def test_they_are_found_from_inside_the_run_folder(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {name: folder.resolve() for name, folder in make_references(main).items()}
    monkeypatch.chdir(main)
    assert {name: folder.resolve() for name, folder in references_of(Path()).items()} == made
    monkeypatch.chdir("..")
    assert {name: folder.resolve() for name, folder in references_of(Path("x-s0")).items()} == made


class Jobs:
    """Stands for the worker processes: ``how[method]`` says how one behaves."""

    def __init__(self, how: dict[str, str]) -> None:
        self.how, self.asked, self.jobs = how, [], 0

    def __call__(self, todo: list, jobs: int, say: Callable, command: Callable) -> list:
        self.asked = [(part.title, found.state, command(part, found)) for part, found in todo]
        self.jobs = jobs
        return run_jobs(todo, 1, say, lambda part, found: self.process(part.title, part.folder), spawned)

    def process(self, title: str, folder: Path) -> list[str]:
        record = (folder / "run.json").read_text()
        code = {"done": 0, "fail": 1, "data": 3, "preempted": 75}[self.how.get(title, "done")]
        status = {0: "done", 75: "stopped"}.get(code, "failed")
        text = json.dumps(json.loads(record) | {"status": status})
        say = "" if code == 0 else "import sys; print('error: broken', file=sys.stderr);"
        return [
            "python3",
            "-S",
            "-c",
            f"{say}open({str(folder / 'run.json')!r}, 'w').write({text!r}); raise SystemExit({code})",
        ]


def test_all_are_trained_and_what_is_done_is_not_repeated(main: Path) -> None:
    jobs = Jobs({"single": "fail"})
    with pytest.raises(
        RunError, match=r"single: broken \(exit code 1\); continue with: avcl resume runs/ave-avvp/er/x-s0"
    ):
        finish_references(main, ["workers=2"], jobs)
    assert [(title, state) for title, state, _ in jobs.asked] == [(n, "to run") for n in ("er", *NAMES)]
    assert jobs.asked[1][2] == ["resume", "runs/ave-avvp/single/x-s0", "--alone", "workers=2"]
    assert (main / "results" / "table.md").is_file(), "the run itself is done"
    jobs = Jobs({})
    assert finish_references(main, [], jobs) == main
    assert [(title, state) for title, state, _ in jobs.asked] == [("single", "failed")]
    jobs = Jobs({})
    finish_references(main, [], jobs)
    assert jobs.asked == []


@pytest.mark.parametrize(("how", "error"), [("data", IntegrityError), ("fail", RunError), ("preempted", Stopped)])
def test_the_error_says_how_it_ended(main: Path, how: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"avcl resume runs/ave-avvp/er/x-s0") as raised:
        finish_references(main, [], Jobs({"er": how, "joint": "fail"}))
    assert "sweep" not in str(raised.value)


def test_references_can_be_added_to_a_run_that_has_none(main: Path) -> None:
    edit(main, references={})
    assert add_references(main, ["workers=2", "references=[joint]"]) == ["workers=2"]
    assert list(references_of(main)) == ["joint"]
    add_references(main, ["references=[single]"])
    assert list(references_of(main)) == ["joint", "single"]
    assert references_of(main)["single"] == Path("runs/ave-avvp/single/x-s0")
    with pytest.raises(ConfigError, match="references"):
        add_references(main, ["references=[er]"])


def test_half_again_as_many_at_a_time_as_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    found = {}
    for given in (
        ["threads=1"],
        ["threads=2"],
        ["threads=null"],
        ["threads=1", "fabric.devices=2"],
        ["threads=1", "fabric.accelerator=cuda"],
    ):
        options, _ = load_run(read(find_config("embedded", "avcl"), given))
        found[" ".join(given)] = at_once(options)
    assert list(found.values()) == [9, 4, 1, 4, 1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert at_once(load_run(read(find_config("embedded", "avcl"), ["threads=1"]))[0]) == 1


def test_the_key_is_checked_and_changes_no_digest() -> None:
    path = find_config("embedded", "avcl")
    plain, _ = load_run(read(path))
    given, _ = load_run(read(path, ["references=[single,joint]"]))
    assert given.references == NAMES
    assert plain.references == ()
    assert given.digest == plain.digest
    for text, message in (
        ("references=[joint,joint]", "joint is there twice"),
        ("references=[er]", r"references.*'er'"),
        ("references=single", "references"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_run(read(path, [text]))
    with pytest.raises(
        ConfigError, match=r"override 'references=\[joint\]': references: .*the method of the run itself"
    ):
        load_run(read(path, ["references=[joint]", "method.name=joint"]))


def test_who_trains_one_run_alone_refuses_references() -> None:
    from avcl_core.running import launch

    source = read(find_config("embedded", "avcl"), ["references=[single]"])
    with pytest.raises(ConfigError, match=r"override 'references=\[single\]': references: are trained by avcl run"):
        launch.start(source, [], launch.Console())


def test_a_run_that_has_no_commit_yet_is_not_started_on_other_data(main: Path) -> None:
    from types import SimpleNamespace

    from avcl_core.running.folder import RunFolder
    from avcl_core.running.launch import _refuse_drift

    folder = RunFolder(make_references(main)["joint"])
    digests = dict(folder.read_json("run.json")["digests"])
    _refuse_drift(folder, SimpleNamespace(digests=digests))  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match=r"joint/x-s0: data of ave changed since the run was made"):
        _refuse_drift(folder, SimpleNamespace(digests=digests | {"data of ave": "e"}))  # type: ignore[arg-type]
