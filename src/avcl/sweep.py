"""Many runs: a plan of configurations × variants × seeds that goes on where it stopped, or methods × seeds of one configuration."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from avcl.sweep_plan import Found, Planned, Sweep
from avcl_core.config.load import read
from avcl_core.config.presets import find_config
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError, RunError


def combinations(overrides: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[list[str]]:
    """Return the overrides of every run; what is not swept stays as the configuration has it."""
    by_method = [[f"method.name={name}"] for name in methods] or [[]]
    by_seed = [[f"seed={seed}"] for seed in seeds] or [[]]
    return [[*overrides, *method, *seed] for method, seed in itertools.product(by_method, by_seed)]


def sweep(config: str, overrides: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[Path]:
    """Run all combinations and return their run folders.

    Raises:
        ConfigError: a combination is not valid (checked before the first run), or something is given twice.
    """
    for key, swept in (("method.name", methods), ("seed", seeds)):
        if swept and any(text.partition("=")[0] == key for text in overrides):
            raise ConfigError(f"sweep: {key}= and its option are both given; keep one")
    path = find_config(config, "avcl")
    if read(path).tree.get("references"):
        overrides = ["references=[]", *overrides]  # Its table compares methods, these two among them.
    todo = combinations(overrides, methods, seeds)
    for one in todo:
        load_run(read(path, one))
    return [run for one in todo if (run := _run(path, one)) is not None]


def _run(path: Path, overrides: Sequence[str]) -> Path | None:
    from avcl.report import render
    from avcl_core.running.launch import start
    from avcl_core.terminal import console

    print(f"avcl run {path} {' '.join(overrides)}", flush=True)
    with console() as shown:
        run = start(read(path, overrides), ["avcl", "run", str(path), *overrides], shown)
    if run is not None:
        render([run])
    return run


def run_sweep(sweep: Sweep, jobs: int) -> None:
    """Run what is not done of a plan, ``jobs`` runs at a time, then write and print its table.

    Raises:
        Stopped: on SIGTERM or SIGINT, after the current runs have stopped at a safe point.
        RunError: runs failed (the others are done), or another process is working on the plan.
    """
    from avcl.sweep_jobs import run_jobs
    from avcl_core.running.lock import only_writer

    sweep.folder.mkdir(parents=True, exist_ok=True)
    with only_writer(sweep.folder):
        found = sweep.find()
        todo = [(run, found[run]) for run in sweep.todo if found[run].state != "done"]
        print(f"plan {sweep.name}: {len(sweep.todo)} runs, {len(sweep.todo) - len(todo)} done", flush=True)
        for run, what in todo:
            if what.differs:
                print(f"{run.title}: {what.text}; runs again", flush=True)
        failures = run_jobs(todo, jobs, lambda line: print(line, flush=True))
        show_table(sweep)
    for failure in failures:
        print(f"failed: {failure.run.title}: {failure.error}", file=sys.stderr)
    if failures:
        raise RunError(
            f"sweep {sweep.name}: {len(failures)} of {len(sweep.todo)} runs failed; the same command tries them again"
        )


def show_table(sweep: Sweep) -> None:
    """Write and print the table of what is done, and write the comparison report beside it."""
    from avcl.report.page import render_comparison
    from avcl.sweep_stream import stream_tables
    from avcl.sweep_table import write_tables

    found = sweep.find()
    print(write_tables(sweep, found))
    print(f"table {sweep.folder / 'table.md'}", flush=True)
    done = [folder for run in sweep.todo if found[run].state == "done" and (folder := found[run].folder) is not None]
    if done:
        streams = [stream for stream in stream_tables(sweep, found) if len(stream.tests) > 1]
        print(f"report {render_comparison(done, sweep.folder / 'report.html', streams)}", flush=True)


def overview(sweep: Sweep, found: Mapping[Planned, Found]) -> list[dict[str, str]]:
    """Return one row per run of a plan: what it is, and what there is of it."""
    first = {run.key: run for run in reversed(sweep.runs)}
    return [
        {
            "config": run.config,
            **({"order": run.order} if sweep.orders else {}),
            "variant": run.variant,
            "seed": str(run.seed),
            "state": found[run].text if run == first[run.key] else f"same run as {_name(first[run.key])}",
            "run": str(found[run].folder or ""),
        }
        for run in sweep.runs
    ]


def _name(run: Planned) -> str:
    return ", ".join(part for part in (run.order, run.label) if part)
