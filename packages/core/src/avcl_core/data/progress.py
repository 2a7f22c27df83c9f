"""Progress of media work: a bar on a terminal, a plain line every tenth elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from avcl_core.data.pool import Progress


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Give a callback (done, total) for :func:`prepare`, :func:`write_world`, …; it prints to standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=console) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    tenth = -1

    def line(done: int, total: int) -> None:
        nonlocal tenth
        reached = 10 * done // max(total, 1)
        if reached > tenth:
            tenth = reached
            console.print(f"{title}: {done} of {total}", highlight=False)

    yield line
