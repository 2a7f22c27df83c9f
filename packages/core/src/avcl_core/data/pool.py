"""Worker processes for media work: spawned, light, and gone when their parent is."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with (done, total) in the parent process."""
_shared: ContextVar[tuple[int, ProcessPoolExecutor] | None] = ContextVar("shared pool", default=None)


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever; leave as soon as the parent is gone."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def one_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Every :func:`run_jobs` inside with this number of workers uses one pool: its workers start once and keep their caches.

    Inside another ``one_pool`` of the same size, that pool is used. Workers are started when there is work for them.
    """
    outer = _shared.get()
    if outer is not None and outer[0] == workers:
        yield outer[1]
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
        token = _shared.set((workers, pool))
        try:
            yield pool
        finally:
            _shared.reset(token)


def run_jobs(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Result]]:
    """Yield (position, work(job)) as jobs end, in no fixed order; with one worker or one job in this process, in order.

    ``work`` must be importable (a module-level function or a partial of one) because workers are spawned. The first exception
    of a worker is raised here and cancels what has not begun.
    """
    if workers <= 1 or len(jobs) <= 1:
        for position, job in enumerate(jobs):
            yield position, work(job)
        return
    with one_pool(workers) as pool:
        futures = {pool.submit(work, job): position for position, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)  # nothing is written any more when this returns
