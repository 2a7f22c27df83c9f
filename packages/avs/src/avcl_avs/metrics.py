"""How masks are judged: the Jaccard index M_J per frame, and the F-score M_F from one precision-recall curve over all frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from avcl_avs.levels import THRESHOLDS, encode, reached

BETA_SQUARED = 0.3
"""Weight of precision in the F-score."""


def mean_iou(prob: Any, target: Any) -> float:
    """Return M_J: the mean over frames of :func:`frame_ious` at threshold 1/2 (not reached by exactly 1/2), 0…1.

    Args:
        prob: probabilities ``[N, H, W]`` or ``[N, 1, H, W]``, array or tensor.
        target: binary masks of the same size.

    Raises:
        ValueError: the shapes differ, there is no frame, or a probability is outside 0…1.
    """
    values, truth = _frames(prob, target)
    return float(frame_ious(values > 0.5, truth).mean())


def f_score(prob: Any, target: Any) -> float:
    """Return M_F: the maximum over 255 thresholds of the mean F-curve of the frames whose target is not empty, 0…1.

    The value depends on which frames are given together (tasks.md 3.5): a whole split for protocol ``clean``, the five frames
    of one clip, then averaged over clips, for ``paper``. Arguments and errors are those of :func:`mean_iou`.
    """
    values, truth = _frames(prob, target)
    return f_curve(encode(torch.from_numpy(values)).numpy(), truth).score


def frame_ious(mask: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the intersection over union of every frame, float64 ``[N]``, of bool masks ``[N, H, W]``.

    Of a frame with an empty target it is the fraction of pixels that the prediction leaves empty.
    """
    both = (mask & target).sum((1, 2))
    either = (mask | target).sum((1, 2))
    empty = (~mask & ~target).mean((1, 2))
    return np.where(target.any((1, 2)), both / (either + 1e-7), empty)


@dataclass(frozen=True)
class Curve:
    """F at every threshold, summed over frames: the curves of parts of a split add up to that of the whole.

    Attributes:
        total: float64 ``[255]``.
        frames: number of frames in it, those with a non-empty target.
    """

    total: np.ndarray
    frames: int

    def __add__(self, other: Curve) -> Curve:
        return Curve(self.total + other.total, self.frames + other.frames)

    @property
    def score(self) -> float:
        """Largest value of the mean curve; 0 where every target was empty."""
        return float(self.total.max() / self.frames) if self.frames else 0.0


def f_curve(level: np.ndarray, target: np.ndarray) -> Curve:
    """Return the F-curve of frames, from levels uint8 ``[N, H, W]`` (:mod:`avcl_avs.levels`) and bool targets.

    Pixels are counted once per interval between thresholds and cumulated from above, which equals 255 passes over the image.
    """
    bins = len(THRESHOLDS) + 1
    total, frames = np.zeros(len(THRESHOLDS)), 0
    for values, truth in zip(level, target, strict=True):
        if not truth.any():
            continue
        counts = np.bincount((reached(values) + bins * truth).ravel(), minlength=2 * bins).reshape(2, bins)
        above = counts[:, ::-1].cumsum(1)[:, ::-1][:, 1:]  # pixels at or above each threshold: background, foreground
        hits, predicted = above[1], above.sum(0)
        precision = np.divide(hits, predicted, out=np.zeros(len(hits)), where=predicted > 0)
        recall = hits / truth.sum()
        weighted = BETA_SQUARED * precision + recall
        total += np.divide(
            (1 + BETA_SQUARED) * precision * recall, weighted, out=np.zeros(len(hits)), where=weighted > 0
        )
        frames += 1
    return Curve(total, frames)


def _frames(prob: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 probabilities and bool targets ``[N, H, W]``."""
    values, truth = (_array(value) for value in (prob, target))
    if values.shape != truth.shape:
        raise ValueError(f"prob has shape {list(values.shape)}, target {list(truth.shape)}; expected the same")
    if values.ndim != 3 or not values.size:
        raise ValueError(f"shape {list(values.shape)}: expected [N, H, W] or [N, 1, H, W] with at least one frame")
    values = values.astype(np.float32)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"prob: found values {values.min()}…{values.max()}; expected probabilities in 0…1, not logits")
    return values, truth > 0


def _array(value: Any) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return array[:, 0] if array.ndim == 4 and array.shape[1] == 1 else array
