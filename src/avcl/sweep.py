"""Many runs of one configuration: methods × seeds, one after the other here, or each as a SLURM job."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from avcl_core.config.load import read
from avcl_core.config.presets import find_config
from avcl_core.errors import ConfigError


def combinations(overrides: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[list[str]]:
    """Return the overrides of every run."""
    chosen = [[f"method.name={name}"] for name in methods] or [[]]
    return [[*overrides, *method, f"seed={seed}"] for method, seed in itertools.product(chosen, seeds)]


def sweep(
    config: str, overrides: Sequence[str], methods: Sequence[str], seeds: Sequence[int], slurm: bool
) -> list[Path]:
    """Run all combinations and return their run folders; with ``slurm``, submit them and return nothing.

    Raises:
        ConfigError: a combination is not valid (checked before the first run), or submitit is not installed.
    """
    from avcl_core.config.run import load_run

    path = find_config(config, "avcl")
    todo = combinations(overrides, methods, seeds)
    for one in todo:
        load_run(read(path, one))
    if slurm:
        _submit(path, todo)
        return []
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


def _submit(path: Path, todo: Sequence[Sequence[str]]) -> None:
    try:
        import submitit  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigError("sweep --slurm needs submitit; install the extra: avcl[cluster]") from error
    executor = submitit.AutoExecutor(folder="runs/slurm")
    for overrides in todo:
        job = executor.submit(
            submitit.helpers.CommandFunction([sys.executable, "-m", "avcl", "run", str(path), *overrides])
        )
        print(f"job {job.job_id}: avcl run {path} {' '.join(overrides)}")
