"""Commands of this program as processes that begin with its imports done: forked from a server that has made them once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import IO

PRELOADED = ("avcl_core.running.launch", "avcl_core.models.aligned", "avcl.report.page")
"""What runs import: eight seconds of a core, which a sweep would pay for each run. Nothing of it may touch a GPU: a process that
has done so cannot be forked."""


def prepare() -> None:
    """Start the server already, so that it imports while this process is busy with something else."""
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()


class Child:
    """A process that runs ``avcl`` with ``arguments``, in this folder and environment; as far as it goes, a ``subprocess.Popen``.

    Attributes:
        stdout: what the process and its own children write, errors too.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        prepare()
        read, write = os.pipe()
        with Connection(write, readable=False) as output:
            context = multiprocessing.get_context("forkserver")
            self.process = context.Process(target=_run, args=(list(arguments), dict(os.environ), output))
            self.process.start()
        self.stdout: IO[str] = os.fdopen(read, encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        """Return the exit code, minus the signal that ended the process, or nothing while it runs."""
        return self.process.exitcode

    def terminate(self) -> None:
        """Ask the process to stop, where it runs."""
        self.process.terminate()

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        self.process.join()
        code = self.process.exitcode
        assert code is not None, "it has been joined"
        return code


def _run(arguments: list[str], environment: Mapping[str, str], output: Connection) -> None:
    """Be ``avcl`` with these arguments."""
    for standard in (sys.stdout, sys.stderr):
        os.dup2(output.fileno(), standard.fileno())
        standard.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    output.close()
    os.environ.clear()
    os.environ.update(environment, PYTHONUNBUFFERED="1")
    sys.argv = ["avcl", *arguments]
    # As with python -m: whoever starts further ranks asks __main__ how this process was started.
    runpy.run_module("avcl", run_name="__main__", alter_sys=True)
