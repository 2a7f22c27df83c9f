"""The benchmark's growing answer list: in order of first appearance, index 0 unknown, new answers counted from the old size (2.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

UNKNOWN_ANSWER = "<unk>"


@dataclass(frozen=True)
class AnswerList:
    """All answers so far in index order; the first is ``<unk>``. Answers are told apart as written."""

    answers: tuple[str, ...] = (UNKNOWN_ANSWER,)

    def grown(self, answers: Iterable[str]) -> AnswerList:
        """Return the list after an increment with these training answers: unseen ones are added in order of appearance."""
        return AnswerList(tuple(dict.fromkeys((*self.answers, *answers))))

    def encode(self, answers: Sequence[str]) -> np.ndarray:
        """Return indices int64 ``[N]``; 0 for answers that are not in the list."""
        places = {answer: index for index, answer in enumerate(self.answers)}
        return np.array([places.get(answer, 0) for answer in answers], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.answers)


def new_columns(targets: np.ndarray, old: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (mask of targets that are new ``[N]``, their columns among the new ones ``[new]``): the old size is subtracted.

    Old answers keep their old columns. The released code takes targets modulo the number of new answers, which is right only
    where that divides the old size, and makes old answers wrong new ones (avqacl_moe.md 8, 23).

    Args:
        targets: indices ``[N]`` in the grown list.
        old: size of the list before the increment.
    """
    new = np.asarray(targets) >= old
    return new, np.asarray(targets)[new] - old
