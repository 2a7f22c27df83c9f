"""Reports: the same bytes every time, every number present, names escaped, nothing mixed that must not be."""

from __future__ import annotations

import html
import io
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from rich.console import Console

from avcl.report import compare, format_comparison_tables, format_result_table, render
from avcl.report.comparison import pooled_standard_error
from avcl.report.figures import control_of
from avcl_core.errors import ConfigError, IntegrityError
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.summary import summarise
from avcl_core.evaluation.table import ABLATIONS
from avcl_core.stream import Experience, concatenation

METRICS = {"ave": "accuracy", "avvp": "segment_type_av"}
MORE = {"ave": ("video_accuracy",), "avvp": ("segment_audio", "segment_visual", "segment_av", "event_type_av")}
CONTROLS = {
    "ave": {"chance": 3.45, "majority": 17.5, "shuffled predictions": 9.25},
    "avvp": {"predict nothing": 8.36, "majority": 12.625, "shuffled predictions": 10.75},
}
KEPT = {"finetune": 0.35, "er": 0.83, "er-large": 0.84, "joint": 1.0, "single": 1.0}


def _stream(name="ave-avvp", tasks=("ave", "avvp"), protocol="clean", task_id="given", names=None):
    names = names or tasks
    parts = [
        Experience(0, n, task, tuple(f"{n}-{k}" for k in range(6)), (f"{n}-v",), tuple(f"{n}-t{k}" for k in range(3)))
        for n, task in zip(names, tasks, strict=True)
    ]
    return concatenation(name, parts, task_id, protocol)


