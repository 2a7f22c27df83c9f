"""What a report shows of single samples: time lines, masked frames, answers. Tasks fill them, reports draw them by kind."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avcl_core.errors import IntegrityError

_UNREADABLE = (AttributeError, EOFError, KeyError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)
COUNT = 8
"""Samples of a test set that are shown."""


@dataclass(frozen=True)
class TimelineRow:
    """One label over the seconds of a clip, 0 or 1 each."""

    label: str
    truth: tuple[int, ...]
    predicted: tuple[int, ...]


@dataclass(frozen=True)
class Timeline:
    """Labels over time against the truth."""

    key: str
    title: str
    rows: tuple[TimelineRow, ...]


@dataclass(frozen=True)
class MaskedFrames:
    """Masks over frames: uint8 ``[T, H, W, 3]``, bool ``[T, H, W]``; ``known`` ``[T]`` says which frames have a truth."""

    key: str
    title: str
    frames: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    known: np.ndarray


@dataclass(frozen=True)
class Answer:
    """A question with the true and the predicted answer; ``kind`` is the type of the question."""

    key: str
    title: str
    question: str
    answer: str
    predicted: str
    kind: str


Example = Timeline | MaskedFrames | Answer


def examples_file(run: Path, test: str) -> Path:
    """Return where the examples of a test set stand in a run folder; characters that file names lack become dashes."""
    return run / "results" / "examples" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', test)}.jsonl"


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write one JSON line per example; arrays as compressed .npy in base64."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"example": type(e).__name__, **_encoded(asdict(e))}, ensure_ascii=False) for e in examples]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_examples(path: Path) -> list[Example]:
    """Read what :func:`write_examples` wrote; an absent file holds none.

    Raises:
        IntegrityError: a line is no example.
    """
    if not path.is_file():
        return []
    kinds = {kind.__name__: kind for kind in (Timeline, MaskedFrames, Answer)}
    found = []
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n") if path.stat().st_size else []
    for number, line in enumerate(lines, start=1):
        try:
            record = dict(json.loads(line))
            kind = kinds[record.pop("example")]
            found.append(kind(**{name: _decoded(name, value) for name, value in record.items()}))
        except _UNREADABLE as error:
            raise IntegrityError(f"{path}: line {number}: {error!r}; evaluate the run again to rewrite it") from error
    return found


def _encoded(record: dict[str, Any]) -> dict[str, Any]:
    return {name: _array(value) if isinstance(value, np.ndarray) else value for name, value in record.items()}


def _array(value: np.ndarray) -> dict[str, str]:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, value)
    return {"npz": base64.b64encode(buffer.getvalue()).decode("ascii")}


def _decoded(name: str, value: Any) -> Any:
    if name == "rows":
        return tuple(TimelineRow(row["label"], tuple(row["truth"]), tuple(row["predicted"])) for row in value)
    if isinstance(value, dict):
        with np.load(io.BytesIO(base64.b64decode(value["npz"], validate=True)), allow_pickle=False) as archive:
            return archive["arr_0"]
    return value
