"""Starts, resumes and evaluates runs; translates every ending into a status and an exit code."""

from __future__ import annotations

import json
import platform
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric import Fabric

from avcl_core.collective import Collective, current
from avcl_core.config.load import Source, read
from avcl_core.config.run import RunOptions, load_run, paths_below
from avcl_core.errors import AvclError, ConfigError, RunError, Stopped
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.evaluation.summary import write_results
from avcl_core.running.assemble import Assembly, assemble, describe, notes
from avcl_core.running.folder import RunFolder, Silent
from avcl_core.running.provide import Bar, silent
from avcl_core.task import Task
from avcl_core.training.preemption import Preemption

RESUMABLE = ("workers",)
"""Top-level keys that may change between a stop and a resume: results do not depend on them."""


@dataclass(frozen=True)
class Console:
    """How a run speaks to its user.

    Attributes:
        say: prints a line.
        bar: progress bar of data work.
        progress: called with a line and the fraction of a session that is done.
    """

    say: Callable[[str], None] = lambda line: None
    bar: Bar = silent
    progress: Callable[[str, float], None] = lambda line, fraction: None


def start(source: Source, command: Sequence[str], console: Console) -> Path | None:
    """Run a configuration from the beginning and return the run folder; ranks other than the first return nothing.

    Raises:
        ConfigError, IntegrityError, RunError, Stopped: with the exit codes of DESIGN.md section 7.
    """
    options, parts = load_run(source)
    fabric, collective = _launch(options)
    console = console if collective.rank == 0 else Console()
    assembly = assemble(options, parts, fabric, collective, console.bar)
    method, model = options.method["name"], options.model["name"]
    path = None
    if collective.rank == 0:
        path = RunFolder.create(options.runs, assembly.stream.name, method, options.seed).path
    path = next(p for p in collective.join(path) if p is not None)
    folder = RunFolder(path) if collective.rank == 0 else Silent(path)
    record = {
        "format": 1,
        "status": "running",
        "method": method,
        "model": model,
        "seed": options.seed,
        "command": list(command),
        "cwd": str(Path.cwd()),
        "notes": notes(assembly),
        "skipped": list(assembly.skipped),
        "digests": dict(assembly.digests),
        "libraries": {name: version(name) for name in ("avcl-core", "torch", "timm", "transformers", "lightning")},
        "python": platform.python_version(),
    }
    folder.write_json("run.json", record)
    folder.write_json("stream.json", assembly.stream.to_json())
    if collective.rank == 0:
        text = yaml.safe_dump(json.loads(options.model_dump_json()), sort_keys=False)
        (path / "config.yaml").write_text(text, encoding="utf-8")
    console.say(f"run {path}")
    _drive(assembly, folder, collective, console, resume=False)
    return path if collective.rank == 0 else None


def resume(path: Path, overrides: Sequence[str], console: Console) -> Path | None:
    """Continue a stopped run to its end and return its folder, as :func:`start`. ``overrides`` may set ``workers`` only.

    Raises:
        ConfigError: another key is overridden.
        IntegrityError: configuration, data or weights drifted; the message names which.
    """
    for text in overrides:
        if text.partition("=")[0] not in RESUMABLE:
            raise ConfigError(f"override {text!r}: a resumed run can change {', '.join(RESUMABLE)} only")
    folder = RunFolder.open(path)
    assembly, collective = _reopen(folder, overrides, console)
    if collective.rank:
        folder, console = Silent(path), Console()
    console.say(f"run {path}")
    if folder.store.latest() is not None and folder.store.load().state["position"]["phase"] == "done":
        console.say("the run is done; nothing to resume")
    _drive(assembly, folder, collective, console, resume=folder.store.latest() is not None)
    return path if collective.rank == 0 else None


@dataclass(frozen=True)
class Tested:
    """One test set as :func:`evaluate` found it, and the record that the run itself stored for the same row (or none)."""

    task: Task
    evaluation: Evaluation
    stored: Mapping[str, Any]


def evaluate(path: Path, tag: str | None, console: Console) -> dict[str, Tested]:
    """Evaluate a commit of a run (the latest by default) on the test sets of its session, without changing the run.

    Returns:
        test set → what was found.
    """
    folder = RunFolder.open(path)
    assembly, collective = _reopen(folder, (), console)
    trainer = assembly.trainer(Silent(path), Preemption(), collective, console.progress)
    trainer.restore(tag)
    session = trainer.last_session()
    results = path / "results.jsonl"
    records = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    stored = {record["test"]: record for record in records if record["row"] == session.row}
    found = {}
    for test in session.tests:
        experience = assembly.stream.experience(test.experience)
        task = assembly.tasks[experience.task]
        evaluation = trainer.evaluator.evaluate(trainer.method, task, experience, test.split)
        found[test.name] = Tested(task, evaluation, stored.get(test.name, {}))
    return found


def _reopen(folder: RunFolder, overrides: Sequence[str], console: Console) -> tuple[Assembly, Collective]:
    source = read(folder.path / "config.yaml", overrides)
    options, parts = load_run(source)
    options = paths_below(options, Path(folder.read_json("run.json")["cwd"]))
    fabric, collective = _launch(options)
    return assemble(options, parts, fabric, collective, console.bar), collective


def _launch(options: RunOptions) -> tuple[Fabric, Collective]:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    fabric = Fabric(
        accelerator=options.fabric.accelerator, devices=options.fabric.devices, precision=options.fabric.precision
    )
    fabric.launch()
    return fabric, current()


def _drive(assembly: Assembly, folder: RunFolder, collective: Collective, console: Console, resume: bool) -> None:
    for name, value in describe(assembly):
        console.say(f"  {name}: {value}")
    preemption = Preemption()
    trainer = assembly.trainer(folder, preemption, collective, console.progress)
    with preemption.listening(), _status(folder):
        if resume:
            trainer.resume()
        folder.event("start", position=vars(trainer.at))
        trainer.run()
        folder.event("done")
    if collective.rank == 0:
        write_results(folder.path)


@contextmanager
def _status(folder: RunFolder) -> Iterator[None]:
    """Record how the block ended."""
    folder.set_status("running")
    try:
        yield
    except Stopped as error:
        folder.event("stopped", reason=str(error))
        folder.set_status("stopped")
        raise Stopped(f"{str(error).replace('RUN', str(folder.path))}") from None
    except Exception as error:
        folder.event("failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
        folder.set_status("failed")
        if isinstance(error, AvclError):
            raise
        raise RunError(f"{type(error).__name__}: {error} (traceback in {folder.path / 'events.jsonl'})") from error
    folder.set_status("done")


def command_line() -> list[str]:
    """Return the command that the user typed, with the program's short name."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
