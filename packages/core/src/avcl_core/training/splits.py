"""Splits that a run will need are asked for before it begins, not hours later when it comes to judge an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from avcl_core.errors import ConfigError
from avcl_core.stream import Session, Stream
from avcl_core.task import Task
from avcl_core.training.options import TrainingOptions


def refuse_empty_splits(stream: Stream, sessions: Iterable[Session], options: TrainingOptions) -> None:
    """Ask for the samples of every test set, and of the selection splits of sessions that choose their best epoch.

    Raises:
        ConfigError: a split that is needed has no samples.
    """
    needed = [(stream.experience(test.experience), test.split) for test in stream.tests]
    for session in sessions:
        if options.of({experience.task for experience in session.experiences}).selection == "best":
            needed += [(experience, experience.selection) for experience in session.experiences]
    for experience, split in needed:
        if not experience.keys(split):
            raise ConfigError(
                f"experience {experience.name} has no {split} samples; they are needed for evaluation, and for"
                f" training.selection=best (choose last to do without, for all or as training.tasks.{experience.task}.selection)"
            )


def selection_notes(sessions: Iterable[Session], tasks: Mapping[str, Task], options: TrainingOptions) -> dict[str, str]:
    """Return task → what reports say of the epoch that is kept; nothing of the best one on the official validation split."""
    found = {}
    for session in sessions:
        chosen = options.of({experience.task for experience in session.experiences}).selection
        for experience in session.experiences:
            if chosen == "last":
                found[experience.task] = "last epoch"
            elif experience.selection == "test":
                found[experience.task] = f"best epoch by test {tasks[experience.task].primary}"
    return found
