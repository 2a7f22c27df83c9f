"""A replay memory keeps exemplars by experience and key, with what a method stores beside them, within a fixed capacity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from avcl_core.errors import ConfigError
from avcl_core.seeding import ordered


@dataclass(frozen=True)
class Exemplar:
    """One remembered training sample.

    Attributes:
        experience: the experience it was learnt in.
        key: its sample key; only keys in a memory can be read again after their experience.
        stored: tensors kept beside it without a batch dimension: dark logits, indices of key frames, features.
    """

    experience: str
    key: str
    stored: Mapping[str, Tensor] = field(default_factory=dict)


class Memory:
    """At most ``capacity`` exemplars, shared equally by the experiences seen so far.

    Which samples stay is a pure function of the seed and the keys: each experience has one fixed random order of its
    samples, of which a shrinking quota keeps a prefix. The media themselves stay in the prepared data, addressed by key.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity, self.seed = capacity, seed
        self.groups: dict[str, list[Exemplar]] = {}

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups.values())

    @property
    def exemplars(self) -> list[Exemplar]:
        """All exemplars, in order of experience."""
        return [exemplar for group in self.groups.values() for exemplar in group]

    def quota(self, experiences: int) -> int:
        """Return how many exemplars each of ``experiences`` may keep.

        Raises:
            ConfigError: the capacity is smaller than the number of experiences.
        """
        if self.capacity < experiences:
            raise ConfigError(
                f"method.memory: {self.capacity} samples for {experiences} experiences; give at least {experiences}"
            )
        return self.capacity // experiences

    def candidates(self, experience: str, keys: Iterable[str]) -> list[str]:
        """Return the keys that :meth:`add` would keep for a further experience, so that a method can compute what to store."""
        share = self.quota(len(self.groups.keys() | {experience}))
        return ordered(keys, self.seed, "memory", experience)[:share]

    def add(
        self, experience: str, keys: Iterable[str], stored: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> None:
        """Take samples of a finished experience and shrink the others to the new quota.

        Args:
            experience: name of the experience.
            keys: its training keys.
            stored: key → tensors to keep beside the sample, for the keys that :meth:`candidates` names.
        """
        chosen = self.candidates(experience, keys)
        self.groups[experience] = [Exemplar(experience, key, (stored or {}).get(key, {})) for key in chosen]
        share = self.quota(len(self.groups))
        self.groups = {name: group[:share] for name, group in self.groups.items()}

    def bytes_beside(self, experience: str) -> int:
        """Return the size of all stored tensors once :meth:`add` has made room for ``experience``, without its own."""
        others = {name: group for name, group in self.groups.items() if name != experience}
        share = self.quota(len(others) + 1)
        return sum(value.nbytes for group in others.values() for e in group[:share] for value in e.stored.values())

    def draw(self, count: int, generator: torch.Generator) -> list[Exemplar]:
        """Return ``count`` exemplars without repetition (all of them if there are fewer), uniformly at random."""
        everything = self.exemplars
        chosen = torch.randperm(len(everything), generator=generator)[:count]
        return [everything[i] for i in chosen.tolist()]

    def state(self) -> dict[str, Any]:
        """Return the memory as nested dictionaries of tensors and JSON values."""
        return {name: [{"key": e.key, "stored": dict(e.stored)} for e in group] for name, group in self.groups.items()}

    def load(self, state: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Restore what :meth:`state` returned."""
        self.groups = {
            name: [Exemplar(name, entry["key"], entry["stored"]) for entry in group] for name, group in state.items()
        }
