"""K-Means that gives the same centres for the same points on every machine and rank, bit for bit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avcl_core.seeding import torch_generator


def kmeans(points: Tensor, count: int, *coordinates: object, rounds: int = 100) -> Tensor:
    """Return ``count`` centres ``[count, D]`` of points ``[n, D]``.

    Lloyd's iterations from k-means++ (Arthur and Vassilvitskii, SODA 2007), in float64 on the CPU and in one order of summation: what
    ranks and resumed runs compute has to agree exactly, which libraries whose threads add up in any order do not promise. With
    fewer distinct points than centres, some centres coincide.

    Args:
        coordinates: of the random draws (:func:`avcl_core.seeding.derive`).
        rounds: at most so many iterations.

    Raises:
        ValueError: there are no points.
    """
    if not len(points):
        raise ValueError("centres of no points: the experience has no training samples")
    given = points.detach().to("cpu", torch.float64)
    generator = torch_generator("k-means", *coordinates)
    chosen = [int(torch.randint(len(given), (1,), generator=generator))]
    while len(chosen) < count:
        apart = torch.cdist(given, given[chosen]).square().amin(1)
        drawn = torch.multinomial(apart, 1, generator=generator) if bool(apart.sum() > 0) else chosen[0]
        chosen.append(int(drawn))
    centres, assigned = given[chosen], torch.full((len(given),), -1)
    for _ in range(rounds):
        nearest = torch.cdist(given, centres).argmin(1)
        if torch.equal(nearest, assigned):
            break
        assigned = nearest
        members = F.one_hot(nearest, count).to(given.dtype)
        sizes = members.sum(0).unsqueeze(1)
        # A centre without members stays where it is.
        centres = torch.where(sizes > 0, members.T @ given / sizes.clamp(min=1), centres)
    return centres.to(points)
