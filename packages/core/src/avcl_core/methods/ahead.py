"""What experiences to come may still train: all that a method against forgetting has to remember, and to write into commits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from avcl_core.methods.base import Method


def still_learning(method: Method, learnt: Collection[str]) -> tuple[str, ...]:
    """Return the owner patterns that experiences not yet ``learnt`` make active; none after the last one.

    Where a stream has experiences that its tasks do not name, nothing is known of what comes: then everything may learn.
    """
    named = [experience for task in method.tasks.values() for experience in task.experiences()]
    if not set(learnt) <= {experience.name for experience in named}:
        return ("*",)
    return tuple(
        dict.fromkeys(p for experience in named if experience.name not in learnt for p in method.active(experience))
    )


def placed(value: Any, model: nn.Module) -> Any:
    """Return a restored method state, nested dictionaries and lists, with its tensors on the model's device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def visit(node: Any) -> Any:
        if isinstance(node, Tensor):
            return node.to(device)
        if isinstance(node, Mapping):
            return {key: visit(child) for key, child in node.items()}
        if isinstance(node, (list, tuple)):
            return [visit(child) for child in node]
        return node

    return visit(value)
