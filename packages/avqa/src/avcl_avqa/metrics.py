"""AVQA is judged by the share of right answers, overall and per question type (Li et al., CVPR 2022; tasks.md 4.6)."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from avcl_core.errors import nearest

TYPES = (
    ("Audio", "Counting"),
    ("Audio", "Comparative"),
    ("Visual", "Counting"),
    ("Visual", "Location"),
    ("Audio-Visual", "Existential"),
    ("Audio-Visual", "Counting"),
    ("Audio-Visual", "Location"),
    ("Audio-Visual", "Comparative"),
    ("Audio-Visual", "Temporal"),
)
"""The nine question types, (modality, kind), in index order."""
GROUPS = {"Audio": "audio", "Visual": "visual", "Audio-Visual": "av"}
"""Modality → key of its group."""
KEYS = tuple(f"{GROUPS[modality]}_{kind.lower()}" for modality, kind in TYPES)
"""Key of each type, in index order."""


def accuracy_by_type(pred: ArrayLike, target: ArrayLike, types: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Return accuracies in percent per type, per group and overall; groups and overall are micro averages.

    Args:
        pred: predicted answers ``[N]``, indices or texts.
        target: true answers ``[N]``.
        types: ``[N]`` question types, each the raw string ``'["Audio", "Counting"]'`` or the pair ``("Audio", "Counting")``.

    Returns:
        ``audio_counting, audio_comparative, audio, visual_counting, visual_location, visual, av_existential, av_counting,
        av_location, av_comparative, av_temporal, av, overall``; NaN for a type without items.

    Raises:
        ValueError: lengths differ, there are no items, or a type is unknown.
    """
    predicted, true = np.asarray(pred), np.asarray(target)
    if predicted.shape != true.shape or predicted.ndim != 1 or len(types) != len(true) or not len(true):
        raise ValueError(
            f"expected pred, target and types of one length N > 0, got {predicted.shape}, {true.shape} and {len(types)}"
        )
    kind = np.array([type_index(entry) for entry in types])
    right = predicted == true
    found: dict[str, float] = {}
    for modality, group in GROUPS.items():
        members = [index for index, entry in enumerate(TYPES) if entry[0] == modality]
        found |= {KEYS[index]: _percent(right[kind == index]) for index in members}
        found[group] = _percent(right[np.isin(kind, members)])
    return found | {"overall": _percent(right)}


def type_index(entry: str | Sequence[str]) -> int:
    """Return the index in :data:`TYPES` of a raw string or a pair; ValueError with the nearest type for an unknown one."""
    try:
        pair = tuple(json.loads(entry) if isinstance(entry, str) else entry)
    except (ValueError, TypeError):
        raise ValueError(f'question type {entry!r}: expected a JSON list such as \'["Audio", "Counting"]\'') from None
    if pair not in TYPES:
        name = " ".join(str(part) for part in pair)
        raise ValueError(f"question type {entry!r} is unknown{nearest(name, [' '.join(known) for known in TYPES])}")
    return TYPES.index(pair)


def _percent(right: np.ndarray) -> float:
    return 100 * float(right.mean()) if right.size else float("nan")
