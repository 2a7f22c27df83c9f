"""The run folder holds everything about one execution; its logs are cut back to the last commit when a run is resumed."""

from __future__ import annotations

import gzip
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from avcl_core.errors import IntegrityError
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.evaluation.examples import examples_file, write_examples
from avcl_core.evaluation.matrix import encode_number
from avcl_core.evaluation.usage_file import add_usage, prune_usage, usage_file
from avcl_core.training.checkpoint import CheckpointStore, replace_text, sync

LOGS = ("metrics.jsonl", "results.jsonl")


class RunFolder:
    """Reads and writes one run folder (``docs/architecture.md``); implements the trainer's recorder.

    ``metrics.jsonl`` and ``results.jsonl`` hold nothing that depends on when or where a run ran; times are in
    ``events.jsonl`` alone, so a resumed run leaves the same bytes as an uninterrupted one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = CheckpointStore(path / "checkpoints")

    @classmethod
    def create(cls, root: Path, stream: str, method: str, seed: int) -> RunFolder:
        """Make a new folder ``root/<stream>/<method>/<date>-<id>-s<seed>``."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = root / _safe(stream) / _safe(method) / f"{stamp}-{os.urandom(3).hex()}-s{seed}"
        path.mkdir(parents=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run.

        Raises:
            IntegrityError: the folder has no ``run.json``.
        """
        if not (path / "run.json").is_file():
            raise IntegrityError(
                f"{path}: run.json is missing; expected the folder of a run, runs/<stream>/<method>/<run>"
            )
        return cls(path)

    # ------------------------------------------------------------------ small files
    def write_json(self, name: str, value: Any) -> None:
        """Replace a JSON file of the folder atomically."""
        replace_text(self.path / name, json.dumps(value, indent=1) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the folder."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise IntegrityError(f"{self.path / name}: {error}; the run folder is damaged") from error

    def set_status(self, status: str) -> None:
        """Record whether the run is ``running``, ``stopped``, ``failed`` or ``done``."""
        record = self.read_json("run.json")
        self.write_json("run.json", {**record, "status": status})

    def ownership(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the ownership table."""
        self.write_json("ownership.json", list(rows))

    # ------------------------------------------------------------------ logs
    def metrics(self, record: Mapping[str, Any]) -> None:
        """Append to ``metrics.jsonl``."""
        self._append("metrics.jsonl", record)

    def result(self, record: Mapping[str, Any], evaluation: Evaluation, pack: Callable[[Any], Any]) -> None:
        """Append to ``results.jsonl``; write ``predictions/<row>/<test>.jsonl.gz``, one record per sample key, and examples.

        Where a model tells whom it sent a sample to, the record has the ``expert`` and its ``scores``.
        ``results/examples/<test>.jsonl`` is that of the last row. ``results/expert_usage.json`` has an entry where the model tells
        how its experts were used.
        """
        target = self.path / "predictions" / _safe(record["row"]) / f"{_safe(record['test'])}.jsonl.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        sent = {key: {"expert": choice.slot, "scores": choice.scores} for key, choice in evaluation.choices.items()}
        lines = (
            json.dumps(_encodable({"key": key, **pack(value), **sent.get(key, {})}))
            for key, value in evaluation.predictions.items()
        )
        staged = target.with_name(f".{target.name}.tmp")
        with staged.open("wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
            for line in lines:
                packed.write(f"{line}\n".encode())
        sync(staged)
        staged.replace(target)
        write_examples(examples_file(self.path, record["test"]), evaluation.examples)
        if evaluation.usage is not None:
            add_usage(usage_file(self.path), record["row"], record["test"], evaluation.usage)
        self._append("results.jsonl", record)

    def event(self, kind: str, **details: Any) -> None:
        """Append an event with its time to ``events.jsonl``."""
        self._append("events.jsonl", {"time": time.time(), "event": kind, **details})

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(_encodable(record)) + "\n")

    def offsets(self) -> dict[str, int]:
        """Make the logs durable and return their lengths in bytes."""
        found = {}
        for name in LOGS:
            path = self.path / name
            path.touch()
            sync(path)
            found[name] = path.stat().st_size
        return found

    def rewind(self, offsets: Mapping[str, int]) -> None:
        """Cut the logs back to the lengths of a commit, and drop the usage statistics of results that are gone with them.

        Raises:
            IntegrityError: a log is shorter than the commit says.
        """
        for name, length in offsets.items():
            path = self.path / name
            size = path.stat().st_size if path.exists() else 0
            if size < length:
                raise IntegrityError(
                    f"{path}: {size} bytes, the last commit recorded {length}; the log was changed, start a new run"
                )
            if size > length:
                os.truncate(path, length)
        prune_usage(usage_file(self.path), self._results())

    def _results(self) -> set[tuple[str, str]]:
        """Row and test set of every result on record."""
        path = self.path / "results.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else ()
        return {(record["row"], record["test"]) for record in map(json.loads, lines)}


class Silent(RunFolder):
    """The recorder of ranks other than the first: it writes nothing."""

    def write_json(self, name: str, value: Any) -> None:
        """Write nothing."""

    def set_status(self, status: str) -> None:
        """Write nothing."""

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        pass

    def result(self, record: Mapping[str, Any], evaluation: Evaluation, pack: Callable[[Any], Any]) -> None:
        """Write nothing."""

    def offsets(self) -> dict[str, int]:
        """Return nothing: the first rank commits."""
        return {}

    def rewind(self, offsets: Mapping[str, int]) -> None:
        """Cut nothing."""


def _encodable(value: Any) -> Any:
    """Strict JSON: numbers that are not finite become their names."""
    if isinstance(value, float):
        return encode_number(value)
    if isinstance(value, Mapping):
        return {key: _encodable(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encodable(child) for child in value]
    return value


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)
