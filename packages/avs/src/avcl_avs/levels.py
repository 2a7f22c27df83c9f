"""One byte per pixel that keeps all a metric asks of a probability: how many thresholds it reaches, and whether it exceeds 1/2."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

THRESHOLDS = torch.linspace(0, 1, 255, dtype=torch.float32)
"""The thresholds of the F-score (tasks.md 3.5); number 127 is exactly 1/2."""
HALF = 128
"""Smallest level of a probability above 1/2."""


def encode(prob: Tensor) -> Tensor:
    """Return the levels, uint8, of probabilities in [0, 1] of any shape.

    A level is the number of thresholds that are at or below the probability, less one, plus one above 1/2. The interval that
    begins at 1/2 is the only one that falls into two levels (exactly 1/2 and more), so both numbers can be read back.
    """
    value = prob.float().contiguous()
    reached = torch.bucketize(value, THRESHOLDS.to(value.device), right=True)
    return (reached - 1 + (value > 0.5)).to(torch.uint8)


def foreground(level: np.ndarray) -> np.ndarray:
    """Return where the probability exceeds 1/2, bool."""
    return level >= HALF


def reached(level: np.ndarray) -> np.ndarray:
    """Return how many thresholds the probability reaches, 1…255, int64."""
    return level.astype(np.int64) + (level < HALF)
