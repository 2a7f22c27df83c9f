"""Run folders of three experiences that a model has to find: what it chose, what it was told, and each expert alone."""

from __future__ import annotations

import json
from pathlib import Path

from avcl_core.evaluation.usage_file import usage_file
from avcl_core.stream import Experience, concatenation

TESTS = ("a", "b", "c")
OWN = {"a": 80.0, "b": 60.0, "c": 70.0}
"""What each expert scores on its own test set: constant, as experts know nothing of each other."""
WRONG = {("b", "a"): 2, ("c", "a"): 4, ("c", "b"): 1}
"""Row and test set → how many of its ten samples go to another expert; they are all answered wrongly."""


def stream_of(task_id="hidden"):
    return concatenation("s", [Experience(0, n, "task", (f"{n}1",), (f"{n}2",), (f"{n}3",)) for n in TESTS], task_id)


def score(row: str, test: str) -> float:
    return OWN[test] * (1 - WRONG.get((row, test), 0) / 10)


def routed(row: str, test: str) -> dict:
    """One entry of the file of statistics."""
    wrong = WRONG.get((row, test), 0)
    experts = {n: {"samples": 0, "score": None} for n in TESTS[: TESTS.index(row) + 1]}
    experts[test] = {"samples": 10 - wrong, "score": OWN[test]}
    if wrong:
        experts[row] = {"samples": wrong, "score": 0.0}
    gap = {"edges": [0.0, 0.5, 1.0], "right": [0, 10 - wrong], "wrong": [wrong, 0]} if row != "a" else None
    return {
        "samples": 10,
        "sites": {},
        "agreement": [],
        "total": {},
        "groups": {},
        "routing": {
            "own": test,
            "experts": experts,
            "right": {"samples": 10 - wrong, "score": OWN[test]},
            "wrong": {"samples": wrong, "score": 0.0 if wrong else None},
            "gap": gap,
        },
    }


def line(row: str, test: str) -> dict:
    metrics = {"acc": score(row, test), "routing_accuracy": 100.0 - 10 * WRONG.get((row, test), 0)}
    ablations = {"experience given": {"acc": OWN[test]}}
    if row == TESTS[-1]:
        ablations |= {f"{n} for all": {"acc": OWN[test] if n == test else 7.0} for n in TESTS}
        ablations["c for all"]["acc"] = max(ablations["c for all"]["acc"], 65.0 if test == "b" else 0.0)
        ablations["without experts"] = {"acc": 1.25}
    return {
        "row": row, "test": test, "task": "task", "primary": "acc", "metrics": metrics, "ablations": ablations,
        "controls": {"majority": {"acc": 40.0}}, "samples": 10,
    }  # fmt: skip


def write(folder: Path, lines=None, stream=None) -> Path:
    """Write the folder of a run whose rows are complete."""
    folder.mkdir(parents=True, exist_ok=True)
    places = [(row, test) for t, row in enumerate(TESTS) for test in TESTS[: t + 1]]
    (folder / "run.json").write_text(json.dumps({"method": "finetune", "model": "anchors", "seed": 0}))
    (folder / "stream.json").write_text(json.dumps((stream or stream_of()).to_json()))
    (folder / "config.yaml").write_text("seed: 0\n")
    lines = [line(*place) for place in places] if lines is None else lines
    (folder / "results.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    (folder / "results").mkdir(exist_ok=True)
    put(folder, {place: routed(*place) for place in places})
    return folder


def put(folder: Path, entries: dict[tuple[str, str], dict]) -> None:
    """Add statistics (row, test set) to a run's; written here, as the engine's writer would load torch."""
    path = usage_file(folder)
    found = json.loads(path.read_text()) if path.exists() else {}
    for (row, test), entry in entries.items():
        found.setdefault(row, {})[test] = entry
    path.write_text(json.dumps(found))
