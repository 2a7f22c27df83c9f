"""The examples of a run folder for its page: read, checked, and grouped by test set and by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avcl.report.frames import Strip, strip
from avcl.report.timeline import Clip, clip
from avcl_core.errors import IntegrityError
from avcl_core.evaluation.examples import Answer, Example, MaskedFrames, Timeline, examples_file, read_examples
from avcl_core.evaluation.summary import Summary


@dataclass(frozen=True)
class TestExamples:
    """What a page shows of one test set: time lines, strips of frames and answers, in the order of the file.

    Attributes:
        test: name of the test set.
        after: the row whose model was shown; None where its result is not recorded.
        samples: number of samples of the test set; None likewise.
    """

    __test__ = False

    test: str
    after: str | None
    samples: int | None
    timelines: tuple[Clip, ...]
    strips: tuple[Strip, ...]
    answers: tuple[Answer, ...]

    @property
    def count(self) -> int:
        """Number of examples."""
        return len(self.timelines) + len(self.strips) + len(self.answers)


def run_examples(folder: Path, summary: Summary, samples: Mapping[str, int]) -> list[TestExamples]:
    """Return the test sets of a run that have examples, in stream order.

    Args:
        folder: the run folder; one without ``results/examples`` has none.
        summary: says which row of a test set is the last.
        samples: test set → number of its samples.

    Raises:
        IntegrityError: a file of examples is damaged.
    """
    found = []
    for test in summary.tests:
        path = examples_file(folder, test.name)
        examples = _read(path)
        if not examples:
            continue
        rows = [row for row in summary.rows if summary.matrix.cell(row, test.name) is not None]
        found.append(
            TestExamples(
                test=test.name,
                after=rows[-1] if rows else None,
                samples=samples.get(test.name),
                timelines=tuple(clip(e) for e in examples if isinstance(e, Timeline)),
                strips=tuple(strip(e) for e in examples if isinstance(e, MaskedFrames)),
                answers=tuple(e for e in examples if isinstance(e, Answer)),
            )
        )
    return found


def _read(path: Path) -> Sequence[Example]:
    examples = read_examples(path)
    for number, example in enumerate(examples, start=1):
        _check(example, f"{path}: example {number}")
    return examples


def _check(example: Example, where: str) -> None:
    """Refuse what decodes, but cannot be drawn."""
    arrays = () if isinstance(example, Answer) else ("rows", "frames", "truth", "predicted", "known")
    for name, value in vars(example).items():
        if name not in arrays:
            _expect(isinstance(value, str), where, name, repr(value), "text")
    if isinstance(example, Timeline):
        _check_rows(example, where)
    elif isinstance(example, MaskedFrames):
        _check_frames(example, where)


def _check_rows(example: Timeline, where: str) -> None:
    for row in example.rows:
        _expect(isinstance(row.label, str), where, "label", repr(row.label), "text")
        for value in (*row.truth, *row.predicted):
            _expect(value in (0, 1), where, f"row {row.label!r}", repr(value), "0 or 1 for each second")
    seconds = sorted({len(side) for row in example.rows for side in (row.truth, row.predicted)})
    _expect(len(seconds) <= 1 and 0 not in seconds, where, "rows", f"{seconds} seconds", "one length for all")


def _check_frames(example: MaskedFrames, where: str) -> None:
    for name in ("frames", "truth", "predicted", "known"):
        kind = type(getattr(example, name))
        _expect(kind is np.ndarray, where, name, kind.__name__, "an array")
    shape = example.frames.shape
    _expect(len(shape) == 4 and shape[3] == 3 and 0 not in shape, where, "frames", shape, "[frames, height, width, 3]")
    for name, size in {"frames": shape, "truth": shape[:3], "predicted": shape[:3], "known": shape[:1]}.items():
        array, kind = getattr(example, name), "uint8" if name == "frames" else "bool"
        found = f"{array.dtype} {array.shape}"
        _expect(array.shape == size and array.dtype == kind, where, name, found, f"{kind} {size}")


def _expect(holds: bool, where: str, field: str, found: object, expected: str) -> None:
    if not holds:
        raise _damaged(where, f"field {field}: found {found}, expected {expected}")


def _damaged(where: str | Path, what: str) -> IntegrityError:
    return IntegrityError(f"{where}: {what}; evaluate the run again to rewrite it")
