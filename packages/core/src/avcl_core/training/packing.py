"""Nested dictionaries and lists of tensors as named tensors and a JSON structure that refers to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_TENSOR = "__tensor__"


def pack(value: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested dictionaries and lists into named tensors and a JSON structure that refers to them."""
    tensors: dict[str, Tensor] = {}

    def visit(node: Any) -> Any:
        if isinstance(node, Tensor):
            name = f"t{len(tensors):06d}"
            tensors[name] = node.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {_TENSOR: name}
        if isinstance(node, Mapping):
            for key in node:
                if not isinstance(key, str):
                    raise TypeError(
                        f"method state has the key {key!r}; use strings, other keys would not come back as they were"
                    )
            return {key: visit(child) for key, child in node.items()}
        if isinstance(node, (list, tuple)):
            return [visit(child) for child in node]
        if node is None or isinstance(node, (str, int, float, bool)):
            return node
        raise TypeError(
            f"method state holds a {type(node).__name__}; use tensors, numbers, strings, lists and dictionaries"
        )

    return tensors, visit(value)


def unpack(tensors: Mapping[str, Tensor], structure: Any) -> Any:
    """Undo :func:`pack`."""
    if isinstance(structure, dict):
        if structure.keys() == {_TENSOR}:
            return tensors[structure[_TENSOR]]
        return {key: unpack(tensors, child) for key, child in structure.items()}
    if isinstance(structure, list):
        return [unpack(tensors, child) for child in structure]
    return structure
