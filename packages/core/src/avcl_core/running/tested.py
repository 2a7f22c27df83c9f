"""Writes and prints what ``test`` found: the task's result block, its controls, predictions, and whether the run agrees."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from avcl_core.config.load import read
from avcl_core.config.run import load_run
from avcl_core.errors import AvclError, IntegrityError, RunError
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.evaluation.saved_features import FOLDER, write_features
from avcl_core.evaluation.table import format_score
from avcl_core.evaluation.usage_file import usage_file
from avcl_core.running.folder import RunFolder
from avcl_core.running.launch import Tested
from avcl_core.task import Task


def newest_run(runs: Path, task: str, options: Mapping[str, str] | None = None) -> Path:
    """Return the newest finished run below ``runs`` whose stream consists of ``task`` alone, with these options of the task.

    Raises:
        IntegrityError: there is none.
    """
    found = []
    for path in runs.glob("*/*/*/run.json"):
        record = json.loads(path.read_text())
        stream = path.with_name("stream.json")
        if record.get("status") == "done" and stream.is_file():
            tasks = {e["task"] for e in json.loads(stream.read_text())["experiences"]}
            if tasks == {task} and _has(path.parent, task, options or {}):
                found.append(path.parent)
    if not found:
        which = "".join(f", {name}={value}" for name, value in (options or {}).items())
        raise IntegrityError(f"{runs}: no finished run of {task}{which}; train one, or name it with run=FOLDER")
    return max(found, key=lambda path: path.name)


def _has(run: Path, task: str, options: Mapping[str, str]) -> bool:
    """Whether a run trained its task with these options, defaults included."""
    if not options:
        return True
    try:
        used = load_run(read(run / "config.yaml", ()))[1].tasks[task]
    except AvclError:  # a run of another version, which cannot be the one that is meant
        return False
    return all(str(getattr(used, name)) == value for name, value in options.items())


def result_block(task: Task, evaluation: Evaluation) -> list[str]:
    """Return the lines of a task's standard result block, with ablations and controls beside the primary metric."""
    rows = task.table(evaluation.metrics)
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    if evaluation.ablations:
        lines.append(f"ablations ({task.primary}):")
        lines += [f"  {n}: {format_score(v[task.primary], task.ideal)}" for n, v in evaluation.ablations.items()]
    lines.append(f"controls ({task.primary}):")
    for name, values in evaluation.controls.items():
        kind = " (oracle)" if name in task.oracles else ""
        lines.append(f"  {name}{kind}: {format_score(values[task.primary], task.ideal)}")
    return lines


def write_evaluation(run: Path, name: str, found: Mapping[str, Tested], say: Callable[[str], None]) -> Path:
    """Write ``evaluations/<name>/`` of a run, say what is in it and return the folder.

    Raises:
        RunError: a test set's metrics differ from what the run itself stored.
    """
    folder = RunFolder(run / "evaluations" / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    stale = [*(folder.path / FOLDER).glob("*.npz")]  # of another evaluation, perhaps of another commit
    for earlier in (folder.path / "results.jsonl", usage_file(folder.path), *stale):
        earlier.unlink(missing_ok=True)
    for test, tested in found.items():
        task, evaluation = tested.task, tested.evaluation
        record = {
            "row": "evaluation",
            "test": test,
            "task": task.name,
            "primary": task.primary,
            "metrics": dict(evaluation.metrics),
            "controls": {name: dict(values) for name, values in evaluation.controls.items()},
            "ablations": {name: dict(values) for name, values in evaluation.ablations.items()},
            "samples": len(evaluation.predictions),
            "ideal": task.ideal,
            "oracles": sorted(task.oracles),
        }
        folder.result(record, evaluation, task.pack)
        if evaluation.features is not None:
            write_features(folder.path, test, evaluation.features)
        for line in (f"{test}: {len(evaluation.predictions)} samples", *result_block(task, evaluation)):
            say(line)
        if tested.stored is not None and tested.agrees:
            say("equal to what the run stored")
    say(f"written to {folder.path}")
    differing = [test for test, tested in found.items() if not tested.agrees]
    if differing:
        raise RunError(f"{run}: the evaluation of {differing} differs from what the run stored in results.jsonl")
    return folder.path
