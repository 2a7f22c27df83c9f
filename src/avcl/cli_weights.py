"""``avcl weights``: the catalogue, verification, conversion, and rebuilding the embedded tiny weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

weights_app = typer.Typer(
    help="Pretrained weights: list, verify, convert, pretrain.", no_args_is_help=True, rich_markup_mode=None
)
File = Annotated[Path, typer.Argument(metavar="FILE")]
EntryName = Annotated[str | None, typer.Option("--as", help="Catalogue entry, where the file has another name.")]


@weights_app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the weight files that towers can load: name, tower, source, licence."""
    from shared_backbones.catalogue import list_weights

    entries = [asdict(entry) for entry in list_weights()]
    if as_json:
        print(json.dumps(entries, indent=1))
        return
    for entry in entries:
        print(f"{entry['file']}\n  tower {entry['tower']} ({entry['variant']}), {entry['size'] or 'size not known'}")
        print(
            f"  {entry['source']}\n  licence: {entry['licence']}; sha256: {entry['sha256'] or entry['sha256_prefix'] or 'not published'}"
        )


@weights_app.command()
def verify(file: File, entry: EntryName = None) -> None:
    """Compare a file with the digest that its publisher gave."""
    from shared_backbones.catalogue import entry_of
    from shared_backbones.catalogue import verify as check

    found = check(file, entry_of(entry) if entry else None)
    print(f"{found.path}: {found.status}, {found.bytes} bytes, sha256 {found.sha256}")
    if found.status == "mismatch":
        raise typer.Exit(3)


@weights_app.command()
def convert(
    file: File,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The safetensors file to write, or the run folder.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="With --from: of the run's configuration. Else: of the converter."
        ),
    ] = None,
    entry: EntryName = None,
    origin: Annotated[
        str | None,
        typer.Option("--from", help="avmoe, avqacl_moe: a trained model of its authors' code becomes a run."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="With --from: ave, avvp, avs_s4, avs_ms3, avqa or grounding.")
    ] = None,
    to_native: Annotated[
        bool, typer.Option("--to-native", help="With --from: a form that can be trained on; a different model.")
    ] = False,
) -> None:
    """Convert a checkpoint in its authors' layout, read in a separate process that admits tensors only.

    Weights of a tower become a safetensors file; a language model with experts needs a choice:
    avcl weights convert FOLDER OUT ffn=mean, or ffn=expert:0 to ffn=expert:3. A trained model becomes a run folder that avcl eval takes:
    avcl weights convert --from avmoe FILE OUT --task ave data.root=DATA. Experts and anchors become one with the files of each
    experience, by name, below a folder: avcl weights convert --from avqacl_moe output/AVQA OUT config=CONFIG
    expert.Where=experts/expert_task_2.pt anchor.Where=anchors/anchor_task_2.pt …
    """
    if origin is not None:
        _import(file, out, overrides or [], entry, origin, task, to_native)
        return
    _refuse({"--task": task is not None, "--to-native": to_native}, "without --from")
    from shared_backbones.catalogue import convert as change
    from shared_backbones.catalogue import entry_of

    done = change(file, out, entry_of(entry) if entry else None, _options(overrides or []))
    print(json.dumps(asdict(done), indent=1))


def _import(
    file: Path, out: Path, overrides: list[str], entry: str | None, origin: str, task: str | None, to_native: bool
) -> None:
    from avcl_core.errors import ConfigError, nearest
    from avcl_core.importing import expert_run
    from avcl_core.importing.importer import FROM, import_run
    from avcl_core.importing.published import published_names
    from avcl_core.running.launch import command_line
    from avcl_core.terminal import console

    known = (*FROM, expert_run.FROM)
    if origin not in known:
        raise ConfigError(f"--from {origin}: is unknown{nearest(origin, known)}")
    if origin == expert_run.FROM:
        _refuse(
            {"--task": task is not None, "--to-native": to_native, "--as": entry is not None}, f"with --from {origin}"
        )
        _import_experts(file, out, overrides)
        return
    if task is None:
        raise ConfigError(f"--from {origin} needs --task: one of {', '.join(published_names())}")
    _refuse({"--as": entry is not None}, "with --from")
    with console() as shown:
        done = import_run(file, out, task, overrides, to_native, command_line(), shown.bar)
    print(json.dumps(asdict(done), indent=1))


def _import_experts(folder: Path, out: Path, texts: list[str]) -> None:
    from avcl.cli import find_configuration
    from avcl_core.errors import ConfigError
    from avcl_core.importing.expert_run import import_experts
    from avcl_core.running.launch import command_line
    from avcl_core.terminal import console

    given = _options(texts)
    config = given.pop("config", None)
    if config is None:
        raise ConfigError(
            "weights convert: config=CONFIG is missing; expected a configuration of the model anchor_experts"
        )
    files: dict[str, dict[str, Path]] = {"expert": {}, "anchor": {}}
    overrides = []
    for key, value in given.items():
        kind, _, experience = key.partition(".")
        if kind in files:
            files[kind][experience] = folder / value
        else:
            overrides.append(f"{key}={value}")
    with console() as shown:
        path = find_configuration(config)
        done = import_experts(files["expert"], files["anchor"], out, path, overrides, command_line(), shown.bar)
    print(json.dumps(asdict(done), indent=1))


def _options(texts: list[str]) -> dict[str, str]:
    from avcl_core.errors import ConfigError

    found = {}
    for text in texts:
        name, is_given, value = text.partition("=")
        if not is_given or not name or name in found:
            raise ConfigError(f"weights convert: {text!r}; expected KEY=VALUE, each key once")
        found[name] = value
    return found


def _refuse(given: dict[str, bool], when: str) -> None:
    from avcl_core.errors import ConfigError

    for name, is_given in given.items():
        if is_given:
            raise ConfigError(f"weights convert: {name} has no meaning {when}; leave it out")


@weights_app.command()
def pretrain(
    towers: Annotated[list[str] | None, typer.Argument(metavar="[TOWER]...", help="Default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: the package's own.")] = None,
    scenes: Annotated[int | None, typer.Option(help="Scenes to learn from.", min=1)] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that compose.")] = 2,
) -> None:
    """Rebuild the embedded tiny weights on procedural classes that no task uses."""
    from avcl.pretraining import TOWERS, rebuild, recipe_of
    from avcl_core.errors import ConfigError, nearest

    names = towers or list(TOWERS)
    for name in names:
        if name not in TOWERS:
            raise ConfigError(f"tower {name!r} has no tiny weights{nearest(name, TOWERS)}")
    given = {key: value for key, value in {"scenes": scenes, "epochs": epochs}.items() if value is not None}
    rebuild({name: recipe_of(name, **given) for name in names}, workers, out)
