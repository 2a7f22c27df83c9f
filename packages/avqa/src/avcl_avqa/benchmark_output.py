"""What the AVQACL benchmark reports of a run, from the predictions that the run stored: ``benchmark.json`` of an evaluation."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from avcl_avqa.answers import exact_match
from avcl_avqa.benchmark_metrics import BenchmarkScores, benchmark_scores
from avcl_avqa.open_task import OpenAnswering
from avcl_core.data.atomic import write_json
from avcl_core.errors import RunError
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.evaluation.matrix import encode_number
from avcl_core.task import Task

NAME = "benchmark.json"


def export_benchmark(folder: Path, task: Task, evaluation: Evaluation) -> None:
    """Write Mean Accuracy and Average Forgetting of the whole run below an evaluation's folder; nothing is predicted again.

    It is written with the test set of the last experience, since it needs those of all.

    Raises:
        RunError: predictions of a stage are missing.
    """
    assert isinstance(task, OpenAnswering)
    run, names = folder.parents[1], [one.name for one in task.experiences()]
    if evaluation.predictions.keys() <= set(task.experiences()[-1].test):
        write_json(folder / NAME, told(task, stored_scores(run, task), names))


def stored_scores(run: Path, task: OpenAnswering) -> BenchmarkScores:
    """Return the benchmark's metrics from ``RUN/predictions/<row>/<test>.jsonl.gz``: right is what matches exactly (``em``).

    Raises:
        RunError: predictions of a stage are missing.
    """
    names = [one.name for one in task.experiences()]
    stages, increments = list[dict[str, bool]](), dict[str, tuple[str, ...]]()
    for at, row in enumerate(names):
        right: dict[str, bool] = {}
        for test in names[: at + 1]:
            path = run / "predictions" / row / f"{test}.jsonl.gz"
            if not path.is_file():
                raise RunError(
                    f"{run}: no predictions of test {test} after {row} ({at + 1} of {len(names)} stages); the benchmark's figures need"
                    " a finished run whose stream is this task alone, one experience at a time"
                )
            rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
            found = {r["key"]: bool(exact_match(r["text"], task.data.record(r["key"]).answer)) for r in rows}
            right |= found
            if test == row:
                increments[row] = tuple(found)
        stages.append(right)
    return benchmark_scores(stages, increments)


def told(task: OpenAnswering, scores: BenchmarkScores, names: list[str]) -> dict[str, object]:
    """Return the content of the file, values in percent."""
    percent = [[encode_number(100 * float(value)) for value in row] for row in scores.matrix]
    return {
        "benchmark": task.data.benchmark.name,
        "partition": None if task.data.partition is None else task.data.partition.name,
        "task": task.name,
        "metric": task.primary,
        "increments": names,
        "mean_accuracy": 100 * scores.mean_accuracy,
        "average_forgetting": encode_number(100 * scores.average_forgetting),
        "accuracy": [100 * float(value) for value in scores.accuracy],
        "forgetting": [100 * float(value) for value in scores.forgetting],
        "matrix": percent,
    }
