"""One writer at a time: a lock on a run folder, or on the data root while its data are made."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from avcl_core.errors import RunError


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold ``folder/.lock`` for the block.

    Raises:
        RunError: another process holds it.
    """
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{folder}: another process is working on this run; wait for it, or stop it first") from None
        yield


@contextmanager
def in_turn(folder: Path, check: Callable[[], None], pause: float = 0.2) -> Iterator[None]:
    """Wait for ``folder/.lock``, hold it for the block; ``check`` is called while waiting and may raise to give up."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check()
                time.sleep(pause)
        yield
