"""Source banks: for every class, pictures of what is seen and recordings of what is heard, split so that nothing is shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from avcl_core.errors import ConfigError, DataError, nearest

SPLITS = ("train", "val", "test")


@runtime_checkable
class SourceBank(Protocol):
    """Images and sounds of the same classes.

    A bank is a value: two banks with the same :meth:`describe` give the same pixels and samples in every process, and a
    bank can be pickled to a worker. Sprite and sound ids of different splits never name the same picture or recording.
    """

    @property
    def name(self) -> str:
        """Short name of the bank, for example ``procedural`` or ``digits``."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same id would give other pixels or samples."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order; no comma, no ``&``, no tab (annotation files use them as separators)."""
        ...

    def sprites(self, cls: str, split: str) -> Sequence[str]:
        """Ids of the pictures of a class in ``train``, ``val`` or ``test``."""
        ...

    def sprite(self, cls: str, id: str) -> np.ndarray:
        """One picture, uint8 RGBA [h, w, 4]; alpha is the true pixel mask of the object."""
        ...

    def sounds(self, cls: str, split: str) -> Sequence[str]:
        """Ids of the recordings of a class in ``train``, ``val`` or ``test``."""
        ...

    def sound(self, cls: str, id: str, rate: int) -> np.ndarray:
        """One recording, float32 [n] in [-1, 1], mono at ``rate`` Hz."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-ready record that identifies the bank: name, version, classes, counts per split, files with digests."""
        ...

    def subset(self, classes: Sequence[str]) -> SourceBank:
        """The same bank with only these classes, in this order."""
        ...


def check_class(bank: SourceBank, cls: str) -> int:
    """Index of ``cls`` in the bank; ConfigError with the nearest name when the bank does not have it."""
    try:
        return bank.classes.index(cls)
    except ValueError:
        raise ConfigError(f"bank {bank.name}: class {cls!r} is unknown{nearest(cls, bank.classes)}") from None


def check_split(split: str) -> str:
    """Return ``split`` if it is train, val or test; ConfigError otherwise."""
    if split not in SPLITS:
        raise ConfigError(f"bank: split {split!r} is unknown; expected one of {', '.join(SPLITS)}")
    return split


def check_class_names(classes: Sequence[str], origin: str) -> tuple[str, ...]:
    """Refuse class names that an annotation file could not hold: separators, blanks at the ends, duplicates, empty lists."""
    if not classes:
        raise DataError(f"{origin}: found no class; expected at least one")
    for name in classes:
        if not name or name != name.strip() or any(character in name for character in ",&\t\n\r/"):
            raise DataError(
                f"{origin}: class name {name!r} is empty, has blanks at an end, or contains one of , & / tab newline; rename it"
            )
    if len(set(classes)) != len(classes):
        repeated = sorted({name for name in classes if list(classes).count(name) > 1})
        raise DataError(f"{origin}: class names repeat: {', '.join(repeated)}; expected distinct names")
    return tuple(classes)


@dataclass(frozen=True)
class SubsetBank:
    """A bank restricted to some of its classes."""

    whole: SourceBank
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for cls in self.classes:
            check_class(self.whole, cls)
        check_class_names(self.classes, f"subset of bank {self.whole.name}")

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def version(self) -> str:
        return self.whole.version

    def sprites(self, cls: str, split: str) -> Sequence[str]:
        check_class(self, cls)
        return self.whole.sprites(cls, split)

    def sprite(self, cls: str, id: str) -> np.ndarray:
        check_class(self, cls)
        return self.whole.sprite(cls, id)

    def sounds(self, cls: str, split: str) -> Sequence[str]:
        check_class(self, cls)
        return self.whole.sounds(cls, split)

    def sound(self, cls: str, id: str, rate: int) -> np.ndarray:
        check_class(self, cls)
        return self.whole.sound(cls, id, rate)

    def describe(self) -> dict[str, Any]:
        return {**self.whole.describe(), "classes": list(self.classes)}

    def subset(self, classes: Sequence[str]) -> SubsetBank:
        for cls in classes:
            check_class(self, cls)
        return SubsetBank(self.whole, tuple(classes))
