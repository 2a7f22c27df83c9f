"""A run with its references: worker processes train them side by side, and one command goes on with all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from avcl import children
from avcl.sweep_jobs import run_jobs
from avcl.sweep_plan import Found, State, state_of
from avcl_core.config.load import Source, read
from avcl_core.config.run import RunOptions, load_run
from avcl_core.errors import AvclError, ConfigError, IntegrityError, RunError, Stopped
from avcl_core.evaluation.summary import write_results
from avcl_core.running.folder import RunFolder
from avcl_core.running.launch import create
from avcl_core.running.lock import only_writer
from avcl_core.running.references import make_references, name_references
from avcl_core.terminal import console

KEY = "references"


@dataclass(frozen=True)
class Part:
    """The run itself or one of its references; ``title``: its method."""

    title: str
    folder: Path


def run_with_references(source: Source, command: Sequence[str]) -> Path:
    """Make a run and its references, train them all and return the folder of the run.

    Raises:
        ConfigError, IntegrityError, RunError, Stopped: with the exit codes of DESIGN.md section 7.
    """
    children.prepare()
    with console() as shown:
        run = create(source, command, shown)
    return finish_references(run, ())


def add_references(run: Path, overrides: Sequence[str]) -> list[str]:
    """Take ``references=[…]`` out of the overrides of ``avcl resume``, record them in the run, and return the other overrides."""
    asked = [text for text in overrides if text.partition("=")[0] == KEY]
    if asked:
        options, _ = load_run(read(RunFolder.open(run).path / "config.yaml", asked))
        with only_writer(run):
            name_references(run, options.references)
    return [text for text in overrides if text not in asked]


def finish_references(run: Path, overrides: Sequence[str], run_all: Callable[..., list] = run_jobs) -> Path:
    """Go on with what is not done of a run and its references, and write the run's tables again.

    Args:
        overrides: ``workers=N``, for all of them.

    Raises:
        Stopped: on SIGTERM or SIGINT, after all of them have stopped at a safe point.
        ConfigError, IntegrityError, RunError: one of them failed; the class is that of the first failure.
    """
    references = make_references(run)
    method = RunFolder.open(run).read_json("run.json")["method"]
    parts = [Part(method, run), *(Part(name, folder) for name, folder in references.items())]
    todo = [(part, Found(state, part.folder)) for part in parts if (state := _state(part.folder)) != "done"]
    options, _ = load_run(read(run / "config.yaml"))
    print(f"{len(parts)} runs, {len(parts) - len(todo)} done", flush=True)

    def command(part: Part, found: Found) -> list[str]:
        return ["resume", str(part.folder), "--alone", *overrides]

    try:
        failures = run_all(todo, at_once(options), lambda line: print(line, flush=True), command)
    except Stopped as error:
        reason = str(error).partition(";")[0].removeprefix("sweep ")
        raise Stopped(f"{reason}; continue with: avcl resume {run}") from None
    if _state(run) == "done":
        write_results(run)
    if failures:
        raise _error(failures[0].code)(
            "; ".join(f"{failure.run.title}: {failure.error}" for failure in failures)
            + f"; continue with: avcl resume {run}"
        )
    return run


def at_once(options: RunOptions) -> int:
    """How many of the runs compute at a time: half again as many as there are cores, on a GPU one.

    Runs are about equally long. On two cores the third of them would leave a core idle while it computes alone; three that share
    the cores end together.
    """
    wanted = options.fabric
    if wanted.accelerator != "cpu":
        import torch

        if wanted.accelerator != "auto" or torch.cuda.is_available():
            return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, 3 * cores // (2 * wanted.devices * (options.threads or cores)))


def _state(run: Path) -> State:
    folder = RunFolder.open(run)
    state = state_of(folder.read_json("run.json")["status"])
    return "to run" if state == "stopped" and folder.store.latest() is None else state


def _error(code: int) -> type[AvclError]:
    return {kind.exit_code: kind for kind in (ConfigError, IntegrityError)}.get(code, RunError)
