"""Expert and prompt usage in a run's report: every weight with its colour, tests in stream order, nothing for a model without experts."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
import torch

from avcl.report.page import render_run
from avcl.report.usage import colour, relative
from avcl_core.collective import Collective
from avcl_core.errors import IntegrityError
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.evaluation.usage import Usage, UsageCounter
from avcl_core.evaluation.usage_file import add_usage, usage_file
from avcl_core.running.folder import RunFolder
from avcl_core.stream import Experience, concatenation
from avcl_core.trace import Trace

TESTS = ("ave", "avqa")


def usage(weight: float, towers=("audio", "visual"), group: str = "dog & <b>man</b>") -> Usage:
    """Statistics of two samples, one in a group: at each of three places the first expert has ``weight``."""
    trace = Trace()
    for place in ("0 0 attn", "0 0 mlp", "2 1 attn"):
        for shift, tower in enumerate(towers):
            label = f"{tower} {place}"
            first = torch.tensor([weight, 1 - weight])
            trace.put(label, "gates", torch.stack([first, 1 - first], 1))
            trace.put(label, "residual", torch.tensor([0.25, 0.5]) * (1 + shift))
            trace.keep(label, "experts", ["cross 0", "uni 0"])
            trace.keep(label, "output_gates", [0.125, -0.5])
    counter = UsageCounter({"a": (group,), "b": ()})
    counter.add(trace, ("a", "b"))
    found = counter.usage(Collective())
    assert found is not None
    return found


def make_run(root: Path, *results: tuple[str, str, Usage | None]) -> Path:
    """Write a run folder with these results (row, test set, statistics) through the engine's own writer."""
    stream = concatenation("s", [Experience(i, n, n, ("a",), ("b",), ("c",)) for i, n in enumerate(TESTS)])
    root.mkdir(parents=True)
    (root / "run.json").write_text(json.dumps({"method": "finetune", "model": "m", "seed": 0}))
    (root / "stream.json").write_text(json.dumps(stream.to_json()))
    (root / "config.yaml").write_text("seed: 0\n")
    for row, test, found in results:
        metrics = {"accuracy": 40.0}
        record = {"row": row, "test": test, "task": test, "primary": "accuracy", "metrics": metrics, "samples": 2}
        RunFolder(root).result(record, Evaluation(metrics, {}, {}, (), found), dict)
    return root


def section(run: Path) -> str:
    """Return the source of the section."""
    source = render_run(run).read_text()
    return source[source.index("<h2>Expert and prompt usage</h2>") : source.index("<h2>All metrics</h2>")]


def words(source: str) -> str:
    """Return what a page says, without tags and figures."""
    bare = re.sub(r"<svg.*?</svg>", " ", source, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).split())


@pytest.fixture
def run(tmp_path) -> Path:
    """A stream of two tasks; the first is tested twice."""
    return make_run(
        tmp_path / "run",
        ("ave", "ave", usage(0.6)),
        ("avqa", "ave", usage(0.9)),
        ("avqa", "avqa", usage(0.75)),
    )


def test_the_last_row_of_each_test_set_is_shown_side_by_side(run):
    source = section(run)
    said = words(source)
    # gates 0.9 and 0.1 in two rows: mean 0.5; group of the first sample: 0.9
    assert "ave 2 visual 3 0.500 0.500 50 % 50 % 0.469 0.750 audio 3 0.500 0.500 50 % 50 % 0.469 0.375" in said
    assert "dog & <b>man</b> 1 visual 0.900 0.100 100 % 0 %" in said
    assert "dog & <b>man</b> 1 visual 0.750 0.250 100 % 0 %" in said
    assert "0.600" not in said  # an earlier row
    assert said.index("ave by group") < said.index("avqa by group")
    assert "after avqa" in said
    titles = re.findall(r">((?:ave|avqa): (?:visual|audio))<", source)
    assert titles == ["ave: visual", "ave: audio", "avqa: visual", "avqa: audio"]
    assert "Entropy / log E Residual / tokens" in said


def test_sites_are_listed_with_what_else_they_tell(run):
    said = words(section(run))
    assert "audio 2 1 attn 0.500 0.500 50 % 50 % 0.325 0.469 residual 0.375; output_gates 0.125, −0.500" in said


def test_figures_are_files_too_and_the_page_is_the_same_bytes(run):
    once = render_run(run).read_bytes()
    assert {"usage.svg", "usage_depth.svg"} <= {p.name for p in (run / "results" / "figures").iterdir()}
    assert render_run(run).read_bytes() == once
    assert not re.search(rb'(src|href)="http', once)


