"""Herding: the samples whose mean stays nearest to their class's, in an order of which a shrinking memory keeps the beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from avcl_core.errors import ConfigError
from avcl_core.replay.memory import Exemplar, Memory


def herded(features: Tensor, count: int) -> list[int]:
    """Return the rows of ``features`` ``[n, d]`` in herding order, at most ``count`` of them.

    Row k is the one that brings the mean of the first k nearest to the mean of all, each feature at length 1; the first of equals
    (Rebuffi et al., iCaRL, CVPR 2017, algorithm 4).
    """
    rows = features.detach().cpu().double().numpy()
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    mean, total = rows.mean(0), np.zeros(rows.shape[1])
    free, chosen = np.ones(len(rows), dtype=bool), list[int]()
    for k in range(1, min(count, len(rows)) + 1):
        apart = np.linalg.norm(mean - (total + rows) / k, axis=1)
        best = int(np.argmin(np.where(free, apart, np.inf)))
        free[best], total = False, total + rows[best]
        chosen.append(best)
    return chosen


class HerdedMemory(Memory):
    """At most ``capacity`` exemplars, shared equally by the classes seen so far; each class keeps the beginning of its order."""

    def quota(self, experiences: int) -> int:
        """Return how many exemplars each of this many classes may keep.

        Raises:
            ConfigError: there are more classes than the capacity.
        """
        if self.capacity < experiences:
            raise ConfigError(
                f"method.memory: {self.capacity} samples for {experiences} classes; give at least {experiences}"
            )
        return self.capacity // experiences

    def share(self, classes: Sequence[str]) -> int:
        """Return how many exemplars each class may keep once these are in the memory."""
        return self.quota(len(self.groups.keys() | set(classes)))

    def add_classes(self, experience: str, classes: Mapping[str, Sequence[str]]) -> None:
        """Take the samples of a finished experience and shrink the other classes to the new quota.

        Args:
            experience: name of the experience.
            classes: class → its training keys in herding order, as many as :meth:`share` allows or more.
        """
        added = {name: [Exemplar(experience, key) for key in keys] for name, keys in classes.items()}
        self.groups = {**self.groups, **added}
        share = self.quota(len(self.groups)) if self.groups else 0
        self.groups = {name: group[:share] for name, group in self.groups.items()}

    def state(self) -> dict[str, Any]:
        """Return the memory as lists of JSON values."""
        rows = [[name, [[e.experience, e.key] for e in group]] for name, group in self.groups.items()]
        return {"classes": rows}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.groups = {
            name: [Exemplar(experience, key) for experience, key in group] for name, group in state["classes"]
        }
