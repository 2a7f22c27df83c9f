"""AVVP is judged by F-scores per video at two levels, seconds and whole events, for audio, vision and both together."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

MINIMUM_IOU = 0.5
"""A predicted event is right when its intersection with a true one is at least this share of their union."""

Counts = np.ndarray
"""True positives, false positives and false negatives ``[3, N, C]`` per video and class."""


def parsing_f_scores(
    pred_audio: ArrayLike, pred_visual: ArrayLike, target_audio: ArrayLike, target_visual: ArrayLike
) -> dict[str, float]:
    """Return the ten F-scores of audio-visual video parsing in percent (Tian et al., ECCV 2020; tasks.md 2.6).

    The audio-visual events are the element-wise AND of the audio and the visual ones. Per video, F1 = 2TP/(2TP+FP+FN)
    is averaged over the classes that have any prediction or truth (1 where there is none), then over videos. The
    segment level counts seconds, the event level maximal runs of seconds (:func:`event_counts`). ``type_av`` is the mean
    of the audio, visual and audio-visual scores; ``event_av`` adds the counts of audio and vision per class.

    Args:
        pred_audio, pred_visual, target_audio, target_visual: 0/1 arrays ``[N, C, T]`` (videos, classes, seconds).

    Returns:
        ``segment_audio, segment_visual, segment_av, segment_type_av, segment_event_av`` and the same with ``event_``.

    Raises:
        ValueError: the shapes differ, there is no video, or a value is neither 0 nor 1.
    """
    arrays = {
        "pred_audio": pred_audio,
        "pred_visual": pred_visual,
        "target_audio": target_audio,
        "target_visual": target_visual,
    }
    marks = {name: _marks(name, value) for name, value in arrays.items()}
    shapes = {name: value.shape for name, value in marks.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"expected four equal shapes [N, C, T], got {shapes}")
    pairs = {
        "audio": (marks["pred_audio"], marks["target_audio"]),
        "visual": (marks["pred_visual"], marks["target_visual"]),
        "av": (marks["pred_audio"] & marks["pred_visual"], marks["target_audio"] & marks["target_visual"]),
    }
    scores: dict[str, float] = {}
    for level, count in (("segment", segment_counts), ("event", event_counts)):
        counts = {name: count(*pair) for name, pair in pairs.items()}
        means = {name: mean_f1(value) for name, value in counts.items()}
        means["type_av"] = (means["audio"] + means["visual"] + means["av"]) / 3
        means["event_av"] = mean_f1(counts["audio"] + counts["visual"])
        scores |= {f"{level}_{name}": 100 * value for name, value in means.items()}
    return scores


def segment_counts(pred: np.ndarray, target: np.ndarray) -> Counts:
    """Count seconds: TP, FP, FN ``[3, N, C]`` of boolean arrays ``[N, C, T]``."""
    return np.stack([(pred & target).sum(-1), (pred & ~target).sum(-1), (~pred & target).sum(-1)])


def event_counts(pred: np.ndarray, target: np.ndarray) -> Counts:
    """Count events, the maximal runs of seconds: TP, FP, FN ``[3, N, C]`` of boolean arrays ``[N, C, T]``.

    A predicted event is a TP if its IoU with any true event of the class is at least 0.5, else an FP; a true event with
    no such prediction is an FN. Runs of one class lie apart, so no two can cover half of a third: matches are one to one.
    """
    counts = np.zeros((3, *pred.shape[:2]), dtype=np.int64)
    for video, name in zip(*np.nonzero((pred | target).any(-1)), strict=True):
        predicted, true = _runs(pred[video, name]), _runs(target[video, name])
        first = np.maximum(predicted[:, None, 0], true[None, :, 0])
        last = np.minimum(predicted[:, None, 1], true[None, :, 1])
        shared = np.clip(last - first, 0, None)
        union = np.diff(predicted)[:, 0, None] + np.diff(true)[:, 0] - shared
        match = shared >= MINIMUM_IOU * union
        hits = int(match.any(1).sum())
        counts[:, video, name] = hits, len(predicted) - hits, len(true) - int(match.any(0).sum())
    return counts


def mean_f1(counts: Counts) -> float:
    """Return the mean over videos of the mean F1 over the classes with any count; a video without counts scores 1."""
    hits, false, missed = counts
    involved = hits + false + missed > 0
    f1 = np.where(involved, 2 * hits / np.maximum(2 * hits + false + missed, 1), 0.0)
    classes = involved.sum(1)
    per_video = np.where(classes > 0, f1.sum(1) / np.maximum(classes, 1), 1.0)
    return float(per_video.mean())


def _runs(marks: np.ndarray) -> np.ndarray:
    """Return the maximal runs of ones as half-open spans ``[runs, 2]``."""
    edges = np.diff(np.concatenate([[0], marks.astype(np.int8), [0]]))
    return np.stack([np.nonzero(edges == 1)[0], np.nonzero(edges == -1)[0]], axis=1)


def _marks(name: str, value: ArrayLike) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 3 or len(array) == 0:
        raise ValueError(f"{name} has shape {array.shape}, expected [N, C, T] with N > 0")
    marks = array.astype(bool)
    if not np.array_equal(marks, array):
        raise ValueError(f"{name} holds values other than 0 and 1; threshold probabilities first")
    return marks
