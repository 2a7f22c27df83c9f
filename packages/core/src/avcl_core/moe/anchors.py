"""Anchors: exact statistics of an experience's samples in frozen feature space, by which hidden samples find their expert."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from avcl_core.errors import RunError
from avcl_core.moe.scores import Score, Statistics
from avcl_core.ownership import own
from avcl_core.prompts.kmeans import kmeans


@dataclass(frozen=True)
class Pooled:
    """What samples look like to a router.

    Attributes:
        vectors: modality → ``[b, D]``, the mean over the valid tokens of frozen features.
        present: modality → bool ``[b]``; a modality that is not listed is there in every sample.
    """

    vectors: Mapping[str, Tensor]
    present: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.vectors.values())))

    def having(self, modality: str) -> Tensor:
        """Return bool ``[b]``: which samples have the modality."""
        vectors = self.vectors[modality]
        found = self.present.get(modality)
        return torch.ones(len(vectors), dtype=torch.bool, device=vectors.device) if found is None else found


class Anchor(nn.Module):
    """Statistics of one modality of one experience; ``count`` is 0 until they are known.

    Args:
        width: D of the features.
        centres: K-Means centres beside the mean; 0: none.
        scatter: whether the whole scatter matrix is kept, D² values, beside its diagonal.
    """

    count: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(self, width: int, centres: int = 0, scatter: bool = False) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.zeros(width))
        self.register_buffer("centres", torch.zeros(centres, width))
        self.register_buffer("scatter", torch.zeros((width, width) if scatter else (0, 0)))

    def fit(self, points: Tensor, coordinates: Sequence[object], restarts: int) -> None:
        """Take the statistics of points ``[n, D]``, in float64 and in their order: no division into batches changes a bit."""
        given = points.detach().to("cpu", torch.float64)
        mean = given.mean(0)
        apart = given - mean
        self.count.fill_(len(given))
        self.mean.copy_(mean)
        self.spread.copy_(apart.square().mean(0))
        if len(self.get_buffer("scatter")):
            self.get_buffer("scatter").copy_(apart.T @ apart)
        if count := len(self.get_buffer("centres")):
            tries = [kmeans(given, count, *coordinates, number) for number in range(restarts)]
            costs = [float(torch.cdist(given, centres).amin(1).square().sum()) for centres in tries]
            self.get_buffer("centres").copy_(tries[costs.index(min(costs))])

    def statistics(self) -> Statistics:
        """Return what scores are computed from."""
        buffers = dict(self.named_buffers())
        return Statistics(int(self.count), buffers["mean"], buffers["centres"], buffers["scatter"])


class Anchors(nn.Module):
    """Anchors of all experiences, and the choice among them (avqacl_moe.md 3.4, 3.5).

    The anchors of slot ``k`` are owned by ``expert:<k>``. Nothing here is learnt by gradients; an anchor never changes when another
    is added, so the order of experiences does not matter.

    Args:
        widths: modality → D of its features.
        score: how like an experience a sample is, in one modality.
        weights: modality → its weight in the mean over the modalities that a sample has; by default 1.
        centres: K-Means centres of each anchor, of which the best of ``restarts`` runs is kept.
        scatter: whether anchors keep their scatter matrix.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        score: Score,
        weights: Mapping[str, float] | None = None,
        centres: int = 0,
        restarts: int = 8,
        scatter: bool = False,
    ) -> None:
        super().__init__()
        self.widths, self.score, self.weights = dict(widths), score, dict(weights or {})
        self.centres, self.restarts, self.scatter = centres, restarts, scatter
        self.slots = nn.ModuleDict()

    def grow(self, slot: str) -> None:
        """Make room for the anchors of a slot; one that exists is kept."""
        if slot not in self.slots:
            made = {name: Anchor(width, self.centres, self.scatter) for name, width in self.widths.items()}
            self.slots[slot] = own(nn.ModuleDict(made), f"expert:{slot}")

    def fit(self, slot: str, samples: Iterable[Pooled]) -> None:
        """Compute a slot's anchors of its training samples, each modality of those that have it.

        Raises:
            RunError: no sample has any of the modalities.
        """
        parts: dict[str, list[Tensor]] = {name: [] for name in self.widths}
        for pooled in samples:
            for name in self.widths.keys() & pooled.vectors.keys():
                vectors = pooled.vectors[name].detach().cpu()
                parts[name].append(vectors[pooled.having(name).cpu()])
        points = {name: torch.cat(found) for name, found in parts.items() if found}
        if not any(len(found) for found in points.values()):
            raise RunError(f"anchors of {slot}: no training sample has one of {sorted(self.widths)}")
        for name, found in points.items():
            if len(found):
                self._of(slot, name).fit(found, ("anchors", slot, name), self.restarts)

    @property
    def known(self) -> tuple[str, ...]:
        """The slots whose anchors are computed, in the order of experiences."""
        return tuple(slot for slot in self.slots if any(int(self._of(slot, name).count) for name in self.widths))

    def tensors(self, slot: str) -> dict[str, Tensor]:
        """Return what is known of a slot: ``<modality>.mean`` and so on."""
        return dict(self.slots[slot].named_buffers())

    def compare(self, pooled: Pooled, modalities: Sequence[str] = ()) -> dict[str, Tensor]:
        """Return modality → how like the known experiences samples are ``[b, K]``, NaN for samples without it.

        Args:
            modalities: those that are compared; by default all.

        Raises:
            RunError: no anchors are known; an experience has no anchor of a modality that a sample has; widths differ.
        """
        slots = self.known
        if not slots:
            raise RunError("no anchors are known yet: hidden samples can be routed after the first experience")
        found = {}
        for name in modalities or tuple(self.widths):
            having = pooled.having(name).cpu()
            if name not in pooled.vectors or not bool(having.any()):
                continue
            vectors = pooled.vectors[name]
            anchors = [self._of(slot, name) for slot in slots]
            lacking = [slot for slot, anchor in zip(slots, anchors, strict=True) if not int(anchor.count)]
            if lacking:
                raise RunError(f"samples have {name}, of which the anchors of {lacking} know nothing")
            if vectors.shape[1] != self.widths[name]:
                raise RunError(f"features of {name} have {vectors.shape[1]} channels, the anchors {self.widths[name]}")
            scores = self.score(vectors, [anchor.statistics() for anchor in anchors]).float().cpu()
            # A sample's features of a modality that it does not have may be anything, NaN too.
            found[name] = scores.masked_fill(~having.unsqueeze(1), torch.nan)
        return found

    def scores(self, pooled: Pooled, modalities: Sequence[str] = ()) -> Tensor:
        """Return the weighted mean of :meth:`compare` over the modalities that a sample has ``[b, K]``; NaN where it has none."""
        return self.together(self.compare(pooled, modalities), len(pooled))

    def together(self, compared: Mapping[str, Tensor], samples: int) -> Tensor:
        """Return the weighted mean ``[b, K]`` of what :meth:`compare` found of ``samples`` samples."""
        total, weight = torch.zeros(samples, len(self.known)), torch.zeros(samples, 1)
        for name, scores in compared.items():
            share = self.weights.get(name, 1.0) * (~scores.isnan().all(1, keepdim=True)).float()
            total, weight = total + share * scores.nan_to_num(), weight + share
        return total / weight

    def choose(self, scores: Tensor) -> tuple[str | None, ...]:
        """Return the most similar slot per sample of :meth:`scores`, the first of equal ones, and nothing where there are none."""
        slots, best = self.known, scores.nan_to_num(nan=-torch.inf).argmax(1).tolist()
        lost = scores.isnan().all(1).tolist()
        return tuple(None if none else slots[index] for index, none in zip(best, lost, strict=True))

    def _of(self, slot: str, modality: str) -> Anchor:
        found = self.slots[slot].get_submodule(modality)
        assert isinstance(found, Anchor)
        return found
