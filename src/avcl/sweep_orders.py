"""The orders of a plan: the same tasks in several sequences, listed by name or drawn from a seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from avcl_core.errors import ConfigError

RANDOM = "random"
"""The key of a plan's ``orders`` that holds how many orders are drawn."""

Orders = dict[str, tuple[str, ...]]


def orders_of(given: Mapping[str, Sequence[str] | int], tasks: Sequence[str], seed: int, where: str) -> Orders:
    """Return name → tasks: the listed orders, then ``random 1``, ``random 2``, … drawn from the seed, all different.

    Args:
        given: name → tasks, and ``random`` → how many to draw.
        tasks: what is drawn an order of where none is listed.
        where: place for messages.

    Raises:
        ConfigError: two orders are the same, they hold different tasks, or there are not that many.
    """
    found: Orders = {}
    for name, order in given.items():
        if isinstance(order, int):
            continue
        for other, known in found.items():
            if known == tuple(order):
                raise ConfigError(f"{where}: orders {other!r} and {name!r} are the same; remove one")
            if sorted(known) != sorted(order):
                raise ConfigError(
                    f"{where}: orders {other!r} and {name!r} hold different tasks ({', '.join(known)}; {', '.join(order)}); "
                    "a plan compares orders of the same ones"
                )
        if len(set(order)) < len(order):
            raise ConfigError(f"{where}: order {name!r} names a task twice: {', '.join(order)}")
        found[name] = tuple(order)
    tasks = next(iter(found.values()), tuple(tasks))
    count = next((number for number in given.values() if isinstance(number, int)), 0)
    if count > math.factorial(len(tasks)) - len(found):
        raise ConfigError(
            f"{where}: {count} random orders: {len(tasks)} tasks have {math.factorial(len(tasks))}, of which {len(found)} are listed"
        )
    draw, number = 0, 0
    while number < count:
        order = _drawn(tasks, seed, draw)
        draw += 1
        if order not in found.values():
            number += 1
            found[f"{RANDOM} {number}"] = order
    return found


def _drawn(tasks: Sequence[str], seed: int, draw: int) -> tuple[str, ...]:
    """A permutation that depends on nothing but the names, the seed and the number of the draw."""
    return tuple(sorted(tasks, key=lambda task: hashlib.sha256(f"order {seed} {draw} {task}".encode()).hexdigest()))
