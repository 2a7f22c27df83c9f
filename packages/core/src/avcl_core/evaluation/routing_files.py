"""``routing.csv`` and ``routing.json``: every number about the routing of a run, for other programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avcl_core.evaluation.matrix import encode_number
from avcl_core.evaluation.routing_summary import RoutedTest, RoutingSummary
from avcl_core.evaluation.routing_words import say_alone, say_experts, say_gaps, say_results
from avcl_core.evaluation.usage_file import Part

COLUMNS = ("table", "after", "test", "expert", "name", "low", "high", "value")
"""One number per line. ``low`` and ``high`` bound a bin of the histogram of gaps; what does not apply is empty."""
Line = tuple[str, str, str, str, str, str, str, str]


def write_routing(summary: RoutingSummary, folder: Path) -> None:
    """Write both files; their bytes depend on the numbers alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_lines(summary))
    (folder / "routing.csv").write_bytes(text.getvalue().encode())
    record = json.dumps(to_json(summary), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "routing.json").write_bytes((record + "\n").encode())


def to_json(summary: RoutingSummary) -> dict[str, Any]:
    """Return the content of ``routing.json``: strict JSON."""
    return {
        "rows": list(summary.rows),
        "experts": list(summary.experts),
        "routing_accuracy": summary.accuracy,
        "definitions": [
            {
                "name": found.name,
                "formula": found.formula,
                "as_routed": found.routed.value,
                "experience_given": found.given.value,
                "reason": found.routed.reason or found.given.reason,
            }
            for found in summary.definitions
        ],
        "tests": {test.name: _test(test) for test in summary.tests},
        "says": {
            "results": say_results(summary),
            "experts": say_experts(summary),
            "single_experts": say_alone(summary),
            "gaps": say_gaps(summary),
        },
    }


def _test(test: RoutedTest) -> dict[str, Any]:
    def plain(values: dict[str, float]) -> dict[str, float | str]:
        return {name: encode_number(value) for name, value in values.items()}

    return {
        "experience": test.experience,
        "own_expert": test.own,
        "primary": test.primary,
        "ideal": test.ideal,
        "samples": test.samples,
        "as_routed": plain(test.routed),
        "experience_given": plain(test.given),
        "routing_accuracy": plain(test.accuracy),
        "choices": {row: table.model_dump() for row, table in test.tables.items()},
        "single_expert": plain(test.alone),
        "base_model": None if test.base is None else encode_number(test.base),
    }


def _lines(summary: RoutingSummary) -> Iterator[Line]:
    for test in summary.tests:
        for name, values in (("as routed", test.routed), ("experience given", test.given)):
            for row, value in values.items():
                yield _line("results", row, test.name, name=name, value=value)
        for row, value in test.accuracy.items():
            yield _line("routing accuracy", row, test.name, name="routing_accuracy", value=value)
    for found in summary.definitions:
        for kind, entry in (("as routed", found.routed), ("experience given", found.given)):
            yield _line(f"definitions {kind}", name=found.name, value=entry.value)
    for test in summary.tests:
        for row, table in test.tables.items():
            for expert, part in table.experts.items():
                yield from _part("experts", row, test.name, expert, part, "")
            for kind, part in (("right", table.right), ("wrong", table.wrong)):
                yield from _part("choices", row, test.name, "", part, f"{kind} ")
            if table.gap is not None:
                for kind, counts in (("right", table.gap.right), ("wrong", table.gap.wrong)):
                    for low, high, count in zip(table.gap.edges, table.gap.edges[1:], counts, strict=False):
                        yield ("gaps", row, test.name, "", kind, repr(low), repr(high), str(count))
    for test in summary.tests:
        for expert, value in test.alone.items():
            yield _line("single expert", summary.rows[-1], test.name, expert, test.primary, value)
        if test.base is not None:
            yield _line("base model", summary.rows[-1], test.name, "", test.primary, test.base)


def _part(table: str, row: str, test: str, expert: str, part: Part, kind: str) -> Iterator[Line]:
    yield _line(table, row, test, expert, f"{kind}samples", part.samples)
    yield _line(table, row, test, expert, f"{kind}score", part.score)


def _line(
    table: str, after: str = "", test: str = "", expert: str = "", name: str = "", value: float | None = None
) -> Line:
    return (table, after, test, expert, name, "", "", "" if value is None else repr(value))