def make_run(root: Path, method: str, seed: int, stream=None, notes=(), skipped=(), edit=None) -> Path:
    """Write a run folder as the engine does; ``edit`` changes the result lines before they are written."""
    stream = stream or _stream()
    folder = root / stream.name / method / f"20250101-x-s{seed}"
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, sum(map(ord, method))])
    names = [e.name for e in stream.experiences]
    sessions = [names] if method == "joint" else [[name] for name in names]
    peak = {name: 74.0 - 9.0 * i + rng.normal(0, 0.9) for i, name in enumerate(names)}
    results, log, step = [], [], 0

    def line(row, test, value):
        task = stream.experience(test).task
        metrics = {METRICS[task]: value} | {m: value * (0.7 + 0.1 * k) for k, m in enumerate(MORE[task])}
        controls = {n: dict.fromkeys(metrics, v * 0.9) | {METRICS[task]: v} for n, v in CONTROLS[task].items()}
        return {
            "row": row,
            "test": test,
            "task": task,
            "primary": METRICS[task],
            "metrics": metrics,
            "controls": controls,
            "samples": 402,
        }

    for name in names:
        results.append(
            line("start", name, max(CONTROLS[stream.experience(name).task].values()) * rng.uniform(0.5, 0.9))
        )
    for session, members in enumerate(sessions):
        for epoch in range(8):
            for _ in range(12):
                fit = math.exp(-(epoch + rng.uniform(0, 1)) / 3)
                loss = {"nll": 0.4 + 2.2 * fit + abs(rng.normal(0, 0.08)), "balance": 0.05 + 0.02 * fit}
                if method.startswith("er") and session:
                    loss["replay"] = 0.3 + 0.5 * fit
                name = members[step % len(members)]
                log.append({"session": session, "experience": name, "epoch": epoch, "step": step, "loss": loss})
                step += 1
            shown = {
                m: {METRICS[stream.experience(m).task]: peak[m] * (1 - 0.5 * math.exp(-epoch / 2))} for m in members
            }
            log.append({"session": session, "epoch": epoch, "validation": shown, "selected": epoch < 6})
        tests = members if method == "single" else names[: names.index(members[-1]) + 1]
        for test in tests:
            age = names.index(members[-1]) - names.index(test)
            results.append(line(members[-1], test, peak[test] * KEPT[method] ** (0 if method == "joint" else age)))
    results = [entry for entry in results if edit is None or edit(entry) is not False]
    owned = [
        {"name": f"adapter.{i}.{kind}", "owner": owner, "numel": count, "kind": kind}
        for i, (owner, kind, count) in enumerate(
            [("shared", "parameter", 148_224), ("router", "parameter", 12_416), ("router", "buffer", 64)]
            + [(f"head:{task}", "parameter", 98_333) for task in stream.tasks]
            + [(f"task:{name}", "parameter", 24_576) for name in names]
        )
    ]
    run = {"id": f"x{seed}", "started": "2025-01-01", "method": method, "model": "avmoe", "seed": seed}
    run |= {"command": ["avcl", "run", f"configs/{stream.name}.yaml", f"method={method}", f"seed={seed}"]}
    run |= {"notes": list(notes), "skipped": list(skipped)}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "stream.json").write_text(json.dumps(stream.to_json()))
    (folder / "ownership.json").write_text(json.dumps(owned))
    (folder / "config.yaml").write_text(
        f"method:\n  name: {method}\nmodel: avmoe\nseed: {seed}\ntraining:\n  epochs: 8\n"
    )
    (folder / "results.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in results))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[tuple[str, int], Path]:
    """Run folders of five methods and three seeds on AVE → AVVP."""
    root = tmp_path_factory.mktemp("runs")
    return {(method, seed): make_run(root, method, seed) for method in KEPT for seed in range(3)}


def text_of(page: Path) -> str:
    """Return the visible text of a page, figures included."""
    body = page.read_text().split("<body>")[1]
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style.*?</style>|<!--.*?-->", " ", body, flags=re.S)))


def figure_text(folder: Path, name: str) -> str:
    """Return the text elements of a figure; comments, which repeat the source of a label, do not count."""
    tree = xml.etree.ElementTree.parse(folder / "results" / "figures" / f"{name}.svg")
    return " | ".join("".join(node.itertext()) for node in tree.iter("{http://www.w3.org/2000/svg}text"))


def test_a_report_is_one_file_that_asks_for_nothing(runs):
    folder = runs["er", 0]
    page = render([folder])
    assert page == folder / "report.html"
    source = page.read_text()
    assert re.findall(r"<(?:script|link|img|iframe|object)\b", source) == []
    # Names of XML vocabularies are not requests; nothing else may point outside the page.
    addresses = set(re.findall(r"https?://[^\"'<> )]+", source))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in source
    assert set(re.findall(r"url\(([^)]*)\)", source)) == set(re.findall(r"url\((#[^)]*)\)", source))
    names = {path.name for path in (folder / "results" / "figures").iterdir()}
    assert names == {"matrix.svg", "curves.svg", "loss.svg", "validation.svg", "parameters.svg"}
    for path in (folder / "results" / "figures").iterdir():
        xml.etree.ElementTree.parse(path)


def test_bytes_do_not_depend_on_time_place_or_user_settings(runs, tmp_path):
    folder = runs["er", 1]
    first = render([folder]).read_bytes()
    figures = {path.name: path.read_bytes() for path in (folder / "results" / "figures").iterdir()}
    moved = tmp_path / "another place"
    shutil.copytree(folder, moved)
    record = json.loads((moved / "run.json").read_text()) | {"id": "other", "started": "2031-01-01"}
    (moved / "run.json").write_text(json.dumps(record))
    with matplotlib.rc_context(
        {"font.size": 30, "axes.grid": False, "svg.hashsalt": "mine", "lines.linewidth": 9, "xtick.labelsize": 4}
    ):
        again = render([moved]).read_bytes()
    assert again == first
    assert {path.name: path.read_bytes() for path in (moved / "results" / "figures").iterdir()} == figures
    assert b"20250101" not in first
    assert render([runs["er", 2]]).read_bytes() != first


def test_every_number_is_in_the_report(runs):
    folder = runs["er", 0]
    summary = summarise(RunRecord.load(folder))
    text = text_of(render([folder]))
    for test in summary.tests:
        for value in (*test.values.values(), *test.controls.values(), test.final.value):
            assert f"{value:.2f}" in text
    table = text.split("Result matrix")[0]
    for test in summary.tests:
        assert all(f"{value:.2f}" in table for value in (*test.controls.values(), test.learnt.value, test.final.value))
    drawn = figure_text(folder, "matrix")
    assert all(f"{value:.2f}" in drawn for test in summary.tests for value in test.values.values())
    drawn = figure_text(folder, "parameters")
    assert all(f"{sum(counts.values()):,}" in drawn for counts in summary.parameters.values())
    first = summary.tests[0]
    assert first.drop.value is not None
    assert f"{first.drop.value:.2f}" in text
    assert f"{first.retention.value:.4f}" in text
    for row in summary.rows:
        for test in summary.tests:
            cell = summary.matrix.cell(row, test.name)
            for name, value in (cell.metrics if cell else {}).items():
                assert name in text
                assert f"{value:.2f}" in text
    for counts in summary.parameters.values():
        for count in counts.values():
            assert f"{count:,}" in text
    for fact in (
        "clean",
        "given",
        "avmoe",
        "avcl run configs/ave-avvp.yaml method=er seed=0",
        "epochs: 8",
        summary.digest,
    ):
        assert fact in text
    for definition in summary.definitions:
        assert definition.formula in text
    assert "different primary metrics (accuracy, segment_type_av)" in text


def test_definitions_are_shown_where_they_are_defined(tmp_path):
    stream = _stream("classes", ("ave",) * 3, names=("first", "second", "third"))
    folder = make_run(tmp_path, "er", 0, stream)
    summary = summarise(RunRecord.load(folder))
    text = text_of(render([folder]))
    for definition in summary.definitions:
        if definition.value is not None:
            assert f"{definition.value:.2f}".replace("-", "−") in text
    assert {d.name for d in summary.definitions if d.value is None} == {"FWT"}
    assert "FWT needs R[1,2], which is not evaluated" in text


@pytest.mark.parametrize(
    ("method", "reason"), [("joint", "joint training is one session"), ("single", "a new model per experience")]
)
def test_joint_and_separate_runs_give_the_reason_for_their_dashes(runs, method, reason):
    text = text_of(render([runs[method, 0]]))
    assert reason in text


def test_names_and_notes_are_escaped_everywhere(tmp_path):
    names = ("<b>&\"one'", "two $x^2$ <script>alert(1)</script>")
    stream = _stream("<i>s</i>", ("ave", "avvp"), names=names)
    stream = replace(stream, name="s & <i>t</i>")
    folder = make_run(tmp_path / "x", "er", 0, stream, notes=["<img src=x>"])
    other = make_run(tmp_path / "x", "finetune", 0, stream)
    render([folder])
    assert "two $x^2$" in figure_text(folder, "matrix")
    for page in (render([folder]), render([folder, other])):
        source = page.read_text()
        assert "<script" not in source
        assert "<img" not in source
        assert "<i>t" not in source
        assert "<b>&" not in source
        text = text_of(page)
        assert names[1] in text
        assert "s & <i>t</i>" in text
        for svg in re.findall(r"<svg.*?</svg>", source, flags=re.S):
            xml.etree.ElementTree.fromstring(svg)


def test_undefined_and_missing_results_do_not_stop_a_report(tmp_path):
    def undefined(entry):
        if entry["row"] == "start":
            entry["metrics"][entry["primary"]] = math.nan
        return entry["row"] != "avvp"

    folder = make_run(tmp_path, "er", 0, edit=undefined)
    text = text_of(render([folder]))
    assert "undefined" in text
    assert "not evaluated after avvp" in text
    empty = make_run(tmp_path, "finetune", 0, edit=lambda entry: False)
    (empty / "metrics.jsonl").unlink()
    (empty / "ownership.json").write_text("[]")
    assert "No evaluation has been recorded yet." in text_of(render([empty]))
    assert not (empty / "results" / "figures" / "loss.svg").exists()


def test_a_score_that_does_not_beat_its_control_is_called_so(tmp_path):
    def poor(entry):
        if entry["test"] == "ave":
            entry["metrics"]["accuracy"] = 10.0

    assert text_of(render([make_run(tmp_path, "er", 0, edit=poor)])).count("not above its best control") == 1


def test_an_ablation_is_shown_and_never_the_best_control(tmp_path):
    def ablated(entry):
        last = entry["row"] == "avvp"
        entry["ablations"] = {"without prompts": dict.fromkeys(entry["metrics"], 98.76)} if last else {}

    folder, plain = make_run(tmp_path, "er", 0, edit=ablated), make_run(tmp_path / "plain", "er", 0)
    best = {"ave": ("majority", 17.5), "avvp": ("majority", 12.625)}
    assert {test.name: control_of(test) for test in summarise(RunRecord.load(folder)).tests} == best
    (stream,) = compare([folder]).streams
    assert "without prompts" not in stream.controls
    assert [stream.best_control(column) for column in (0, 1)] == [17.5, 12.625]
    text, without = text_of(render([folder])), text_of(render([plain]))
    assert "not above its best control" not in text
    results, rest = text.split("Result matrix")
    assert results.count("98.76") == 2  # one of each test set
    assert rest.split("All metrics")[1].count("98.76") == sum(1 + len(more) for more in MORE.values())
    assert results.count(ABLATIONS) == 1
    assert figure_text(folder, "matrix") == figure_text(plain, "matrix")
    told = shown(format_result_table(RunRecord.load(folder)))
    assert told.count("98.76") == 2
    for nothing in (without, shown(format_result_table(RunRecord.load(plain)))):
        assert "ithout prompts" not in nothing
        assert "Ablations" not in nothing


def groups_of(comparison):
    (stream,) = comparison.streams
    return stream, {group.title: group for group in stream.groups}


def test_comparison_is_mean_and_std_over_seeds(runs):
    comparison = compare(list(runs.values()))
    stream, groups = groups_of(comparison)
    assert list(groups) == ["er", "er-large", "finetune", "joint", "single"]
    assert [groups[name].reference for name in groups] == [False, False, False, True, True]
    for method, group in groups.items():
        for column, test in enumerate(("ave", "avvp")):
            rows = [summarise(RunRecord.load(runs[method, seed])) for seed in range(3)]
            row = test if method == "single" else "avvp"
            values = [summary.matrix.value(row, test) for summary in rows]
            statistic = group.final[column].statistic
            assert statistic.mean == pytest.approx(statistics.mean(values))
            assert statistic.std == pytest.approx(statistics.stdev(values))
            assert group.final[column].text == f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    text, _, ratio = stream.gaps["joint"]["finetune"][0].partition(" ")
    gap = float(text.replace("−", "-"))
    means = [groups[name].final[0].statistic.mean or 0.0 for name in ("finetune", "joint")]
    assert gap == pytest.approx(means[0] - means[1], abs=0.005)
    assert ratio == f"({100 * means[0] / means[1]:.1f} %)"
    assert set(stream.controls) == {"chance", "majority", "shuffled predictions", "predict nothing"}
    assert {group.retention[1].text for group in groups.values()} == {"–"}
    assert groups["er"].retention[0].text == "0.8300 ± 0.0000"


def test_comparison_page_has_every_group_and_is_stable(runs, tmp_path):
    folders = list(runs.values())
    page = render(folders, tmp_path / "one.html")
    assert render(folders[::-1], tmp_path / "two.html").read_bytes() == page.read_bytes()
    text = text_of(page)
    stream, groups = groups_of(compare(folders))
    for group in groups.values():
        for entry in (*group.final, *group.drop, *group.retention):
            assert entry.text in text
    for rows in stream.gaps.values():
        for cells in rows.values():
            assert all(cell in text for cell in cells)
    assert render(folders) == Path(os.path.commonpath(folders)) / "report.html"


def fixed(root, method, seed, value, **more):
    """A run whose final AVE score is ``value``."""

    def edit(entry):
        if entry["row"] != "start" and entry["test"] == "ave":
            entry["metrics"]["accuracy"] = value

    return make_run(root, method, seed, edit=edit, **more)


def labels(folders):
    _, groups = groups_of(compare(folders))
    return {name: group.final[0].label for name, group in groups.items()}


def test_ties_are_called_ties(tmp_path):
    scores = {"er": (60, 62, 64), "er-large": (61, 63, 65.9), "finetune": (30, 31, 32), "joint": (70, 70, 70)}
    folders = [fixed(tmp_path, m, s, v) for m, values in scores.items() for s, v in enumerate(values)]
    error = pooled_standard_error(scores["er"], scores["er-large"])
    variance = (statistics.variance(scores["er"]) + statistics.variance(scores["er-large"])) / 2
    assert error == pytest.approx(math.sqrt(variance * 2 / 3))
    assert labels(folders) == {"er": "tie", "er-large": "tie", "finetune": "", "joint": ""}
    without = [folder for folder in folders if "er-large" not in str(folder)]
    assert labels(without) == {"er": "best", "finetune": "", "joint": ""}


def test_single_seeds_are_not_ranked_and_equal_means_tie(tmp_path):
    assert labels([fixed(tmp_path / "a", "er", 0, 60), fixed(tmp_path / "a", "finetune", 0, 50)]) == {
        "er": "unranked",
        "finetune": "unranked",
    }
    assert labels([fixed(tmp_path / "b", "er", 0, 60), fixed(tmp_path / "b", "finetune", 0, 60)]) == {
        "er": "tie",
        "finetune": "tie",
    }
    assert pooled_standard_error([1], [2]) is None
    assert pooled_standard_error([1], [2, 4]) == pytest.approx(math.sqrt(2 * 1.5))


def test_protocols_are_never_mixed(tmp_path):
    clean = make_run(tmp_path / "c", "er", 0)
    paper = make_run(tmp_path / "p", "finetune", 0, _stream("other", protocol="paper"))
    for call in (compare, render):
        with pytest.raises(ConfigError, match=r"runs mix protocol: clean \(.*\), paper \(.*\)"):
            call([clean, paper])
    assert not (tmp_path / "report.html").exists()


def test_runs_that_do_not_share_a_problem_are_refused(tmp_path):
    base = make_run(tmp_path / "0", "er", 0)
    hidden = make_run(tmp_path / "1", "finetune", 0, _stream(task_id="hidden"))
    with pytest.raises(ConfigError, match=r"mix task ids in stream ave-avvp: given .*, hidden"):
        compare([base, hidden])
    swapped = make_run(tmp_path / "2", "finetune", 0, _stream(tasks=("avvp", "ave")))
    with pytest.raises(ConfigError, match="mix test sets in stream ave-avvp"):
        compare([base, swapped])
    stream = _stream()
    fewer = tuple(replace(e, train=e.train[:2]) for e in stream.experiences)
    smaller = make_run(tmp_path / "3", "finetune", 0, replace(stream, experiences=fewer))
    with pytest.raises(ConfigError, match="mix stream definitions in stream ave-avvp at seed 0"):
        compare([base, smaller])
    another_seed = make_run(tmp_path / "4", "finetune", 1, replace(stream, experiences=fewer))
    assert "differ between seeds" in compare([base, another_seed]).streams[0].notes[0]
    twice = make_run(tmp_path / "5", "er", 0)
    with pytest.raises(ConfigError, match=r"seed 0 of er · avmoe in stream ave-avvp is there twice"):
        compare([base, twice])
    with pytest.raises(ConfigError, match="no run folder"):
        render([])
    with pytest.raises(IntegrityError, match=r"run\.json: not found"):
        render([tmp_path])


def test_an_unfinished_seed_is_not_averaged_with_finished_ones(tmp_path):
    done = make_run(tmp_path, "er", 0)
    half = make_run(tmp_path, "er", 1, edit=lambda entry: entry["row"] != "avvp")
    with pytest.raises(ConfigError, match="mix settings of er · avmoe"):
        compare([done, half])


def test_mixed_configurations_are_noted(tmp_path):
    one, two = make_run(tmp_path, "er", 0), make_run(tmp_path, "er", 1)
    assert compare([one, two]).streams[0].notes == ()
    (two / "config.yaml").write_text("method:\n  name: er\nmodel: avmoe\nseed: 1\ntraining:\n  epochs: 9\n")
    (note,) = compare([one, two]).streams[0].notes
    assert "differ in training.epochs;" in note


def shown(table) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_terminal_tables(runs, tmp_path):
    folder = runs["er", 0]
    record = RunRecord.load(folder)
    text = shown(format_result_table(record))
    for test in summarise(record).tests:
        assert f"{test.final.value:.2f}" in text
        for name, value in test.controls.items():
            assert any(name in line and f" {value:.2f} " in line for line in text.splitlines())
    assert "protocol clean" in text
    comparison = compare(list(runs.values()))
    (table,) = format_comparison_tables(comparison)
    text = shown(table)
    _, groups = groups_of(comparison)
    for group in groups.values():
        assert all(entry.text in text for entry in group.final)
    odd = make_run(tmp_path, "er", 0, _stream("[bold]s[/]", names=("[red]x", "y[/]")))
    assert "[red]x" in shown(format_result_table(RunRecord.load(odd)))


def test_package_import_is_light():
    code = "import sys, avcl.report; print(sorted({'matplotlib', 'jinja2', 'torch', 'rich'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
