"""Prompt components: a sample's prompt is a sum over components, each weighted by how well its key meets what it attends to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avcl_core.precision import precise, unmixed


class Components(nn.Module):
    """The components that one task adds (CODA-Prompt, Smith et al., CVPR 2023, section 4).

    A component has, at each block, prompt rows, a key, and an attention vector that says which features of the query matter
    to it. Each of the three starts with orthonormal components.

    Args:
        count: components.
        length: rows of a prompt.
        widths: width of the rows at each block.
        query_width: D of the query.
    """

    def __init__(self, count: int, length: int, widths: Sequence[int], query_width: int) -> None:
        super().__init__()
        self.rows = nn.ParameterList(_orthonormal(count, length, width) for width in widths)
        self.keys = nn.ParameterList(_orthonormal(count, query_width) for _ in widths)
        self.attention = nn.ParameterList(_orthonormal(count, query_width) for _ in widths)

    def kinds(self) -> tuple[nn.ParameterList, ...]:
        """Return rows, keys and attention vectors, each a list over blocks of ``[count, …]``."""
        return self.rows, self.keys, self.attention


def mix(sets: Sequence[Components], query: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return the prompts of a block and what they are made of.

    Args:
        sets: components of all tasks so far.
        query: ``[b, D]``.
        block: position in the list of blocks.

    Returns:
        Prompts ``[b, length, width]`` and the weights ``[b, components]``: ``cos(query ⊙ A_m, K_m)``, in the order of the sets.
    """
    rows, keys, attention = (
        torch.cat([kind[block] for kind in kinds]) for kinds in zip(*(s.kinds() for s in sets), strict=True)
    )
    # cos(q ⊙ a, k) = Σ q a k / (|q ⊙ a| |k|): two small products instead of one vector per sample and component.
    with unmixed(query):
        query, attention, keys = precise(query), precise(attention), precise(keys)
        agreement = query @ (attention * F.normalize(keys, dim=-1)).T
        weights = agreement / (query.square() @ attention.square().T).sqrt().clamp(min=1e-12)
    return torch.einsum("bm,mlc->blc", weights.to(rows), rows), weights


def orthogonality(sets: Sequence[Components]) -> Tensor:
    """Return ``mean((X Xᵀ − 1)²)`` summed over blocks and over rows, keys and attention vectors of all components together."""
    terms = []
    for kinds in zip(*(s.kinds() for s in sets), strict=True):
        for parts in zip(*kinds, strict=True):
            flat = precise(torch.cat([part.flatten(1) for part in parts]))
            with unmixed(flat):  # what remains of nearly orthonormal vectors is smaller than the last bit of bfloat16
                terms.append((flat @ flat.T - torch.eye(len(flat), device=flat.device)).square().mean())
    return torch.stack(terms).sum()


@torch.no_grad()
def orthogonalise(new: Components, old: Sequence[Components]) -> None:
    """Turn the values of new components orthonormal, to each other and to all old ones (Gram-Schmidt).

    Raises:
        ValueError: the space has fewer dimensions than there are components.
    """
    for kind, *kinds in zip(new.kinds(), *(s.kinds() for s in old), strict=True):
        for mine, *others in zip(kind, *kinds, strict=True):
            basis = torch.cat([*(other.flatten(1) for other in others), mine.flatten(1)]).double().cpu()
            _fits(*basis.shape)
            made, triangle = torch.linalg.qr(basis.T)
            # Columns are unique up to their sign; with it, a vector that was orthogonal already stays as it was.
            made = made * triangle.diagonal().sgn()
            mine.copy_(made.T[-len(mine) :].reshape(mine.shape))


def _orthonormal(count: int, *shape: int) -> nn.Parameter:
    flat = torch.empty(count, torch.Size(shape).numel())
    _fits(*flat.shape)
    return nn.Parameter(nn.init.orthogonal_(flat).reshape(count, *shape))


def _fits(count: int, dimensions: int) -> None:
    if count > dimensions:
        raise ValueError(f"{count} components cannot be orthogonal in {dimensions} dimensions; ask for fewer")
