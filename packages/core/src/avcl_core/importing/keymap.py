"""Tensors of a published layout under our names: rules say, for every tensor of ours, which keys of the authors it is read from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from avcl_core.errors import IntegrityError

Keys = tuple[str, ...]
"""Keys whose tensors are joined along the first axis; nearly always one."""
Rule = tuple[str, str | Keys]
"""Pattern of our names, and the authors' key or keys with the pattern's groups in it (``\\1``)."""
COUNTER = "num_batches_tracked"
"""A counter without effect in eval mode; a file may leave it out."""


@dataclass(frozen=True)
class KeyMap:
    """Our names → the authors' keys.

    Attributes:
        rules: the first pattern that matches a whole name counts.
        dead: pattern of keys that the authors' models register and never use.
    """

    rules: Sequence[Rule]
    dead: str = "(?!)"

    def keys(self, name: str) -> Keys | None:
        """Return the authors' keys of one of our tensors, or nothing if the layout has no such tensor."""
        for pattern, template in self.rules:
            match = re.fullmatch(pattern, name)
            if match:
                return tuple(match.expand(key) for key in ((template,) if isinstance(template, str) else template))
        return None

    def is_dead(self, key: str) -> bool:
        """Whether the authors' model never uses the tensor of this key."""
        return re.fullmatch(self.dead, key) is not None


@dataclass
class Reader:
    """Takes tensors out of a foreign table, strictly, and remembers what was taken.

    Attributes:
        where: the file, for messages.
        tensors: authors' key → tensor.
        used: keys that were taken so far.
    """

    where: str
    tensors: Mapping[str, Tensor]
    used: set[str] = field(default_factory=set)

    def take(
        self,
        expected: Mapping[str, Tensor],
        keys_of: Callable[[str], Keys | None],
        default: Callable[[str], Tensor | None] = lambda name: None,
        surplus: Mapping[str, int] | None = None,
    ) -> dict[str, Tensor]:
        """Return a value for every expected tensor, in its shape and type.

        A tensor fits if its shape is the expected one up to ones at the end: 1×1 convolutions are linear maps.

        Args:
            expected: our names → tensors of the wanted shape and type.
            keys_of: our name → the authors' keys.
            default: our name → the value where the authors' key is absent, or nothing where it is needed.
            surplus: authors' key → a number of rows of which only the first ones, as many as expected, mean something.

        Raises:
            IntegrityError: a key is missing, or a tensor has another shape; the message names the authors' key.
        """
        found = {}
        for name, wanted in expected.items():
            keys = keys_of(name)
            if keys is None:
                raise IntegrityError(
                    f"{self.where}: the published layout has nothing for {name}; take the configuration of the published model"
                )
            missing = [key for key in keys if key not in self.tensors]
            if missing:
                value = default(name)
                if value is None and name.endswith(COUNTER):
                    value = torch.zeros_like(wanted)
                if value is None:
                    raise IntegrityError(
                        f"{self.where}: {missing[0]} is missing; expected {_shape(wanted)} for {name}, so this is another model "
                        "or a part of one"
                    )
                found[name] = value.to(wanted.dtype)
                continue
            self.used.update(keys)
            found[name] = self._fitting(name, wanted, keys, surplus or {})
        return found

    def _fitting(self, name: str, wanted: Tensor, keys: Keys, surplus: Mapping[str, int]) -> Tensor:
        parts = [self.tensors[key] for key in keys]
        if len(keys) == 1 and parts[0].ndim and surplus.get(keys[0]) == len(parts[0]) > len(wanted):
            parts = [parts[0][: len(wanted)]]
        try:
            value = torch.cat(parts) if len(parts) > 1 else parts[0]
            fits = _squeezed(value) == _squeezed(wanted)
        except RuntimeError:
            value, fits = parts[0], False
        if not fits:
            shapes = ", ".join(f"{key} {_shape(self.tensors[key])}" for key in keys)
            raise IntegrityError(f"{self.where}: {shapes}; expected {_shape(wanted)} for {name}")
        if wanted.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise IntegrityError(f"{self.where}: {keys[0]} has values that are not finite; the file is damaged")
        return value.reshape(wanted.shape).to(wanted.dtype)

    def rest(self, dead: Callable[[str], bool]) -> tuple[str, ...]:
        """Return the keys that were left because they are dead, sorted.

        Raises:
            IntegrityError: a key was neither taken nor is known to be dead.
        """
        left = sorted(self.tensors.keys() - self.used)
        unknown = [key for key in left if not dead(key)]
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise IntegrityError(
                f"{self.where}: {unknown[0]} {_shape(self.tensors[unknown[0]])}{more}: the published layout has no such key"
            )
        return tuple(left)


def _squeezed(tensor: Tensor) -> tuple[int, ...]:
    """The shape without the ones at its end."""
    shape = tuple(tensor.shape)
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _shape(tensor: Tensor) -> str:
    return "×".join(str(length) for length in tensor.shape) or "scalar"
