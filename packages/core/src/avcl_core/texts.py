"""Texts inside arrays: UTF-8 bytes, filled up with zeros, so that samples with texts stack like all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

IGNORED = -100
"""Target of a word that is not supervised."""


def text_array(text: str, length: int | None = None) -> np.ndarray:
    """Return a text as uint8 ``[length]`` (by default as long as it is); ValueError where it is longer or holds a zero byte."""
    raw = text.encode()
    if b"\0" in raw or (length is not None and len(raw) > length):
        raise ValueError(f"text of {len(raw)} bytes; expected at most {length}, none of them zero: {text[:60]!r}")
    return np.frombuffer(raw.ljust(length or len(raw), b"\0"), dtype=np.uint8).copy()


def texts_array(texts: Sequence[str]) -> Tensor:
    """Return texts as uint8 ``[n, longest]``."""
    longest = max(1, *(len(text.encode()) for text in texts))
    return torch.from_numpy(np.stack([text_array(text.replace("\0", ""), longest) for text in texts]))


def text_of(row: Tensor | np.ndarray) -> str:
    """Return the text of one row."""
    values = row.cpu().numpy() if isinstance(row, Tensor) else row
    return bytes(values.astype(np.uint8)).rstrip(b"\0").decode(errors="replace")
