"""Routing in a run's report: told beside chosen, who got what, experts alone, and nothing of it for a run that is told."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from avcl.report import format_result_table, render
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.usage_file import usage_file

from ..core.routing_runs import TESTS, line, stream_of, write


def section(source: str) -> str:
    """Return the source of the section."""
    start = source.index("<h2>Routing</h2>")
    return source[start : source.index("<h2>", start + 4)]


def words(source: str) -> str:
    """Return what a page says, without tags and figures."""
    bare = re.sub(r"<svg.*?</svg>", " ", source, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run, with its page."""
    folder = write(tmp_path_factory.mktemp("runs") / "run")
    render([folder])
    return folder


def test_told_results_and_accuracy_stand_beside_the_chosen_ones(run):
    said = words(section((run / "report.html").read_text()))
    assert "As routed After a b c a 80.00 – – b 64.00 60.00 – c 48.00 54.00 70.00" in said
    assert "Experience given After a b c a 80.00 – – b 80.00 60.00 – c 80.00 60.00 70.00" in said
    assert "Routing accuracy, % After a b c a 100.0 – – b 80.0 100.0 – c 60.0 90.0 100.0" in said
    assert "FM 19.00 0.00 mean over" in said
    assert "choosing costs 12.67" in said


def test_shares_and_experts_alone(run):
    source = section((run / "report.html").read_text())
    said = words(source)
    assert "a 60.0 80.00 0.0 40.0 0.00 60.0 80.00 40.0 0.00" in said
    assert "c 7.00 65.00 70.00 without experts 1.25 1.25 1.25" in said
    assert re.search(r'class="n own" style="[^"]*">60\.0<', source)
    assert re.search(r'class="n" style="[^"]*">40\.0<', source)


def test_the_histogram_is_a_file_and_the_page_the_same_bytes(run):
    once = (run / "report.html").read_bytes()
    drawn = re.findall(r">([^<>]+)</", (run / "results" / "figures" / "routing.svg").read_text())
    assert {*TESTS, "right choice", "wrong choice"} <= set(drawn)
    assert render([run]).read_bytes() == once


def test_other_tables_are_not_crowded_with_experts_alone(run):
    page = (run / "report.html").read_text()
    assert "a for all" not in page.split("<h2>Command and configuration")[0]
    results = words(page.split("<h2>Result matrix")[0])
    assert "experience given 80.00 without experts 1.25" in results
    console = Console(width=160, file=io.StringIO())
    console.print(format_result_table(RunRecord.load(run)))
    told = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "choosing costs 12.67" in told
    assert "experience given 80.00" in told
    assert "for all" not in told


def test_a_run_that_is_told_or_routes_nothing_has_no_section(tmp_path):
    told = write(tmp_path / "told", stream=stream_of("given"))
    plain = line("a", "a")
    del plain["metrics"]["routing_accuracy"], plain["ablations"]
    other = write(tmp_path / "plain", [plain])
    usage_file(other).unlink()
    for folder in (told, other):
        assert "<h2>Routing" not in render([folder]).read_text()
        assert not (folder / "results" / "figures" / "routing.svg").exists()
