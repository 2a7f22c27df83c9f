"""Random streams by name: the same (seed, key) gives the same generator in every process and on every machine."""

from __future__ import annotations

import hashlib
import json

import numpy as np

_ID_FIRST = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_ID_REST = _ID_FIRST + "_-"


def _digest(*key: int | str) -> bytes:
    return hashlib.sha256(json.dumps(key).encode()).digest()


def rng_for(*key: int | str) -> np.random.Generator:
    """Generator that depends on the key alone, for example ``rng_for(seed, "ave", "train", 17)``."""
    return np.random.default_rng(np.frombuffer(_digest(*key), dtype=np.uint32))


def clip_id(*key: int | str) -> str:
    """An 11-character identifier in the alphabet of video ids (letters, digits, ``_``, ``-``), never starting with - or _."""
    value = int.from_bytes(_digest("clip", *key), "big")
    value, first = divmod(value, len(_ID_FIRST))
    letters = [_ID_FIRST[first]]
    for _ in range(10):
        value, place = divmod(value, len(_ID_REST))
        letters.append(_ID_REST[place])
    return "".join(letters)
