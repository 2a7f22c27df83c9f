"""A very small world and the run that every interrupted run has to equal; children are forked, so imports are paid once."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from avcl_core.config.load import read
from avcl_core.config.presets import find_config
from avcl_core.errors import AvclError
from avcl_core.running import launch


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "procedural"


@pytest.fixture(scope="session")
def overrides(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The first two tasks of the embedded run, a twentieth of its size."""
    return [
        "stream.tasks=[ave,avvp]",
        f"data.root={data_root}",
        "data.world.scale=0.05",
        "training.epochs=2",
        "training.batch_size=4",
        "training.checkpoint_every=1",
        "method.memory=8",
        "method.replay_batch=2",
        "threads=1",
        f"runs={tmp_path_factory.mktemp('runs')}",
    ]


def start(overrides: list[str], config: str = "embedded") -> Path:
    run = launch.start(read(find_config(config, "avcl"), overrides), ["avcl", "run", *overrides], launch.Console())
    assert run is not None
    return run


@pytest.fixture(scope="session")
def straight(overrides: list[str]) -> Path:
    """The uninterrupted run."""
    return start(overrides)


def without(overrides: list[str], *keys: str) -> list[str]:
    """The overrides of other keys."""
    return [text for text in overrides if not text.startswith(keys)]


class Child:
    """A forked process that runs ``work`` and exits as the command line would."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                work()
                code = 0
            except AvclError as error:
                code = error.exit_code
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def wait(self) -> int:
        """Return the exit code, or minus the signal that ended the child."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def stop(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def newest(overrides: list[str], since: set[Path]) -> Path:
    """The run folder that was made after ``since`` was listed."""
    return next(path for path in run_folders(overrides) if path not in since)


def run_folders(overrides: list[str]) -> list[Path]:
    root = Path(next(text for text in overrides if text.startswith("runs=")).removeprefix("runs="))
    return [path.parent for path in root.glob("*/*/*/run.json")]


SAME = (
    "metrics.jsonl",
    "results.jsonl",
    "ownership.json",
    "stream.json",
    "results/matrix.csv",
    "results/table.md",
    "results/summary.json",
)


def content(run: Path) -> dict[str, bytes]:
    """Everything of a finished run that must not depend on how it got there."""
    from avcl.report import render

    latest = run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text().strip()
    found = {name: (run / name).read_bytes() for name in SAME}
    found |= {str(p.relative_to(latest)): p.read_bytes() for p in sorted(latest.rglob("*")) if p.is_file()}
    for made in ("predictions/*/*", "results/examples/*"):
        found |= {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.glob(made))}
    found["report.html"] = render([run]).read_bytes()
    return found
