"""Metrics of the benchmark's own stream of S increments: accuracy on the union of what was seen, and forgetting per stage (6.1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avcl_core.evaluation.continual import forgetting_curve


@dataclass(frozen=True)
class BenchmarkScores:
    """What AVQACL (CVPR 2025) reports, as fractions.

    Attributes:
        accuracy: acc[s] ``[S]``, top-1 over all test questions of increments 1…s, each once.
        matrix: R[s,i] ``[S, S]``, accuracy on increment i's own questions after stage s; NaN above the diagonal.
        forgetting: ``[S − 1]`` for s = 2…S: mean over i < s of best so far on i (stages i…s−1) − current on i.
    """

    accuracy: NDArray[np.float64]
    matrix: NDArray[np.float64]
    forgetting: NDArray[np.float64]

    @property
    def mean_accuracy(self) -> float:
        """Mean Accuracy: mean over s of acc[s]."""
        return float(self.accuracy.mean())

    @property
    def average_forgetting(self) -> float:
        """Average Forgetting: mean over s ≥ 2 of forgetting[s]; it equals ``FM_stage`` of the matrix. NaN for S = 1."""
        return float(self.forgetting.mean()) if self.forgetting.size else float("nan")


def benchmark_scores(
    stages: Sequence[Mapping[str, bool]], increments: Mapping[str, Collection[str]]
) -> BenchmarkScores:
    """Return the metrics of a stream from what was right at every stage.

    Args:
        stages: S mappings, after each increment: key → whether the answer was right, for the questions of all increments so far.
        increments: name → keys of its test questions, in stream order (:func:`avcl_avqa.increments.by_increment`).

    Raises:
        ValueError: the number of stages differs, an increment has no test question, or a stage lacks a key it needs.
    """
    names = list(increments)
    if not names or len(stages) != len(names):
        raise ValueError(f"{len(stages)} stages for {len(names)} increments; expected one each, at least one")
    empty = [name for name in names if not increments[name]]
    if empty:
        raise ValueError(f"increments without test questions: {', '.join(empty)}; their accuracy is undefined")
    size = len(names)
    matrix, accuracy = np.full((size, size), np.nan), np.empty(size)
    for s, right in enumerate(stages):
        seen = names[: s + 1]
        lacking = [f"{key} of {name}" for name in seen for key in increments[name] if key not in right]
        if lacking:
            raise ValueError(f"stage {s + 1} lacks {len(lacking)} answers, the first {lacking[0]}")
        matrix[s, : s + 1] = [np.mean([right[key] for key in increments[name]]) for name in seen]
        union = dict.fromkeys(key for name in seen for key in increments[name])
        accuracy[s] = np.mean([right[key] for key in union])
    forgotten = forgetting_curve(matrix) if size > 1 else np.empty(0)
    return BenchmarkScores(accuracy, matrix, forgotten)
