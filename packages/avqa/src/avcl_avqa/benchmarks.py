"""The two AVQACL benchmarks as published: question types in order, label groups per type, and what their files are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from avcl_avqa.annotations import SPLITS
from avcl_core.data.problems import broken
from avcl_core.errors import nearest


@dataclass(frozen=True)
class Benchmark:
    """A two-level stream (Wu et al., CVPR 2025; avqacl_moe.md 2.1): question types outside, groups of labels inside.

    Attributes:
        types: question types in order, as files and experiences are named.
        steps: groups of labels per type; the same groups in every type.
        labels: labels per group (G).
    """

    name: str
    types: tuple[str, ...]
    steps: int
    labels: int

    def shaped(self, steps: int, labels: int) -> Benchmark:
        """Return the benchmark with another number of groups and of labels in each."""
        return replace(self, steps=steps, labels=labels)

    @property
    def increments(self) -> int:
        """Types times steps (S)."""
        return len(self.types) * self.steps

    @property
    def shape(self) -> str:
        """``<steps>_<labels>``, as the published partition and dictionary are named."""
        return f"{self.steps}_{self.labels}"


SPLIT_AVQA = Benchmark("split_avqa", ("Come_From", "Happening", "Where", "Which"), 6, 20)
SPLIT_MUSIC = Benchmark("split_music_avqa", ("Counting", "Existential", "Location", "Comparative", "Temporal"), 11, 2)
_FILE = re.compile(rf"({'|'.join(SPLITS)})_(.+)\.json")


@dataclass(frozen=True)
class Source:
    """What the questions of one file are: their split (``train``, ``val``, ``test``) and their question type."""

    split: str
    type: str


def source_of(path: Path, types: Sequence[str]) -> Source:
    """Return what a file's name says: ``<split>_<Type>.json``.

    Raises:
        DataError: the name has another form, or the type is none of ``types``.
    """
    found = _FILE.fullmatch(path.name)
    if found is None:
        expected = f"{{{','.join(SPLITS)}}}_<Type>.json"
        raise broken(path, "file name", path.name, expected, "rename it, or say split and question type of this file")
    if found[2] not in types:
        known = f"one of {', '.join(types)}"
        action = f"rename it, or say split and question type of this file{nearest(found[2], list(types))}"
        raise broken(path, "question type", repr(found[2]), known, action)
    return Source(found[1], found[2])
