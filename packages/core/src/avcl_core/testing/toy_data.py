"""Generated samples for contract tests: a class gives frames a tint and sound a pitch, so a model can learn it in a few steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from avcl_core.seeding import derive, numpy_generator

CLASSES = 4
"""Classes of every toy task."""
RATE = 8000
"""Audio samples per frame, each a second long."""
WORDS = 12
"""Vocabulary of the toy question task: 0 is padding, 1 begins an answer, 2 ends it."""


@dataclass(frozen=True)
class Shape:
    """Size of toy samples: frames per clip and pixels per side."""

    frames: int = 2
    size: int = 32


def latent(key: str) -> int:
    """Return the class of a sample, a function of its key."""
    return derive("class", key) % CLASSES


def unit(key: str) -> float:
    """Return a number in [0, 1) that follows from the key."""
    return derive("deviation", key) / 2**63


class ToyDataset:
    """Samples by key. ``rng`` adds noise to the frames, so that augmentation is exercised.

    Args:
        shape: size of the samples.
        target: key → targets.
        question: whether samples carry a ``question``, token ids ``[3]``.
    """

    drawn = frozenset({"visual"})

    def __init__(self, shape: Shape, target: Callable[[str], Mapping[str, np.ndarray]], question: bool) -> None:
        self.shape, self.target, self.question = shape, target, question

    def inputs(self, key: str, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
        """Return frames tinted and sound pitched by the class; experiences differ in brightness."""
        shape, noise, kind = self.shape, numpy_generator("toy", key), latent(key)
        domain = derive("domain", key.split("-")[0]) % 5
        tint = np.array([(60, 60, 60), (200, 60, 60), (60, 200, 60), (60, 60, 200)][kind]) + 8 * domain
        frames = tint + noise.normal(0, 20, (shape.frames, shape.size, shape.size, 3))
        frames[:, : shape.size // 2] += 25 * (kind % 2)
        if rng is not None:
            frames = frames + rng.normal(0, 5)
        time = np.arange(RATE) / RATE
        pitch = 200 * (1 + kind) * (1 + 0.05 * np.arange(shape.frames))[:, None]
        found = {
            "visual": frames.clip(0, 255).astype(np.uint8),
            "audio": (0.3 * np.sin(2 * np.pi * pitch * time) + noise.normal(0, 0.02, (shape.frames, 1))).astype(
                np.float32
            ),
        }
        if self.question:
            found["question"] = np.array([3 + domain, 3 + derive("word", key) % 5, 1], dtype=np.int64)
        return found

    def targets(self, key: str) -> Mapping[str, np.ndarray]:
        """Return the targets of a sample."""
        return self.target(key)

    def digest(self, key: str) -> str:
        """Return a digest of the sample's content, which follows from key and shape."""
        return f"{derive('content', key, self.shape):016x}"
