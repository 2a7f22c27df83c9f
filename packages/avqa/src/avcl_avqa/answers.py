"""Offline scorers of free-text answers: exact match, its normalised form, token F1, and a closed list ranked by likelihood (6.2)."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
"""Number words; their place is the number."""
_DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)}


def exact_match(prediction: str, answer: str) -> float:
    """Return 1.0 if the texts are equal after stripping and lower-casing (``em``, the primary score), else 0.0; empty is wrong."""
    found = _plain(prediction)
    return float(bool(found) and found == _plain(answer))


def normalised_match(prediction: str, answer: str) -> float:
    """Return 1.0 if the normalised texts are equal (``em_norm``), else 0.0.

    Texts of which nothing is left ("the", "?") are compared as :func:`exact_match` does, so that this is never below it.
    """
    found = normalised(prediction)
    return float(found == normalised(answer)) if found else exact_match(prediction, answer)


def token_f1(prediction: str, answer: str) -> float:
    """Return the harmonic mean of token precision and recall after normalisation, overlap counted with multiplicity.

    Where one of the texts has no token, it is :func:`exact_match`.
    """
    found, true = Counter(normalised(prediction).split()), Counter(normalised(answer).split())
    if not found or not true:
        return exact_match(prediction, answer)
    overlap = (found & true).total()
    return 2 * overlap / (found.total() + true.total())


SCORERS: Mapping[str, Callable[[str, str], float]] = {
    "em": exact_match,
    "em_norm": normalised_match,
    "token_f1": token_f1,
}
"""Name → scorer of (prediction, answer), each 0…1."""


def normalised(text: str) -> str:
    """Return a text in NFKC and lower case, punctuation as blanks, without a, an, the, zero…twenty as digits, single blanks."""
    lowered = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    spaced = "".join(" " if unicodedata.category(letter).startswith("P") else letter for letter in lowered)
    return " ".join(_DIGITS.get(word, word) for word in spaced.split() if word not in ARTICLES)


def rank_answers(log_likelihoods: ArrayLike, lengths: ArrayLike) -> NDArray[np.int64]:
    """Return the answers of a closed list, best first, int64 ``[N, A]``: by log-likelihood per token, ties by list order.

    Args:
        log_likelihoods: ``[N, A]`` summed log-likelihood of each answer's tokens, end of text included where lengths count it.
        lengths: ``[A]`` tokens of each answer.

    Raises:
        ValueError: shapes do not fit, a length is below 1, or a log-likelihood is NaN or positive infinity.
    """
    scores, tokens = np.asarray(log_likelihoods, dtype=np.float64), np.asarray(lengths)
    if scores.ndim != 2 or tokens.shape != scores.shape[1:] or not scores.shape[1]:
        raise ValueError(f"expected [N, A] and [A] with A ≥ 1, got {scores.shape} and {tokens.shape}")
    if (tokens < 1).any():
        raise ValueError(f"answer {int(np.argmax(tokens < 1))} has {tokens.min()} tokens; expected at least 1")
    if np.isnan(scores).any() or (scores == np.inf).any():
        raise ValueError("a log-likelihood is NaN or infinite; expected finite values, or −∞ for an impossible answer")
    return np.argsort(-scores / tokens, axis=1, kind="stable")


def _plain(text: str) -> str:
    return text.strip().lower()
