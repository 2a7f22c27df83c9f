"""Where a run's first tensors come from: what reports must say about it, and what may not be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avcl_core.errors import IntegrityError
from avcl_core.running.folder import RunFolder

WARM = "warm-started from a test-selected checkpoint"
"""What a report says of a head whose first values were chosen by a test split (avmoe.md 2.2)."""


def selected_on_test(sources: Mapping[str, Path]) -> dict[str, str]:
    """Return task → checkpoint for heads that begin with tensors which were chosen by a test split, at whatever remove.

    Args:
        sources: task → a run folder, or one of its commits ``RUN/checkpoints/TAG``.

    Raises:
        IntegrityError: a source is no run folder.
    """
    found = {}
    for task, source in sources.items():
        run = source.parents[1] if source.parent.name == "checkpoints" else source
        marks = RunFolder.open(run).read_json("run.json").get("test_selected", {})
        mark = marks.get(task) or (next(iter(marks.values())) if len(marks) == 1 else None)
        if mark is not None:
            found[task] = mark
    return found


def warm_notes(marks: Mapping[str, str]) -> list[str]:
    """Return what reports say of the heads that :func:`selected_on_test` found."""
    return [f"{task}: {WARM} ({checkpoint})" for task, checkpoint in marks.items()]


def refuse_training(record: Mapping[str, Any]) -> None:
    """Raise IntegrityError for the record of an imported run that only evaluates (avmoe.md 5.6)."""
    imported = record.get("imported")
    if imported and not imported["native"]:
        raise IntegrityError(
            f"{imported['run']}: an imported run computes what its authors' code does and is not trained on; convert "
            f"{imported['source']} with --to-native, which gives a different model that may be"
        )
