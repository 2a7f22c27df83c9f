"""How a contract check reports: one sentence that names the plug-in, what is wrong and the rule that it breaks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def require(condition: object, who: str, sentence: str) -> None:
    """Raise AssertionError ``<who>: <sentence>`` unless ``condition`` holds."""
    if not condition:
        raise AssertionError(f"{who}: {sentence}")


def largest_gap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the largest absolute difference over all entries; infinite where names or shapes differ."""
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return float("inf")
    gaps = [(one[name].double() - other[name].double()).abs().max().item() for name in one if one[name].numel()]
    return max(gaps, default=0.0)


def fingerprint(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers."""
    return {
        name: t.detach().clone() for group in (model.named_parameters(), model.named_buffers()) for name, t in group
    }
