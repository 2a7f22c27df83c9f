"""Many runs of one configuration: methods × seeds, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from avcl_core.config.load import read
from avcl_core.config.presets import find_config
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError


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
