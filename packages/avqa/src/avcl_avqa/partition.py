"""The label groups of an AVQACL benchmark: partition file, label dictionary, and partitions drawn from a seed (2.1, 5.2, 5.4)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avcl_avqa.benchmarks import Benchmark
from avcl_avqa.json_records import Entry, kind, read_json, shown
from avcl_avqa.open_records import listed
from avcl_core.data.atomic import digest_of, sha256_of
from avcl_core.data.problems import broken
from avcl_core.data.records import AnnotationFile, refuse_errors
from avcl_core.errors import ConfigError, nearest
from avcl_core.seeding import ordered

UNKNOWN = "<unk>"
"""The last entry of a label dictionary."""


@dataclass(frozen=True)
class Partition:
    """Labels in groups, one group per step of every question type.

    Attributes:
        steps: labels of each step, in order.
        name: what reports call it; it tells a published partition from a generated one.
    """

    benchmark: Benchmark
    steps: tuple[tuple[str, ...], ...]
    name: str

    def step_of(self, label: str) -> int:
        """Return the 0-based step of a label; KeyError for an unknown one."""
        return self._places()[label][0]

    def label_id(self, type: str, label: str) -> int:
        """Return steps·labels·type + labels·step + position, all 0-based (2.1); ValueError or KeyError for an unknown one."""
        step, position = self._places()[label]
        size = self.benchmark.labels
        return (self.benchmark.types.index(type) * self.benchmark.steps + step) * size + position

    def dictionary(self) -> dict[str, int]:
        """Return ``<Type>_<label>`` → id in id order, and ``<unk>`` at the end: the content of the published file."""
        names = [f"{type}_{label}" for type in self.benchmark.types for step in self.steps for label in step]
        return {name: id for id, name in enumerate([*names, UNKNOWN])}

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels in order."""
        return tuple(label for step in self.steps for label in step)

    def _places(self) -> Mapping[str, tuple[int, int]]:
        return {label: (s, p) for s, step in enumerate(self.steps) for p, label in enumerate(step)}


def load_partition(path: str | Path, benchmark: Benchmark, dictionary: str | Path | None = None) -> Partition:
    """Return the partition of a file; with the file of the label dictionary, that must be the one the partition gives.

    Raises:
        DataError: a file is missing or malformed, a list has the wrong length, a label repeats, or an id is another one.
    """
    file = AnnotationFile(Path(path))
    partition = read_partition(file, benchmark)
    problems = list(file.problems)
    if partition is not None and dictionary is not None:
        other = AnnotationFile(Path(dictionary))
        check_dictionary(other, partition)
        problems += other.problems
    refuse_errors(problems)
    assert partition is not None  # a partition that is none has left an error
    return partition


def named_shape(path: Path) -> tuple[int, int]:
    """Return steps and labels per step as the name of a partition file says them: ``task_partition_<steps>_<labels>.json``.

    Raises:
        DataError: the name has another form.
    """
    found = re.fullmatch(r"task_partition_(\d+)_(\d+)\.json", path.name)
    if found is None:
        expected = "task_partition_<steps>_<labels>.json"
        raise broken(
            path, "file name", path.name, expected, "rename it: its name says how many groups of labels it has"
        )
    return int(found[1]), int(found[2])


def read_partition(file: AnnotationFile, benchmark: Benchmark) -> Partition | None:
    """Return the partition of a file (a JSON list of lists of texts), or record what is wrong with it.

    Raises:
        DataError: the file is missing, empty, not UTF-8 or not JSON.
    """
    expected = f"{benchmark.steps} lists of {benchmark.labels} labels each"
    steps = read_json(file, expected)
    if not isinstance(steps, list) or not all(isinstance(step, list) for step in steps):
        found = kind(steps) if not isinstance(steps, list) else "a list of other things than lists"
        file.note(None, "partition", found, expected, "put the published file there")
        return None
    before = len(file.problems)
    lengths = [len(step) for step in steps]
    if lengths != [benchmark.labels] * benchmark.steps:
        file.note(None, "partition", f"lists of {lengths} labels", expected, "put the published file there")
    flat = [label for step in steps for label in step]
    wrong = [shown(label) for label in flat if not isinstance(label, str) or not label.strip()]
    if wrong:
        file.note(None, "partition", listed(wrong), "labels as texts", "correct the file")
    else:
        _check_repeats(file, flat)
    if len(file.problems) > before:
        return None
    name = f"{file.path.name} sha256 {sha256_of(file.path)[:12]}"
    return Partition(benchmark, tuple(tuple(step) for step in steps), name)


def check_dictionary(file: AnnotationFile, partition: Partition) -> None:
    """Compare a label dictionary with the one that the partition gives; every difference is recorded in ``file.problems``.

    Raises:
        DataError: the file is missing, empty, not UTF-8 or not JSON.
    """
    benchmark, ours = partition.benchmark, partition.dictionary()
    expected = f"the {len(ours)} ids of {partition.name}"
    action = "put the dictionary of this partition there, or leave it out: it is made from the partition"
    found = read_json(file, "a JSON object of text → integer")
    if not isinstance(found, dict):
        file.note(None, "dictionary", kind(found), "a JSON object of text → integer", action)
        return
    missing = [repr(name) for name in ours if name not in found]
    spare = [repr(name) for name in found if name not in ours]
    for what, names in (("missing", missing), ("unknown", spare)):
        if names:
            file.note(None, "dictionary", f"{len(names)} entries {what}: {listed(names)}", expected, action)
    size = benchmark.labels * benchmark.steps
    formula = f"id = {size}·type + {benchmark.labels}·step + position, {UNKNOWN} = {len(ours) - 1}"
    differ = [f"{name!r} = {found[name]!r} (not {id})" for name, id in ours.items() if not _is(found.get(name, id), id)]
    if differ:
        file.note(None, "dictionary", f"{len(differ)} wrong ids: {listed(differ)}", formula, action)


def check_labels(entry: Entry, labels: Sequence[str], partition: Partition) -> None:
    """Record each label of an entry that the partition does not have."""
    known = set(partition.labels)
    for label in labels:
        if label not in known:
            action = (
                f"correct the record, or take the partition that it is from{nearest(label, list(partition.labels))}"
            )
            entry.wrong("label", repr(label), f"a label of {partition.name}", action)


def generated_partition(benchmark: Benchmark, labels: Sequence[str], seed: int) -> Partition:
    """Return ``labels`` in random groups, a pure function of the set of labels and the seed, named after both.

    Raises:
        ConfigError: a label repeats, or there are not as many as the benchmark has.
    """
    count = benchmark.steps * benchmark.labels
    if len(set(labels)) != len(labels) or len(labels) != count:
        found = f"{len(labels)} labels, {len(set(labels))} different"
        raise ConfigError(
            f"partition of {benchmark.name}: found {found}; expected {count} different ones; name them all"
        )
    order = ordered(labels, seed, "partition", benchmark.name)
    size = benchmark.labels
    steps = tuple(tuple(order[start : start + size]) for start in range(0, count, size))
    return Partition(benchmark, steps, f"generated {benchmark.shape} seed {seed} sha256 {digest_of(steps)[:12]}")


def _check_repeats(file: AnnotationFile, labels: Sequence[str]) -> None:
    repeated = [repr(label) for label, times in Counter(labels).items() if times > 1]
    if repeated:
        file.note(
            None, "partition", f"{len(repeated)} labels repeat: {listed(repeated)}", "each label once", "remove them"
        )


def _is(value: object, id: int) -> bool:
    return type(value) is int and value == id
