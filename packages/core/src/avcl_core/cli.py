"""The command line of a task package: ``train`` and ``test`` of that task alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from avcl_core.errors import ConfigError
from avcl_core.terminal import console, guarded, split_arguments

Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="CONFIG|KEY=VALUE", help="Configuration and dotted overrides.")
]


def task_app(task: str) -> Callable[[], None]:
    """Return the entry point of the command ``<task>`` with ``train`` and ``test``."""
    app = typer.Typer(
        name=task,
        no_args_is_help=True,
        add_completion=False,
        help=f"Train and test the task {task} alone.",
        rich_markup_mode=None,
    )

    @app.command()
    def train(arguments: Arguments = None) -> None:
        """Train on this task; CONFIG is a file or a shipped name (default: embedded). Writes a run folder."""
        from avcl_core.config.load import read
        from avcl_core.config.presets import find_config
        from avcl_core.running.launch import command_line, start

        config, overrides = split_arguments(arguments or [])
        path = find_config(config or "embedded", f"avcl_{task}")
        with console() as shown:
            run = start(read(path, overrides), command_line(), shown)
        if run is not None:
            _print_stored(run)

    @app.command()
    def test(arguments: Arguments = None) -> None:
        """Evaluate run=RUN_FOLDER or checkpoint=RUN_FOLDER/checkpoints/TAG; by default the newest finished run."""
        from avcl_core.running.launch import evaluate
        from avcl_core.running.tested import newest_run, write_evaluation

        given = dict(text.split("=", 1) for text in split_arguments(arguments or [])[1])
        unknown = given.keys() - {"run", "checkpoint", "runs"}
        if unknown:
            raise ConfigError(f"test {sorted(unknown)[0]}=…: expected run=, checkpoint= or runs=")
        tag = None
        if "checkpoint" in given:
            folder = Path(given["checkpoint"])
            run, tag = folder.parents[1], folder.name
        else:
            run = Path(given["run"]) if "run" in given else newest_run(Path(given.get("runs", "runs")), task)
        with console() as shown:
            found = evaluate(run, tag, shown)
        for line in write_evaluation(run, tag, found):
            print(line)

    def main() -> None:
        guarded(lambda: app(standalone_mode=True))

    return main


def _print_stored(run: Path) -> None:
    """Print the result blocks that a finished run stored."""
    print((run / "results" / "table.md").read_text(encoding="utf-8"))
