"""The continual-learning definitions of one run, each under its name: a value, or the one reason that forbids it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from avcl_core.evaluation import continual
from avcl_core.evaluation.matrix import START
from avcl_core.evaluation.record import RunRecord

Setting = Literal["incremental", "joint", "separate", "partial"]
"""How the run's rows relate to the experiences.

``incremental``: every test set was evaluated after every experience from its own on. ``joint``: one session learnt all
experiences, so there is only the last row. ``separate``: a new model per experience, so there is only the diagonal.
``partial``: anything else, such as a run that is not finished.
"""

WHY = {
    "joint": "joint training is one session: there is no result right after each experience",
    "separate": "a new model per experience carries nothing over: only R[i,i] exists",
}
MIXED = "the test sets have different primary metrics, which are not averaged"


@dataclass(frozen=True)
class Value:
    """A number, or ``None`` with the reason why there is none."""

    value: float | None
    reason: str = ""


@dataclass(frozen=True)
class Definition:
    """One continual-learning definition over the whole stream, under its name, with its formula."""

    name: str
    formula: str
    value: float | None
    reason: str = ""


def positions(record: RunRecord) -> dict[str, int]:
    """Return experience → place in the stream, from 0."""
    return {name: index for index, name in enumerate(record.experiences)}


def setting_of(record: RunRecord) -> Setting:
    """Read the setting off the cells, so that no method has to be asked what it is."""
    names, matrix, index = record.experiences, record.matrix, positions(record)
    position = {test.name: index[test.experience] for test in record.stream.tests}
    rows = [row for row in matrix.rows if row != START]
    due = [(row, test) for t, row in enumerate(names) for test, i in position.items() if i <= t]
    if rows and all(matrix.cell(*cell) for cell in due):
        return "incremental"
    sessions = {step.session for step in record.steps}
    if rows == [names[-1]] and len(sessions) <= 1 and all(matrix.cell(names[-1], test) for test in position):
        return "joint"
    cells = [(index[row], position[test]) for row in rows for test in position if matrix.cell(row, test)]
    if len(rows) > 1 and all(t == i for t, i in cells):
        return "separate"
    return "partial"


def definitions_of(record: RunRecord, setting: Setting) -> tuple[Definition, ...]:
    """Every definition in order; each with its value or with the one reason that forbids it."""
    names, matrix = record.experiences, record.matrix
    judges = _judges(record)
    if isinstance(judges, str):
        return _computed(setting, np.full((len(names),) * 2, np.nan), np.full(len(names), np.nan), judges)
    metrics = _metrics(record)
    reason = f"the test sets have different primary metrics ({', '.join(metrics)}), which are not averaged"
    start = np.array([matrix.value(START, test) for test in judges])
    return _computed(setting, matrix.square(names, judges), start, reason if len(metrics) > 1 else "")


def plain_means_of(record: RunRecord, setting: Setting) -> tuple[Definition, ...]:
    """The definitions over scores in percent of each test set's ideal, where metrics differ."""
    judges = _judges(record)
    if isinstance(judges, str) or len(_metrics(record)) < 2:
        return ()
    percent = np.array([100.0 / record.ideals.get(test, 100.0) for test in judges])
    start = np.array([record.matrix.value(START, test) for test in judges])
    return _computed(setting, record.matrix.square(record.experiences, judges) * percent, start * percent, "")


def _metrics(record: RunRecord) -> list[str]:
    found = (record.matrix.primary(test) for test in record.matrix.columns)
    return list(dict.fromkeys(name for name in found if name))


def _computed(setting: Setting, square: np.ndarray, start: np.ndarray, general: str) -> tuple[Definition, ...]:
    """Compute every definition on R ``[T, T]`` and the row before the stream ``[T]``, unless ``general`` says why not."""
    compute: dict[str, Callable[[], float]] = {
        "A_T": lambda: continual.average(square),
        "mean A": lambda: continual.mean_average(square),
        "LA": lambda: continual.learning_accuracy(square),
        **{name: (lambda name=name: continual.forgetting(square, name)) for name in continual.FORGETTING},
        **{name: (lambda name=name: continual.backward_transfer(square, name)) for name in continual.BACKWARD_TRANSFER},
        "FWT": lambda: continual.forward_transfer(square, start),
    }
    rows = []
    for name, function in compute.items():
        formula = continual.FORMULAS[name] + (", reference = row start" if name == "FWT" else "")
        value, reason = None, general
        # Zero padding would make FM_clamped a perfect 0 for a run that has only its last row.
        if not reason and name == "FM_clamped" and len(square) > 1 and setting != "incremental":
            reason = WHY.get(setting, "not every entry with i ≤ t was evaluated")
        if not reason:
            try:
                value = function()
            except ValueError as error:
                reason = WHY.get(setting, str(error))
                if len(square) == 1 and name not in ("A_T", "mean A", "LA"):
                    reason = "forgetting and transfer need at least two experiences"
        rows.append(Definition(name, formula, value, reason))
    return tuple(rows)


def _judges(record: RunRecord) -> list[str] | str:
    """Return the one test set that judges each experience, or the reason why there is no square R."""
    judges = []
    for name in record.experiences:
        own = [test.name for test in record.stream.tests if test.experience == name]
        if len(own) != 1 and name not in own:
            return f"experience {name} has {len(own)} test sets and none of its own name: R is not square"
        judges.append(own[0] if len(own) == 1 else name)
    return judges
