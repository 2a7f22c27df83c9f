"""Task prototypes: a few centres of frozen features per task; the nearest one tells whose prompts a sample gets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from avcl_core.errors import RunError
from avcl_core.ownership import own
from avcl_core.precision import cosines
from avcl_core.prompts.kmeans import kmeans

Metric = Literal["l1", "cosine"]


class Prototypes(nn.Module):
    """Centres ``[count, D]`` of one task; ``samples`` is 0 until they are known."""

    centres: Tensor
    samples: Tensor

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(count, width))
        self.register_buffer("samples", torch.zeros(()))


class Centres(nn.Module):
    """Routes samples whose task is hidden (S-Prompts, Wang et al., NeurIPS 2022, section 3.3); owned by ``router``.

    Nothing here is learnt by gradients: centres are K-Means centres of a task's training samples in a space that never changes.

    Args:
        width: D of the features.
        count: centres per task.
        metric: ``l1`` sums absolute differences, as published; ``cosine`` compares directions.
    """

    def __init__(self, width: int, count: int, metric: Metric = "l1") -> None:
        super().__init__()
        self.width, self.count, self.metric = width, count, metric
        self.slots = nn.ModuleDict()
        own(self, "router")

    def grow(self, slot: str) -> None:
        """Make room for the centres of a slot; one that exists is kept."""
        if slot not in self.slots:
            self.slots[slot] = Prototypes(self.count, self.width)

    def fit(self, slot: str, features: Iterable[Tensor]) -> None:
        """Compute the centres of a slot from features ``[b, D]`` of its samples, batch by batch.

        Raises:
            ValueError: there are no features.
        """
        points = torch.cat([part.detach() for part in features] or [torch.zeros(0, self.width)])
        known = self._of(slot)
        known.centres.copy_(kmeans(points, self.count, slot))
        known.samples.fill_(len(points))

    def nearest(self, features: Tensor) -> tuple[str, ...]:
        """Return, for each of ``[b, D]``, the slot of the nearest centre, however little it lies nearer.

        Raises:
            RunError: no centres are known yet.
        """
        names = [name for name in self.slots if float(self._of(name).samples) > 0]
        if not names:
            raise RunError(
                "the experience is hidden and no task has centres to compare with yet: samples can only be routed after "
                "the pass over an experience's training data that precedes its training"
            )
        centres = torch.cat([self._of(name).centres for name in names])
        if self.metric == "l1":
            distance = torch.cdist(features.to(centres), centres, p=1)
        else:
            distance = -cosines(features.to(centres), centres)
        return tuple(names[index] for index in (distance.argmin(1) // self.count).tolist())

    def _of(self, slot: str) -> Prototypes:
        found = self.slots[slot]
        assert isinstance(found, Prototypes)
        return found
