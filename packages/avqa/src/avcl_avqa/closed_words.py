"""The words of questions as a list that grows with the stream, as the answers do: in order of first appearance in training."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

PAD, UNKNOWN_WORD = "<pad>", "<unk>"
UNKNOWN_INDEX = 1
"""Index of a word that is not in the list."""
LENGTHS = {"split_avqa": 16, "split_music_avqa": 14}
"""Benchmark → words of a question (avqacl_moe.md 2.1)."""
_WORD = re.compile(r"[^\W_]+(?:['_-][^\W_]+)*")


def words_of(question: str) -> tuple[str, ...]:
    """Return the words of a question in lower case, without punctuation around them."""
    return tuple(_WORD.findall(question.lower()))


@dataclass(frozen=True)
class WordList:
    """All question words so far in index order: padding, unknown, then by first appearance."""

    words: tuple[str, ...] = (PAD, UNKNOWN_WORD)

    def grown(self, questions: Iterable[str]) -> WordList:
        """Return the list after training questions: unseen words are added in order of appearance."""
        return WordList(tuple(dict.fromkeys((*self.words, *(word for q in questions for word in words_of(q))))))

    def encode(self, question: str, length: int) -> np.ndarray:
        """Return word indices int64 ``[length]``, padded at the end; what is longer is cut, as published."""
        places = {word: index for index, word in enumerate(self.words)}
        found = [places.get(word, UNKNOWN_INDEX) for word in words_of(question)[:length]]
        return np.array(found + [0] * (length - len(found)), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.words)
