"""The procedural bank: drawn shapes that make synthesised sounds. No files needed, any size, two families that share no class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from avcl_core.errors import ConfigError
from avcl_core.world import shapes, timbres
from avcl_core.world.bank import SubsetBank, check_class, check_split
from avcl_core.world.seeds import rng_for

VERSION = "1"
FAMILIES = {"task": 28, "pretrain": 32}
"""Family -> default number of classes."""
LARGEST = 64
"""Classes a family can have: half of 16 outlines x 8 textures, the other half belongs to the other family."""


@dataclass(frozen=True)
class Recipe:
    """What makes a class: how it looks (outline, texture, hue) and how it sounds (source, gesture)."""

    name: str
    outline: str
    texture: str
    hue: float
    source: str
    gesture: str


def recipe(family: str, index: int) -> Recipe:
    """The recipe of class ``index`` (0-based) of a family.

    Outline + texture is even in sum for tasks and odd for pretraining, source + gesture likewise: every part is seen in both
    families, each pair in one class only. Source + outline, which make the name, never meet in both families either.
    """
    odd = ("task", "pretrain").index(family)
    row, outline = divmod(index, 16)
    texture = (outline + odd) % 2 + 2 * ((outline // 2 + row) % 4)
    source = (5 * outline + 3 * row + odd + 2) % 16
    gesture = (source + odd) % 2 + 2 * ((source // 2 + row) % 4)
    look, sound = list(shapes.OUTLINES)[outline], list(timbres.SOURCES)[source]
    return Recipe(
        name=f"{sound}-{look}",
        outline=look,
        texture=shapes.TEXTURES[texture],
        hue=((index + 32 * odd) * 0.381966) % 1.0,
        source=sound,
        gesture=timbres.GESTURES[gesture],
    )


@lru_cache(maxsize=1024)
def _sprite(family: str, index: int, id: str) -> np.ndarray:
    what = recipe(family, index)
    picture = shapes.draw(what.outline, what.texture, what.hue, rng_for("sprite", VERSION, family, index, id))
    picture.flags.writeable = False
    return picture


@lru_cache(maxsize=256)
def _sound(family: str, index: int, id: str) -> np.ndarray:
    what = recipe(family, index)
    wave = timbres.synthesise(what.source, what.gesture, rng_for("sound", VERSION, family, index, id))
    wave.flags.writeable = False
    return wave


@dataclass(frozen=True)
class ProceduralBank:
    """Classes such as ``drone-moon``: a moon-shaped object that drones. Every id is drawn anew from its own random stream."""

    family: str
    count: int
    train: int = 60
    val: int = 20
    test: int = 20

    @property
    def name(self) -> str:
        return f"procedural-{self.family}"

    @property
    def version(self) -> str:
        return VERSION

    @property
    def classes(self) -> tuple[str, ...]:
        return _classes(self.family, self.count)

    def _ids(self, cls: str, split: str) -> tuple[str, ...]:
        check_class(self, cls)
        return tuple(f"{split}-{number:03d}" for number in range(getattr(self, check_split(split))))

    def sprites(self, cls: str, split: str) -> tuple[str, ...]:
        return self._ids(cls, split)

    def sounds(self, cls: str, split: str) -> tuple[str, ...]:
        return self._ids(cls, split)

    def sprite(self, cls: str, id: str) -> np.ndarray:
        return _sprite(self.family, check_class(self, cls), id)

    def sound(self, cls: str, id: str, rate: int) -> np.ndarray:
        wave = _sound(self.family, check_class(self, cls), id)
        if rate == timbres.RATE:
            return wave
        from avcl_core.data.waves import resample

        return resample(wave, timbres.RATE, rate)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "classes": list(self.classes),
            "sprites": {"train": self.train, "val": self.val, "test": self.test},
            "sounds": {"train": self.train, "val": self.val, "test": self.test},
        }

    def subset(self, classes: Sequence[str]) -> SubsetBank:
        return SubsetBank(self, tuple(classes))


@cache
def _classes(family: str, count: int) -> tuple[str, ...]:
    return tuple(recipe(family, index).name for index in range(count))


def procedural(family: str = "task", classes: int | None = None) -> ProceduralBank:
    """The procedural bank of a family: ``task`` (28 classes by default) or ``pretrain`` (32), up to 64 each.

    Raises ConfigError for an unknown family or a number of classes out of range.
    """
    if family not in FAMILIES:
        raise ConfigError(f"procedural bank: family {family!r} is unknown; expected one of {', '.join(FAMILIES)}")
    count = FAMILIES[family] if classes is None else classes
    if not 1 <= count <= LARGEST:
        raise ConfigError(f"procedural bank: {count} classes asked for; expected 1 to {LARGEST}")
    return ProceduralBank(family, count)
