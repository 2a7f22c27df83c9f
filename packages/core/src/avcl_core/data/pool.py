"""Worker processes for media work: spawned, light, and gone when their parent is."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with (done, total) in the parent process."""


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever; leave as soon as the parent is gone."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_jobs(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Result]]:
    """Yield (position, work(job)) as jobs end, in no fixed order; with one worker or one job in this process, in order.

    ``work`` must be importable (a module-level function or a partial of one) because workers are spawned. The first exception
    of a worker is raised here and cancels what has not begun.
    """
    if workers <= 1 or len(jobs) <= 1:
        for position, job in enumerate(jobs):
            yield position, work(job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_die_with_parent) as pool:
        futures = {pool.submit(work, job): position for position, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
