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


TestArguments = Annotated[
    list[str] | None, typer.Argument(metavar="RUN|KEY=VALUE", help="Run folder; or run=, checkpoint=, runs=.")
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
    def test(arguments: TestArguments = None) -> None:
        """Evaluate a run, by default the newest finished one.

        RUN (or run=RUN) is a run folder, checkpoint=RUN/checkpoints/TAG one of its commits; runs=FOLDER is where to look.
        """
        from avcl_core.running.launch import evaluate
        from avcl_core.running.tested import write_evaluation

        run, tag = _tested_run(task, arguments or [])
        with console() as shown:
            found = evaluate(run, tag, shown)
        if found:
            write_evaluation(run, tag, found, print)

    def main() -> None:
        guarded(lambda: app(standalone_mode=True))

    return main


def _tested_run(task: str, arguments: list[str]) -> tuple[Path, str | None]:
    """Return the run folder and the tag that the arguments of ``test`` name."""
    from avcl_core.running.tested import newest_run

    run, overrides = split_arguments(arguments)
    given = dict(text.split("=", 1) for text in overrides) | ({"run": run} if run else {})
    unknown = sorted(given.keys() - {"run", "checkpoint", "runs"})
    if unknown:
        raise ConfigError(f"test {unknown[0]}=…: expected run=, checkpoint= or runs=")
    if "checkpoint" in given:
        folder = Path(given["checkpoint"])
        if folder.parent.name != "checkpoints":
            raise ConfigError(f"checkpoint={folder}: expected RUN/checkpoints/TAG")
        return folder.parents[1], folder.name
    return (Path(given["run"]) if "run" in given else newest_run(Path(given.get("runs", "runs")), task)), None


def _print_stored(run: Path) -> None:
    """Print the result blocks that a finished run stored."""
    print((run / "results" / "table.md").read_text(encoding="utf-8"))
