"""The command line of a task package: ``train`` and ``test`` of that task alone, and what a package adds to them."""

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
    list[str] | None, typer.Argument(metavar="RUN|KEY=VALUE", help="Run folder; or run=, checkpoint=, runs=, ….")
]
TEST_KEYS = ("run", "checkpoint", "runs")


def task_app(task: str, extend: Callable[[typer.Typer], None] = lambda app: None) -> Callable[[], None]:
    """Return the entry point of the command ``<task>`` with ``train`` and ``test``.

    Args:
        extend: adds the package's further commands, for example with :func:`training_command`.
    """
    app = typer.Typer(
        name=task,
        no_args_is_help=True,
        add_completion=False,
        help=f"Train and test the task {task} alone.",
        rich_markup_mode=None,
    )
    training_command(app, "train", task, "embedded", "Train on this task")

    test_command(app, "test", task, "Evaluate a run, by default the newest finished one")
    extend(app)

    def main() -> None:
        guarded(lambda: app(standalone_mode=True))

    return main


def test_command(app: typer.Typer, name: str, task: str, summary: str) -> None:
    """Add a command that evaluates runs of ``task``."""

    def test(arguments: TestArguments = None) -> None:
        _test(task, arguments or [])

    test.__doc__ = f"""{summary}.

        RUN (or run=RUN) is a run folder, checkpoint=RUN/checkpoints/TAG one of its commits; runs=FOLDER is where to look.
        split=val judges another split, modalities=visual|audio hides the other input, corruptions=standard or
        corruptions=[missing:audio,audio_noise:10] writes a table of missing and corrupted modalities. features=true also
        writes mean features, which the report maps. Where the experience is hidden, to=given tells it, to=EXPERIENCE sends every
        sample to that one's expert, to=base to none, and reads=text,audio lets the router compare nothing else. An option of the task
        (setting=…) asks for the newest run with it. A package may add further keys.
        """
    app.command(name=name)(test)


def training_command(
    app: typer.Typer,
    name: str,
    package: str,
    config: str,
    summary: str,
    task: str | None = None,
    then: Callable[[Path], None] = lambda run: None,
) -> None:
    """Add a command that trains a task of the package ``avcl_<package>``, with its ``config`` as default configuration.

    Args:
        task: which of the package's tasks; by default the one named as the package.
        then: what is done with the run folder after training.
    """
    taught = task or package

    def train(arguments: Arguments = None) -> None:
        from avcl_core.config.load import read
        from avcl_core.config.presets import find_config
        from avcl_core.running.launch import command_line, start

        given, overrides = split_arguments(arguments or [])
        path = find_config(given or config, f"avcl_{package}")
        with console() as shown:
            run = start(read(path, _full_keys(taught, overrides)), command_line(), shown)
        if run is not None:
            print((run / "results" / "table.md").read_text(encoding="utf-8"))
            then(run)

    text = (
        f"{summary}; CONFIG is a file or a shipped name (default: {config}). Writes a run folder. "
        f"An option of the task needs no prefix: setting=… is tasks.{taught}.setting=…."
    )
    app.command(name=name, help=text)(train)


def _full_keys(task: str, overrides: list[str]) -> list[str]:
    """Return the overrides with ``tasks.<task>.`` in front of the task's own options."""
    from avcl_core.config.run import RunOptions
    from avcl_core.plugins import load

    own = load("task", task).options.model_fields.keys() - RunOptions.model_fields.keys()
    return [f"tasks.{task}.{text}" if text.partition("=")[0] in own else text for text in overrides]


def _test(task: str, arguments: list[str]) -> None:
    """Evaluate the run that the arguments name, and write what they ask for."""
    from avcl_core.plugins import load
    from avcl_core.running.asked import KEYS, asked, choice, refuse_unknown
    from avcl_core.running.launch import evaluate
    from avcl_core.running.robustness import evaluate_corrupted
    from avcl_core.running.tested import newest_run, write_evaluation

    package = load("task", task)
    exports, own = package.exports, tuple(package.options.model_fields)
    run, overrides = split_arguments(arguments)
    given = dict(text.split("=", 1) for text in overrides) | ({"run": run} if run else {})
    refuse_unknown("test", given, (*TEST_KEYS, *KEYS, *exports, *own))
    how = asked("test", given)
    wanted = [name for name in exports if choice("test", given, name, ("true", "false")) == "true"]
    if wanted and how.corruptions is not None:
        raise ConfigError(
            f"test {wanted[0]}=true: is of one evaluation, corruptions= asks for several; give one of them"
        )
    options = {key: given[key] for key in own if key in given}
    folder, tag = _commit(given, lambda: newest_run(Path(given.get("runs", "runs")), task, options))
    if how.corruptions is not None:
        with console() as shown:
            written = evaluate_corrupted(folder, tag, how.corruptions, shown, how.split, how.modalities)
        show_table(written)
        return
    with console() as shown:
        found = evaluate(folder, tag, shown, how.split, how.modalities, how.features, how.routing)
    if not found:
        return
    written = write_evaluation(folder, how.name(tag or "latest"), found, print)
    for name in wanted:
        for tested in found.values():
            exports[name](written, tested.task, tested.evaluation)


def show_table(folder: Path | None) -> None:
    """Print ``table.md`` of an evaluation; nothing on ranks other than the first, which have no folder."""
    if folder is not None:
        print((folder / "table.md").read_text(encoding="utf-8"))
        print(f"written to {folder}")


def _commit(given: dict[str, str], newest: Callable[[], Path]) -> tuple[Path, str | None]:
    """Return the run folder and the tag that the arguments of ``test`` name."""
    if "checkpoint" not in given:
        return (Path(given["run"]) if "run" in given else newest()), None
    folder = Path(given["checkpoint"])
    if folder.parent.name != "checkpoints":
        raise ConfigError(f"checkpoint={folder}: expected RUN/checkpoints/TAG")
    return folder.parents[1], folder.name
