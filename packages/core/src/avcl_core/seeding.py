"""Every random draw is a pure function of named coordinates, so no generator state has to be saved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch


def derive(*coordinates: object) -> int:
    """Return a 63-bit seed from coordinates such as ``(seed, "order", experience, epoch)``."""
    text = "\x1f".join(str(part) for part in coordinates)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def ordered(keys: Iterable[str], *coordinates: object) -> list[str]:
    """Return ``keys`` in a pseudo-random order that depends only on the coordinates and on each key itself.

    Removing a key leaves the order of the others unchanged, and prefixes are nested random samples.
    """
    return sorted(keys, key=lambda key: (derive(*coordinates, key), key))


def numpy_generator(*coordinates: object) -> np.random.Generator:
    """Return a NumPy generator seeded from the coordinates."""
    return np.random.default_rng(derive(*coordinates))


def torch_generator(*coordinates: object) -> torch.Generator:
    """Return a CPU torch generator seeded from the coordinates."""
    return torch.Generator().manual_seed(derive(*coordinates))


def seed_step(*coordinates: object) -> None:
    """Seed the global generators of torch for one step: dropout, router noise and initial values of grown modules."""
    torch.manual_seed(derive(*coordinates))
