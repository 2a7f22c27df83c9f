"""Which questions an experience has: 4 or 5 question types, or 24 or 55 increments of a type and a group of labels (2.1, 2.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from avcl_avqa.benchmarks import Benchmark
from avcl_avqa.open_records import OpenQuestion
from avcl_avqa.partition import Partition


def by_type(benchmark: Benchmark, questions: Iterable[OpenQuestion]) -> dict[str, tuple[str, ...]]:
    """Return question type → keys of its questions, types in the benchmark's order, keys in the order given.

    Raises:
        ValueError: a question has another type.
    """
    keys: dict[str, list[str]] = {name: [] for name in benchmark.types}
    for question in questions:
        keys[_known(benchmark, question)].append(question.key)
    return {name: tuple(found) for name, found in keys.items()}


def increment_names(benchmark: Benchmark) -> tuple[str, ...]:
    """Return the S names ``<Type>_<step>`` in stream order, steps counted from 1."""
    return tuple(f"{name}_{step}" for name in benchmark.types for step in range(1, benchmark.steps + 1))


def by_increment(partition: Partition, questions: Iterable[OpenQuestion]) -> dict[str, dict[str, int]]:
    """Return increment → (key → label id) of its questions, increments in stream order, keys in the order given.

    A question belongs to every step that has one of its labels, under the first of its labels that the step has.

    Raises:
        ValueError: a question has another type, no label, or a label that the partition does not have.
    """
    benchmark = partition.benchmark
    found: dict[str, dict[str, int]] = {name: {} for name in increment_names(benchmark)}
    steps = {label: step for step, labels in enumerate(partition.steps, start=1) for label in labels}
    for question in questions:
        name = _known(benchmark, question)
        unknown = [label for label in question.labels if label not in steps]
        if unknown or not question.labels:
            labels = ", ".join(map(repr, unknown)) if unknown else "no label"
            raise ValueError(f"question {question.key}: found {labels}; expected labels of {partition.name}")
        for label in question.labels:
            members = found[f"{name}_{steps[label]}"]
            members.setdefault(question.key, partition.label_id(name, label))
    return found


def window(benchmark: Benchmark, increment: int) -> range:
    """Return the label ids of a 0-based increment i: G·i … G·(i+1) − 1.

    The released evaluation reads on to G·(2i+1): it adds the start twice (avqacl_moe.md 8, 24).

    Raises:
        ValueError: there is no such increment.
    """
    if not 0 <= increment < benchmark.increments:
        raise ValueError(f"increment {increment}; {benchmark.name} has 0 … {benchmark.increments - 1}")
    return range(benchmark.labels * increment, benchmark.labels * (increment + 1))


def memberships(increments: Mapping[str, Mapping[str, int]]) -> int:
    """Return how many (increment, question) pairs there are; more than questions where questions have several labels."""
    return sum(len(members) for members in increments.values())


def _known(benchmark: Benchmark, question: OpenQuestion) -> str:
    if question.type not in benchmark.types:
        raise ValueError(f"question {question.key} has type {question.type}; {benchmark.name} has {benchmark.types}")
    return question.type
