"""Errors that a user can act on: one line naming the file or argument, what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WeightsError(Exception):
    """A weight file is missing, malformed, or not the one that the tower needs (command lines exit with code 3)."""

    exit_code = 3


class TowerError(ValueError):
    """A tower was asked for by an unknown name, size, variant or override (command lines exit with code 2)."""

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest known name, else the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known) or 'none'}"
