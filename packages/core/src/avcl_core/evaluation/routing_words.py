"""What each table about routing says, in a sentence or two made from its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from avcl_core.evaluation.routing_summary import RoutingSummary
from avcl_core.evaluation.table import format_score
from avcl_core.evaluation.usage_file import Gaps, Part


def say_results(summary: RoutingSummary) -> str:
    """Say how often the choice was right, what wrong choices cost, and how much forgetting they are."""
    said = []
    if summary.accuracy is not None:
        said.append(f"After {summary.rows[-1]} {summary.accuracy:.1f} % of all samples are sent to their own expert.")
    ideal = summary.tests[0].ideal
    average, forgotten = summary.definition("A_T"), summary.definition("FM")
    if average is not None and average.routed.value is not None and average.given.value is not None:
        cost = average.given.value - average.routed.value
        text = f"A_T is {_score(average.routed.value, ideal)} as routed and {_score(average.given.value, ideal)} with the experience given"
        said.append(f"{text}: {_cost(cost, ideal)}.")
    if forgotten is not None and forgotten.routed.value is not None and forgotten.given.value is not None:
        text = f"FM is {_score(forgotten.routed.value, ideal)} as routed and {_score(forgotten.given.value, ideal)} with the experience given"
        routed, given = (_rounded(value, ideal) for value in (forgotten.routed.value, forgotten.given.value))
        if given:
            ending = "experts change by themselves too"
        elif routed > 0:
            ending = "all of it is wrong choices, no expert forgets"
        else:
            ending = "choices have become better, no expert forgets" if routed else "nothing is forgotten"
        said.append(f"{text}: {ending}.")
    return " ".join(said)


def say_experts(summary: RoutingSummary) -> str:
    """Say which confusion is the largest, and how right and wrong choices score."""
    confused = [
        (part.samples / total, test, name, part.samples, total)
        for test in summary.tests
        if (table := test.last) is not None and (total := _sent(table.experts.values()))
        for name, part in table.experts.items()
        if name != table.own and part.samples
    ]
    if not any(test.last for test in summary.tests):
        return ""
    if not confused:
        return "Every sample is sent to its own expert."
    share, test, name, count, total = max(confused, key=lambda entry: entry[0])
    said = f"The largest confusion: {100 * share:.1f} % of {test.name} ({count:,} of {total:,}) go to {name}."
    right, wrong = pooled(summary)
    if right is not None and wrong is not None:
        ideal = summary.tests[0].ideal
        said += f" Over all test sets, {summary.tests[0].primary} is {_score(right, ideal)} where the choice is right and {_score(wrong, ideal)} where it is wrong."
    return said


def say_alone(summary: RoutingSummary) -> str:
    """Say on how many test sets the own expert is the best one, and whether experts beat the frozen model."""
    judged = [test for test in summary.tests if math.isfinite(test.alone.get(test.own, math.nan))]
    if not judged:
        return ""
    beaten = [test for test in judged if max(test.alone.values()) > test.alone[test.own]]
    said = f"The own expert is the best one, alone or with others, on {len(judged) - len(beaten)} of {len(judged)} test sets"
    if beaten:
        worst = max(beaten, key=lambda test: max(test.alone.values()) - test.alone[test.own])
        name = max(worst.alone, key=lambda slot: worst.alone[slot])
        said += f" (most missed on {worst.name}: {name} has {_score(worst.alone[name], worst.ideal)}, its own {_score(worst.alone[worst.own], worst.ideal)})"
    based = [(test, test.base) for test in judged if test.base is not None and math.isfinite(test.base)]
    if based:
        better = sum(test.alone[test.own] > base for test, base in based)
        said += f"; it is above the frozen base model on {better} of {len(based)}"
    return f"{said}."


def say_gaps(summary: RoutingSummary) -> str:
    """Say whether wrong choices were closer than right ones."""
    found = [table.gap for test in summary.tests if (table := test.last) is not None and table.gap is not None]
    right, wrong = median_gap(found, "right"), median_gap(found, "wrong")
    if right is None and wrong is None:
        return ""
    if wrong is None:
        return f"The median gap is {right:.3g}; no choice is wrong."
    if right is None:
        return f"The median gap is {wrong:.3g}; no choice is right."
    said = f"The median gap, read off the bins, is {right:.3g} where the choice is right and {wrong:.3g} where it is wrong: "
    closer = wrong < 0.5 * right
    return said + ("wrong choices are close ones." if closer else "wrong choices are not marked by a small gap.")


def pooled(summary: RoutingSummary) -> tuple[float | None, float | None]:
    """Return the primary metric of right and of wrong choices over all test sets, weighted by samples, where they share one."""
    if not summary.one_metric:
        return None, None
    tables = [table for test in summary.tests if (table := test.last) is not None]
    return _mean(table.right for table in tables), _mean(table.wrong for table in tables)


def median_gap(found: Iterable[Gaps], kind: str) -> float | None:
    """Return the median of histograms taken together, gaps being spread evenly in their bins; ``None`` without any."""
    bins = [
        (low, high, count)
        for gaps in found
        for low, high, count in zip(gaps.edges, gaps.edges[1:], getattr(gaps, kind), strict=False)
        if count
    ]
    if not bins:
        return None
    at = np.unique([edge for low, high, _ in bins for edge in (low, high)])
    below = sum(count * np.clip((at - low) / (high - low), 0, 1) for low, high, count in bins)
    return float(np.interp(0.5 * sum(count for _, _, count in bins), below, at))


def _mean(parts: Iterable[Part]) -> float | None:
    known = [(part.score, part.samples) for part in parts if part.score is not None and part.samples]
    return sum(s * n for s, n in known) / sum(n for _, n in known) if known else None


def _sent(parts: Iterable[Part]) -> int:
    return sum(part.samples for part in parts)


def _score(value: float, ideal: float) -> str:
    return format_score(value, ideal).replace("-", "−")


def _rounded(value: float, ideal: float) -> float:
    """The value as it is printed."""
    return float(format_score(value, ideal))


def _cost(cost: float, ideal: float) -> str:
    if not _rounded(cost, ideal):
        return "choosing costs nothing"
    return f"choosing {'costs' if cost > 0 else 'gains'} {_score(abs(cost), ideal)}"
