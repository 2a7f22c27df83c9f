"""SIGTERM and SIGINT set a flag; the next safe point commits and stops the run, which can then be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from avcl_core.errors import Stopped


class Preemption:
    """Whether the run was asked to stop. A second signal falls through to the handler that was there before."""

    def __init__(self) -> None:
        self.requested: str | None = None

    def check(self) -> None:
        """Raise Stopped if a stop was requested."""
        if self.requested:
            raise Stopped(f"stopped by {self.requested}; continue with: avcl resume RUN")

    @contextmanager
    def listening(self) -> Iterator[Preemption]:
        """Handle SIGTERM and SIGINT inside the block and restore the previous handlers afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def note(number: int, frame: object) -> None:
            self.requested = signal.Signals(number).name
            signal.signal(number, previous[signal.Signals(number)])

        for number in previous:
            signal.signal(number, note)
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
