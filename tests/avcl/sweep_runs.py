"""Run folders of planned runs as the engine leaves them, and a process that writes one without training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from avcl.sweep_plan import Planned
from avcl_core.stream import Experience, concatenation

CHILD = """
import json, os, signal, sys, time
from pathlib import Path
todo = json.loads(sys.argv[1])
folder = Path(todo["folder"])
folder.mkdir(parents=True, exist_ok=True)
def write(status):
    for name, text in todo["files"].items():
        (folder / name).write_text(text)
    record = json.loads(todo["files"]["run.json"]) | {"status": status}
    (folder / "run.json").write_text(json.dumps(record))
def stop(number, frame):
    write("stopped")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
if todo["how"] == "wait":
    write("running")
    print("ready", flush=True)
    time.sleep(60)
    sys.exit(9)
if todo["how"] == "fail":
    write("failed")
    print("error: loss is not finite at step 3", file=sys.stderr)
    print("a last line", file=sys.stderr)
    sys.exit(1)
if todo["how"] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if todo["how"] == "preempted":
    write("stopped")
    sys.exit(75)
write("done")
"""


def spawned(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command that stands for the process of a run."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def files_of(run: Planned, score: float, controls: dict[str, float], ideal: float = 100.0) -> dict[str, str]:
    """The files of a run of one experience that are read afterwards, by name."""
    tasks = run.options.stream.tasks
    parts = [Experience(0, t, t, (f"{t}-a", f"{t}-b"), (f"{t}-v",), (f"{t}-t",)) for t in tasks]
    stream = concatenation(run.options.stream.title, parts, "given", run.options.stream.protocol)
    record = {
        "status": "done",
        "method": run.options.method["name"],
        "model": run.options.model["name"],
        "label": run.options.label,
        "seed": run.seed,
        "cwd": str(Path.cwd()),
        "digests": {"configuration": run.options.digest},
    }
    line = {
        "row": tasks[0],
        "test": tasks[0],
        "task": tasks[0],
        "primary": "accuracy",
        "metrics": {"accuracy": score},
        "controls": {name: {"accuracy": value} for name, value in controls.items()},
        "samples": 7,
        "ideal": ideal,
    }
    return {
        "run.json": json.dumps(record),
        "stream.json": json.dumps(stream.to_json()),
        "config.yaml": yaml.safe_dump(json.loads(run.options.model_dump_json()), sort_keys=False),
        "results.jsonl": json.dumps(line) + "\n",
    }


def folder_of(run: Planned, name: str = "") -> Path:
    stem = name or f"20260101-{run.label}-s{run.seed}".replace(" ", "-").replace("/", "-")
    return run.options.runs / run.options.stream.title / run.options.method["name"] / f"{run.path.stem}-{stem}"


def write_run(run: Planned, score: float = 50.0, status: str = "done", name: str = "", **more: Any) -> Path:
    """Write the folder of a planned run; ``more`` goes to :func:`files_of`, ``record`` into run.json."""
    record = more.pop("record", {})
    folder = folder_of(run, name)
    folder.mkdir(parents=True)
    for file, text in files_of(run, score, more.pop("controls", {"chance": 3.0}), **more).items():
        (folder / file).write_text(text)
    known = json.loads((folder / "run.json").read_text()) | {"status": status} | record
    (folder / "run.json").write_text(json.dumps(known))
    return folder


def child(run: Planned, how: str = "done", score: float = 50.0, folder: Path | None = None) -> list[str]:
    """The command of a process that leaves the folder of a run: done, fail, die, wait (until SIGTERM) or preempted."""
    todo = {"how": how, "folder": str(folder or folder_of(run)), "files": files_of(run, score, {"chance": 3.0})}
    return [sys.executable, "-c", CHILD, json.dumps(todo)]


def write_stream_run(
    run: Planned, results: dict[tuple[str, str], float], ideals: dict[str, float] | None = None, status: str = "done"
) -> Path:
    """Write the folder of a planned run of several tasks; ``results``: (row, test) → score; metrics differ where ideals do."""
    ideals = ideals or {}
    folder = folder_of(run)
    folder.mkdir(parents=True)
    for file, text in files_of(run, 0.0, {}).items():
        (folder / file).write_text(text)
    lines = []
    for (row, test), score in results.items():
        primary = "accuracy" if ideals.get(test, 100.0) == 100.0 else "miou"
        lines.append(
            {
                "row": row,
                "test": test,
                "task": test,
                "primary": primary,
                "metrics": {primary: score},
                "controls": {"chance": {primary: 0.05 * ideals.get(test, 100.0)}},
                "samples": 7,
                "ideal": ideals.get(test, 100.0),
            }
        )
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    known = json.loads((folder / "run.json").read_text()) | {"status": status}
    (folder / "run.json").write_text(json.dumps(known))
    return folder