def test_colours_run_from_never_over_the_even_share_to_always():
    assert [relative(w, 4) for w in (0.0, 0.25, 0.625, 1.0)] == [0.0, 0.5, 0.75, 1.0]
    assert relative(1.0, 1) == 0.5  # one expert has no choice
    assert colour(0.5, 2) == colour(0.25, 4) == "#ffffff"
    assert len({colour(w, 2) for w in (0.0, 0.3, 0.5, 0.7, 1.0)}) == 5


def test_the_cell_has_the_colour_of_its_weight(run):
    assert f'background:{colour(0.9, 2)};color:#ffffff">0.900' in section(run)


def test_other_evaluations_are_listed(run):
    folder = RunFolder(run / "evaluations" / "visual only")
    folder.path.mkdir(parents=True)
    folder.result({"row": "evaluation", "test": "ave"}, Evaluation({}, {}, {}, (), usage(0.5)), dict)
    folder.result({"row": "evaluation", "test": "avqa"}, Evaluation({}, {}, {}, (), usage(0.75)), dict)
    (run / "evaluations" / "plain").mkdir()
    said = words(section(run))
    assert "In other evaluations" in said
    assert "visual only: ave 2 visual 0.500" in said
    assert "visual only: avqa" not in said  # what the run itself has


def test_corruptions_are_a_table_of_totals_and_nothing_else(run):
    plain = section(run)
    path = usage_file(run / "evaluations" / "robustness")
    names = ["clean", "missing:audio", *(f"audio_noise:{level}" for level in range(8))]
    for number, name in enumerate(names):
        for test in TESTS:
            add_usage(path, name, test, usage(0.5 + number / 20))
    source = section(run)
    said = words(source)
    assert "In other evaluations" not in said
    for test in TESTS:
        assert said.count(f"{test} under corruptions totals over all sites of a tower; robustness") == 1
    for name in names:
        assert source.count(f"<th>{name}</th>") == len(TESTS), "once for each test set"
    assert "missing:audio 2 visual 0.500 0.500" in said
    assert source.count("<svg") == plain.count("<svg")
    assert [source.count(f">{test}: visual<") for test in TESTS] == [plain.count(f">{test}: visual<") for test in TESTS]


def test_a_model_that_diverged_has_a_report(tmp_path):
    assert "nan nan nan % nan % nan" in words(section(make_run(tmp_path / "run", ("ave", "ave", usage(float("nan"))))))


def test_one_tower_has_no_agreement(tmp_path):
    source = section(make_run(tmp_path / "run", ("ave", "ave", usage(0.8, ("visual",)))))
    assert "same expert first in both" not in source
    assert ">visual<" in source


def test_residuals_are_drawn_at_the_sites_that_tell_them_and_for_the_towers_that_have_any(tmp_path):
    """As PHP has them: pools with weights, adapters with residuals, and here no adapter of sound."""
    trace = Trace()
    for tower in ("visual", "audio"):
        trace.put(f"{tower} pool", "gates", torch.tensor([[0.75, 0.25]]))
    trace.put("visual shallow mlp", "residual", torch.tensor([0.25]))
    counter = UsageCounter({"a": ()})
    counter.add(trace, ("a",))
    figures = (
        render_run(make_run(tmp_path / "run", ("ave", "ave", counter.usage(Collective())))).parent / "results/figures"
    )
    drawn = re.findall(r">([^<>]+)</", (figures / "usage_depth.svg").read_text())
    assert "visual: residual / tokens" in drawn
    assert "audio: residual / tokens" not in drawn
    assert "Residual / tokens" not in words(section(figures.parents[1])), "no table has a column of dashes"
    assert drawn.count("mlp") == 1
    assert drawn.count("pool") == 3  # evenness of both towers, and their agreement


def test_a_model_without_experts_has_no_section(tmp_path):
    run = make_run(tmp_path / "run", ("ave", "ave", None))
    assert "Expert and prompt usage" not in render_run(run).read_text()
    assert not (run / "results" / "figures" / "usage.svg").exists()


def test_modules_without_gates_make_no_section(tmp_path):
    trace = Trace()
    trace.put("audio 0", "residual", torch.ones(1))
    counter = UsageCounter({"a": ()})
    counter.add(trace, ("a",))
    run = make_run(tmp_path / "run", ("ave", "ave", counter.usage(Collective())))
    assert "Expert and prompt usage" not in render_run(run).read_text()


def test_a_damaged_file_is_refused_and_named(run):
    usage_file(run).write_text('{"ave": {"ave": {"samples": "many"}}}')
    with pytest.raises(IntegrityError, match=r"expert_usage\.json: field ave\.ave\.samples: found 'many'"):
        render_run(run)
