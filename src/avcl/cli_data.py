"""``avcl data``: compose a generated world, prepare published layouts, verify either."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(
    help="Data: compose a world, prepare published data sets, verify.", no_args_is_help=True, rich_markup_mode=None
)
Root = Annotated[Path, typer.Option(help="Data root; prepared data go to ROOT/prepared/TASK-SIZE.")]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes.")]


@data_app.command()
def world(
    root: Root = Path("data/procedural"),
    task: Annotated[list[str] | None, typer.Option(help="Task; repeat for several. Default: all installed.")] = None,
    bank: Annotated[str, typer.Option(help="procedural, digits or folder.")] = "procedural",
    images: Annotated[Path | None, typer.Option(help="digits: folder of the MNIST idx files.")] = None,
    sounds: Annotated[Path | None, typer.Option(help="digits: folder or archive of spoken digits.")] = None,
    folder: Annotated[Path | None, typer.Option(help="folder: holds images/CLASS/ and sounds/CLASS/.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    scale: Annotated[float, typer.Option(help="Factor on the number of clips.")] = 1.0,
    workers: Workers = 2,
) -> None:
    """Compose a world in the published layouts below ROOT/source/TASK, media and annotation files included."""
    from avcl_core.config.load import Source, validate
    from avcl_core.config.run import WorldOptions
    from avcl_core.data.progress import progress_bar
    from avcl_core.plugins import load, names
    from avcl_core.running.provide import compose_world

    given = {"bank": bank, "images": images, "sounds": sounds, "folder": folder, "seed": seed, "scale": scale}
    options = validate(WorldOptions, Source(given, {}, "avcl data world"))
    for name in task or names("task"):
        package = load("task", name)
        print(compose_world(package, root, options, workers, progress_bar))


@data_app.command()
def prepare(
    task: Annotated[str, typer.Argument(metavar="TASK")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The data set as published.")],
    root: Root,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]", help="Options of reading SOURCE, where the task has some."),
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Edge of the frames in pixels: the visual tower's input.")] = 224,
    workers: Workers = 2,
) -> None:
    """Decode a published data set into the form that training reads; can be interrupted and run again."""
    from avcl_core.data.prepare import prepare as decode
    from avcl_core.data.progress import progress_bar
    from avcl_core.plugins import load
    from avcl_core.running.provide import prepared_folder

    package = load("task", task)
    layout = package.layout(source, **_source_options(package, options or []))
    _show(layout.problems)
    target = prepared_folder(root, package.dataset, size)
    with progress_bar(f"{task}: preparing") as progress:
        made = decode(layout, target, frame_size=size, workers=workers, progress=progress)
    print(f"{target}: {len(made)} clips, {len(made.quarantined)} quarantined, digest {made.digest[:12]}")


@data_app.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A prepared folder, or a published one with --task.")
    ],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]", help="With --task: options of reading FOLDER.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Check FOLDER as this task's published layout.")] = None,
    full: Annotated[
        bool, typer.Option("--full/--fast", help="Decode or digest everything; fast: headers and sizes.")
    ] = False,
    quarantine: Annotated[Path, typer.Option(help="With --task: where to list the problems.")] = Path(
        "quarantine.jsonl"
    ),
    workers: Workers = 2,
) -> None:
    """Check data and list every problem; exit code 3 when there is an error.

    Problems of a prepared folder are listed in its own quarantine.jsonl; a published data set is never written to.
    """
    from avcl_core.data.progress import progress_bar
    from avcl_core.data.verify import verify as check
    from avcl_core.data.verify import verify_source
    from avcl_core.plugins import load

    level = "full" if full else "fast"
    if task is None:
        found = check(folder, level)
    else:
        package = load("task", task)
        layout = package.layout(folder, **_source_options(package, options or []))
        with progress_bar(f"{task}: verifying") as progress:
            found = verify_source(layout, level, workers=workers, quarantine=quarantine, progress=progress)
    _show(found)
    errors = sum(problem.severity == "error" for problem in found)
    print(f"{folder}: {errors} errors, {len(found) - errors} warnings")
    if errors:
        raise typer.Exit(3)


def _source_options(package, given: list[str]) -> dict:
    from avcl_core.config.load import Source, validate
    from avcl_core.terminal import split_arguments

    _, overrides = split_arguments(given)
    pairs: dict[str, str] = {key: value for key, _, value in (text.partition("=") for text in overrides)}
    return dict(validate(package.source, Source(pairs, {}, f"avcl data prepare {package.name}")))


def _show(problems) -> None:
    for problem in problems:
        print(f"{problem.severity}: {problem}")
