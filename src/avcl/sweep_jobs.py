"""Runs many runs as processes of their own: a failure is one run's, and a stop request reaches all of them."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, TypeVar

from avcl.children import Child
from avcl.sweep_plan import Found, Planned
from avcl_core.errors import Stopped
from avcl_core.training.preemption import Preemption

STOPPED = Stopped.exit_code
POLL = 0.1
"""Seconds between two looks at the processes."""


class Titled(Protocol):
    """What messages need to know of a run."""

    @property
    def title(self) -> str:
        """What messages call it."""
        ...


class Process(Protocol):
    """What is used of a process, as :class:`subprocess.Popen` has it."""

    @property
    def stdout(self) -> IO[str] | None:
        """What it writes."""
        ...

    def poll(self) -> int | None:
        """Return the exit code, minus the signal that ended it; nothing while it runs."""
        ...

    def terminate(self) -> None:
        """Ask it to stop."""
        ...

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        ...


R = TypeVar("R", bound=Titled)


@dataclass(frozen=True)
class Failure:
    """A run that did not end well, what its process said last, and its exit code (minus the signal that ended it)."""

    run: Any
    error: str
    code: int = 1


def command_of(run: Planned, found: Found) -> list[str]:
    """Return the arguments of ``avcl`` that start a run, or go on with one that stopped or failed."""
    if found.folder is not None:
        return ["resume", str(found.folder), f"workers={run.options.workers}"]
    return ["run", str(run.path), *run.overrides]


@dataclass
class _Job:
    run: Titled
    number: int
    process: Process
    began: float = field(default_factory=time.monotonic)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=40))
    reader: threading.Thread | None = None

    def error(self) -> str:
        """The line that says why: the last one that begins with ``error:``, else the last one."""
        lines = [line for line in self.tail if line.strip()]
        named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        code = self.process.wait()
        end = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return (named or lines or ["it said nothing"])[-1].strip() + f" ({end})"


def run_jobs(
    todo: Sequence[tuple[R, Found]],
    jobs: int,
    say: Callable[[str], None],
    command: Callable[[R, Found], list[str]] = command_of,
    start: Callable[[Sequence[str]], Process] = Child,
) -> list[Failure]:
    """Run everything, ``jobs`` at a time, and return what failed.

    SIGTERM and SIGINT stop all processes at their next safe point; nothing further is started.

    Raises:
        Stopped: after such a request, or when a run was stopped from outside.
    """
    waiting, running, failures = deque(enumerate(todo, start=1)), [], []
    preemption, asked = Preemption(), ""
    with preemption.listening(), _ending(running):
        while waiting or running:
            if preemption.requested and not asked:
                asked = preemption.requested
                say(f"{asked}: waiting for {len(running)} runs to stop at a safe point")
                for job in running:
                    # SIGTERM, because a terminal has sent its SIGINT to all of them already.
                    job.process.terminate()
            while waiting and len(running) < jobs and not asked:
                number, (run, found) = waiting.popleft()
                say(f"[{number}/{len(todo)}] {run.title}: {'start' if found.state == 'to run' else 'resume'}")
                running.append(_begin(run, number, start(command(run, found)), say))
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                _join(job)
                code = job.process.wait()
                seconds = time.monotonic() - job.began
                if code == 0:
                    say(f"[{job.number}/{len(todo)}] {job.run.title}: done in {seconds:.0f} s")
                elif asked or preemption.requested:
                    pass  # It stopped because it was asked to; early in its life it knows no exit code for that.
                elif code == STOPPED:
                    asked = "a signal to one of its runs"
                    for other in running:
                        other.process.terminate()
                else:
                    failures.append(Failure(job.run, job.error(), code))
                    say(f"[{job.number}/{len(todo)}] {job.run.title}: FAILED: {job.error()}")
            if running:
                time.sleep(POLL)
            elif asked:
                break
    if asked:
        raise Stopped(f"sweep stopped by {asked}; the same command goes on with it")
    return failures


def _begin(run: Titled, number: int, process: Process, say: Callable[[str], None]) -> _Job:
    job = _Job(run, number, process)

    def listen(stream: IO[str]) -> None:
        for line in stream:
            job.tail.append(line.rstrip())
            say(f"[{number}] {line.rstrip()}")

    job.reader = threading.Thread(target=listen, args=(process.stdout,), daemon=True)
    job.reader.start()
    return job


def _join(job: _Job) -> None:
    """Read what a process that ended has said; a grandchild that keeps the pipe open is not waited for."""
    if job.reader is not None:
        job.reader.join(timeout=5)


@contextmanager
def _ending(running: list[_Job]) -> Iterator[None]:
    """Leave no process behind, however the block ends."""
    try:
        yield
    finally:
        for job in running:
            job.process.terminate()
        for job in running:
            job.process.wait()
