"""How like an experience a sample is, from the experience's statistics: cosines, nearest centres, linear discriminants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from avcl_core.precision import unmixed


@dataclass(frozen=True)
class Statistics:
    """Of one experience's samples in one modality: their number, mean ``[D]``, centres ``[K, D]`` and scatter ``[D, D]`` (or none)."""

    count: int
    mean: Tensor
    centres: Tensor
    scatter: Tensor


class Score(Protocol):
    """Vectors ``[b, D]`` and the statistics of K experiences → ``[b, K]``; more is more alike."""

    def __call__(self, vectors: Tensor, known: Sequence[Statistics]) -> Tensor:
        """Score."""
        ...


@dataclass(frozen=True)
class MeanCosine:
    """Cosine with the mean of each experience (avqacl_moe.md 3.5, the published rule).

    Attributes:
        centre: subtract the mean of all experiences' means from both sides first: an offset that all features share
            brings every cosine near 1.
    """

    centre: bool = False

    def __call__(self, vectors: Tensor, known: Sequence[Statistics]) -> Tensor:
        """Return ⟨v, u⟩ / max(|v| |u|, 1e-8)."""
        means = torch.stack([one.mean for one in known]).to(vectors.device)
        if self.centre:
            offset = means.mean(0)
            vectors, means = vectors - offset, means - offset
        return _cosines(vectors, means)


@dataclass(frozen=True)
class NearestCentre:
    """Cosine with the most similar of an experience's centres."""

    def __call__(self, vectors: Tensor, known: Sequence[Statistics]) -> Tensor:
        """Return the largest cosine per experience."""
        return torch.stack([_cosines(vectors, one.centres.to(vectors.device)).amax(1) for one in known], 1)


@dataclass(frozen=True)
class Discriminant:
    """Linear discriminant analysis: means and one covariance that all experiences share (Hayes and Kanan, CVPRW 2020).

    The covariance is the sum of the scatters over the number of samples, shrunk towards its mean variance; experiences are equally
    likely. Solved in float64 at every call: route many samples at once.

    Attributes:
        shrinkage: share of the mean variance in the covariance.
    """

    shrinkage: float = 1e-4

    def __call__(self, vectors: Tensor, known: Sequence[Statistics]) -> Tensor:
        """Return ``vᵀ Σ⁻¹ μ − μᵀ Σ⁻¹ μ / 2``, the log-likelihood less what all experiences share."""
        means = torch.stack([one.mean for one in known]).double().cpu()
        total = torch.stack([one.scatter for one in known]).sum(0).double().cpu()
        covariance = total / max(sum(one.count for one in known) - len(known), 1)
        level = covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        regular = (1 - self.shrinkage) * covariance + self.shrinkage * level * torch.eye(len(covariance)).double()
        axes = torch.linalg.solve(regular, means.T)  # [D, K]
        return vectors.double().cpu() @ axes - (means * axes.T).sum(1) / 2


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """Cosines ``[b, K]`` with the bound of avqacl_moe.md 3.5 on the product of the lengths, at least in float32."""
    with unmixed(one):
        first, second = (value.to(torch.promote_types(value.dtype, torch.float32)) for value in (one, other))
        lengths = first.norm(dim=1).unsqueeze(1) * second.norm(dim=1)
        return first @ second.T / lengths.clamp_min(1e-8)
