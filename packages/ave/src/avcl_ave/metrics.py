"""AVE is judged by segment accuracy: one decision per second among the events and background."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def segment_accuracy(pred: ArrayLike, target: ArrayLike) -> float:
    """Return the fraction of segments whose predicted class is the true one (Tian et al., ECCV 2018; tasks.md 1.6).

    Args:
        pred: predicted class per segment, integers ``[N, T]``; background is a class of its own.
        target: true class per segment, integers ``[N, T]``.

    Raises:
        ValueError: the arrays differ in shape, are empty, or do not hold integers.
    """
    predicted, true = _pair(pred, target)
    return float((predicted == true).mean())


def class_accuracies(pred: ArrayLike, target: ArrayLike, labels: Sequence[str]) -> dict[str, float]:
    """Return, per class that occurs in ``target``, the fraction of its true segments that are predicted as it.

    ``labels`` are the class names in index order; a class without a true segment has no accuracy and no entry.

    Raises:
        ValueError: as :func:`segment_accuracy`.
    """
    predicted, true = _pair(pred, target)
    counts = {index: int((true == index).sum()) for index in range(len(labels))}
    return {
        labels[index]: float((predicted[true == index] == index).mean()) for index, count in counts.items() if count
    }


def relevance_accuracy(pred: ArrayLike, target: ArrayLike, background: int) -> float:
    """Return the fraction of segments on which prediction and truth agree about event or background, whatever the event.

    Raises:
        ValueError: as :func:`segment_accuracy`.
    """
    predicted, true = _pair(pred, target)
    return float(((predicted == background) == (true == background)).mean())


def _pair(pred: ArrayLike, target: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    predicted, true = np.asarray(pred), np.asarray(target)
    if predicted.shape != true.shape or predicted.ndim != 2 or predicted.size == 0:
        raise ValueError(f"expected two equal shapes [N, T] with N > 0, got {predicted.shape} and {true.shape}")
    for name, array in (("pred", predicted), ("target", true)):
        if array.dtype.kind not in "iu":
            raise ValueError(f"{name} holds {array.dtype}, expected integer class indices")
    return predicted, true
