"""Safetensors written one tensor after the other, each in its own type, so that a file may be larger than memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from shared_backbones.errors import WeightsError

# The format's names of types: https://github.com/huggingface/safetensors#format
TYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_streamed(target: Path, parts: Mapping[str, Sequence[Tensor]], metadata: Mapping[str, str]) -> None:
    """Write each name's tensor, or the mean of its tensors, which have one shape and one type.

    Raises WeightsError where a value is not finite, or not a number of a type that safetensors know.
    """
    # Larger types first, as the format's own writer has it: every tensor lies at a multiple of its element's size.
    order = sorted(parts, key=lambda name: (-parts[name][0].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        first = parts[name][0]
        if first.dtype not in TYPES:
            raise WeightsError(f"{name}: values of type {first.dtype}; expected one of {', '.join(map(str, TYPES))}")
        end = offset + first.numel() * first.dtype.itemsize
        header[name] = {"dtype": TYPES[first.dtype], "shape": list(first.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            value = mean(parts[name])
            if not bool(torch.isfinite(value).all()):
                raise WeightsError(f"{name}: values that are not finite; the file is damaged")
            file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor as it is; the mean of several in float64, rounded once to their type."""
    if len(tensors) == 1:
        return tensors[0]
    total = tensors[0].double()
    for tensor in tensors[1:]:
        total = total + tensor
    return (total / len(tensors)).to(tensors[0].dtype)
