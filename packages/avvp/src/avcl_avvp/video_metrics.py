"""What a parser says of whole videos, beside its F-scores: ranking, presence and the single most likely event (php.md 6.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def video_scores(logits: ArrayLike, labels: ArrayLike, listed: ArrayLike) -> dict[str, float]:
    """Return the video-level scores in percent.

    Args:
        logits: of every event in every video, real ``[N, C]``.
        labels: events of the videos, 0/1 ``[N, C]``.
        listed: how often PHP's paper lists each video, once per label in the file, integers ``[N]``.

    Returns:
        ``video_map``: mean average precision over the classes that occur.
        ``video_f1_micro``, ``video_f1_macro``: F1 of probability ≥ 0.5 (logit ≥ 0), of all decisions together, and the mean over
        the classes that are true or predicted somewhere (100 where there is none).
        ``video_hit``: share of videos whose most likely event is one of their labels.
        ``video_accuracy``: the paper's score, for reference: the share of items whose most likely event is the lowest index
        among the labels. Of equally likely events the lowest index is taken in both.

    Raises:
        ValueError: the shapes differ, there is no video, a label is neither 0 nor 1, or a video without label is listed.
    """
    scores, y, times = np.asarray(logits), np.asarray(labels), np.asarray(listed)
    if scores.shape != y.shape or scores.ndim != 2 or not len(scores) or times.shape != scores.shape[:1]:
        raise ValueError(f"expected [N, C], [N, C] and [N] with N > 0, got {scores.shape}, {y.shape} and {times.shape}")
    truth = y.astype(bool)
    if not np.array_equal(truth, y):
        raise ValueError("labels hold values other than 0 and 1")
    if (times[~truth.any(1)] > 0).any() or not times.sum():
        raise ValueError("every listed video needs a label, and one must be listed")
    found = scores >= 0
    hits, false, missed = (found & truth).sum(0), (found & ~truth).sum(0), (~found & truth).sum(0)
    best = scores.argmax(1)
    return {
        "video_map": 100 * mean_average_precision(scores, truth),
        "video_f1_micro": 100 * f1(hits.sum(keepdims=True), false.sum(keepdims=True), missed.sum(keepdims=True)),
        "video_f1_macro": 100 * f1(hits, false, missed),
        "video_hit": 100 * float(truth[np.arange(len(scores)), best].mean()),
        "video_accuracy": 100 * float(np.average(best == truth.argmax(1), weights=times)),
    }


def f1(hits: np.ndarray, false: np.ndarray, missed: np.ndarray) -> float:
    """Return the mean of 2TP/(2TP+FP+FN) over the entries with any count; 1 where there is none."""
    total = 2 * hits + false + missed
    return float((2 * hits[total > 0] / total[total > 0]).mean()) if total.any() else 1.0


def mean_average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean over the classes with a true video of Σ_k (R_k − R_{k−1})·P_k; equal scores enter together.

    Args:
        scores: real ``[N, C]``. truth: bool ``[N, C]``.
    """
    classes = np.nonzero(truth.any(0))[0]
    return float(np.mean([_average_precision(scores[:, c], truth[:, c]) for c in classes]))


def _average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(truth[order])
    last = np.nonzero(np.append(ranked[1:] != ranked[:-1], True))[0]  # the last one of equal scores
    gained = np.diff(hits[last], prepend=0)
    return float((gained * hits[last] / (last + 1)).sum() / hits[-1])
