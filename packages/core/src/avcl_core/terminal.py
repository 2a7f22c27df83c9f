"""How commands speak: progress on a terminal, plain lines elsewhere, one line per error, exit codes of DESIGN.md section 7."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from avcl_core.errors import AvclError, ConfigError
from shared_backbones.errors import TowerError, WeightsError

if TYPE_CHECKING:
    from avcl_core.running.launch import Console


def guarded(command: Callable[[], None]) -> None:
    """Run a command line; an error that a user can act on becomes one line and its exit code."""
    try:
        command()
    except (AvclError, WeightsError, TowerError) as error:
        print(f"error: {error}" if error.exit_code != 75 else str(error), file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(1) from None


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split ``[CONFIG] [key=value …]`` into the configuration and the overrides.

    Raises:
        ConfigError: more than one argument is no override.
    """
    names = [text for text in arguments if "=" not in text]
    if len(names) > 1:
        raise ConfigError(f"arguments {names}: expected one configuration and key=value overrides")
    return (names[0] if names else None), [text for text in arguments if "=" in text]


@contextmanager
def console() -> Iterator[Console]:
    """Give a console for a run: a live bar on a terminal, a plain line per epoch elsewhere."""
    from rich.console import Console as Screen
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from avcl_core.data.progress import progress_bar
    from avcl_core.running.launch import Console

    screen = Screen(stderr=True)
    if not screen.is_terminal:
        yield Console(lambda line: print(line, flush=True), progress_bar, _epoch_lines())
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        shown = bar.add_task("starting", total=1.0)
        yield Console(
            lambda line: screen.print(line, highlight=False),
            progress_bar,
            lambda line, fraction: bar.update(shown, description=line, completed=fraction),
        )


def _epoch_lines() -> Callable[[str, float], None]:
    last = ""

    def show(line: str, fraction: float) -> None:
        nonlocal last
        head = line.partition(",")[0]
        if head != last:
            last = head
            print(line, flush=True)

    return show
