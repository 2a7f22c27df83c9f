"""The routing of a run as a section of ``table.md``."""

from __future__ import annotations

import math
from collections.abc import Callable

from avcl_core.evaluation.routing_summary import RoutedTest, RoutingSummary
from avcl_core.evaluation.routing_words import say_alone, say_experts, say_gaps, say_results
from avcl_core.evaluation.table import DASH, format_score, markdown_table
from avcl_core.evaluation.usage_file import Part, RoutingTable


def routing_section(summary: RoutingSummary) -> list[str]:
    """Return the section's lines."""
    tests = summary.tests
    lines = ["## Routing", ""]
    if said := say_results(summary):
        lines += [said, ""]
    lines += _after(summary, "Routing accuracy in %", lambda test, row: percent(test.accuracy.get(row)))
    if summary.definitions:
        lines += _after(
            summary, "With the experience given", lambda test, row: format_score(test.given.get(row), test.ideal)
        )
        ideal = max((abs(test.ideal) for test in tests), default=100.0)
        lines += markdown_table(
            ["name", "as routed", "experience given"],
            [
                [found.name, format_score(found.routed.value, ideal), format_score(found.given.value, ideal)]
                for found in summary.definitions
            ],
        )
        lines += [""]
    tables = [(test, table) for test in tests if (table := test.last) is not None]
    if tables:
        lines += ["Share of each test set's samples that an expert got, and in brackets its score on them:", ""]
        header = ["test set", *summary.experts, "right choices", "wrong choices"]
        body = [
            [
                test.name,
                *(share(table, table.experts.get(name), test.ideal) for name in summary.experts),
                *(share(table, part, test.ideal) for part in (table.right, table.wrong)),
            ]
            for test, table in tables
        ]
        lines += [*markdown_table(header, body), "", say_experts(summary), ""]
    if summary.alone:
        lines += ["Each expert for all samples of a test set:", ""]
        body = [[name, *(format_score(test.alone.get(name), test.ideal) for test in tests)] for name in summary.alone]
        if summary.known_base:
            body.append(["without experts", *(format_score(test.base, test.ideal) for test in tests)])
        lines += [*markdown_table(["expert", *(test.name for test in tests)], body), "", say_alone(summary), ""]
    if said := say_gaps(summary):
        lines += [f"Gap between the best and the second best score: {said[0].lower()}{said[1:]}", ""]
    return lines


def share(table: RoutingTable, part: Part | None, ideal: float) -> str:
    """Return the share of a test set's samples, with their score in brackets where it is known."""
    total = sum(found.samples for found in table.experts.values())
    if part is None or not total:
        return DASH
    text = percent(100 * part.samples / total)
    return text if part.score is None else f"{text} ({format_score(part.score, ideal)})"


def percent(value: float | None) -> str:
    """Return a percentage as tables print it."""
    return DASH if value is None or math.isnan(value) else f"{value:.1f}"


def _after(summary: RoutingSummary, title: str, cell: Callable[[RoutedTest, str], str]) -> list[str]:
    body = [[row, *(cell(test, row) for test in summary.tests)] for row in summary.rows]
    return [f"{title}:", "", *markdown_table(["after", *(test.name for test in summary.tests)], body), ""]
