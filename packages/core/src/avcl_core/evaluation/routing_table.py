"""What routing costs on one test set: which expert got how many samples, how well it answers them, and how close the choice was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from avcl_core.evaluation.predicting import Choice
from avcl_core.task import Prediction, Task

BINS = 10
"""Bins of the histogram of gaps."""


def routing_table(
    choices: Mapping[str, Choice],
    own: str,
    task: Task,
    predictions: Mapping[str, Prediction],
    targets: Mapping[str, Prediction],
) -> dict[str, Any] | None:
    """Return the table as JSON, or nothing where no samples were routed by scores.

    ``experts``: slot → samples sent there and the primary metric over them. ``right``, ``wrong``: the same of samples that were sent
    to their own expert, and of all others. ``gap``: histogram of the best score minus the second best, for both.
    """
    scored = {key: choice.scores["all"] for key, choice in choices.items() if "all" in choice.scores}
    if not scored:
        return None

    def measured(keys: list[str]) -> dict[str, Any]:
        if not keys:
            return {"samples": 0, "score": None}
        score = task.score({k: predictions[k] for k in keys}, {k: targets[k] for k in keys})[task.primary]
        return {"samples": len(keys), "score": float(score) if np.isfinite(score) else None}

    at = {slot: [k for k, choice in choices.items() if choice.slot == slot] for slot in _slots(choices)}
    right = at.get(own, [])
    wrong = [key for key in choices if choices[key].slot != own]
    return {
        "own": own,
        "experts": {slot: measured(keys) for slot, keys in at.items()},
        "right": measured(right),
        "wrong": measured(wrong),
        "gap": _histogram(scored, right, wrong),
    }


def _slots(choices: Mapping[str, Choice]) -> list[str]:
    """Every candidate, and what samples without scores were sent to."""
    candidates = dict.fromkeys(slot for choice in choices.values() for slot in choice.scores.get("all", ()))
    return list(candidates | dict.fromkeys(choice.slot for choice in choices.values()))


def _histogram(scored: Mapping[str, Mapping[str, float]], right: list[str], wrong: list[str]) -> dict[str, Any] | None:
    """Counts of gaps in equal bins from 0 to the largest one; nothing where there is one candidate."""
    gaps = {}
    for key, scores in scored.items():
        values = sorted((v for v in scores.values() if np.isfinite(v)), reverse=True)
        if len(values) > 1:
            gaps[key] = values[0] - values[1]
    if not gaps:
        return None
    edges = np.linspace(0, max(gaps.values()) or 1.0, BINS + 1)
    counts = {
        name: np.histogram([gaps[k] for k in keys if k in gaps], edges)[0]
        for name, keys in (("right", right), ("wrong", wrong))
    }
    return {"edges": [float(f"{edge:.6g}") for edge in edges], **{n: c.tolist() for n, c in counts.items()}}
