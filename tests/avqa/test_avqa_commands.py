"""Every shipped configuration is valid with the files that its comment asks for, and the command has its grounding stage."""

import importlib
import tomllib
from pathlib import Path

import pytest
import typer

from avcl_avqa import cli
from avcl_core.config.load import read
from avcl_core.config.run import load_run
from avcl_core.plugins import TaskPackage

PACKAGE = Path(__file__).resolve().parents[2] / "packages" / "avqa"
NEEDS = {
    "digits": ["data.world.images=I", "data.world.sounds=S"],
    "music_avqa": ["towers.visual.checkpoint=V", "towers.audio.checkpoint=A"],
}


def test_entry_points_name_the_two_packages():
    points = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]["avcl.tasks"]
    for name, target in points.items():
        module, _, attribute = target.partition(":")
        for part in ("grounding", "ground", "task"):  # submodules must not take the attribute's place
            importlib.import_module(f"{module}.{part}")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, TaskPackage)
        assert found.name == name


@pytest.mark.parametrize("path", sorted((PACKAGE / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations(path):
    overrides = next((given for name, given in NEEDS.items() if name in path.stem), [])
    options, parts = load_run(read(path, overrides))
    kind = next((kind for kind in ("ground", "open", "closed") if path.stem.startswith(kind)), None)
    assert options.stream.tasks == ("avqa" if kind is None else f"avqa_{kind}",)
    assert list(parts.tasks) == list(options.stream.tasks)
    if kind == "ground":
        assert options.model["name"] == "frozen"


def test_further_tasks_have_commands_of_their_own():
    app = typer.Typer()
    cli._extend(app)
    names = [command.name for command in app.registered_commands]
    assert names == ["ground", "train-all", "test-all", "train-closed", "test-closed", "experts"]


@pytest.mark.parametrize(
    ("script", "command"), [("train_all_tasks", "train-all"), ("eval_all_tasks", "test-all answers=true")]
)
def test_scripts_of_all_tasks_pass_everything_on(script, command):
    path = PACKAGE / f"{script}.sh"
    text = path.read_text()
    assert f'--package avcl-avqa avqa {command} "$@"' in text
    assert f"logs/{script}.log" in text
    assert path.stat().st_mode & 0o111


@pytest.mark.parametrize(("script", "command"), [("train", "train"), ("test", "test"), ("grounding", "ground")])
def test_scripts_hold_no_numbers(script, command):
    lines = (PACKAGE / f"{script}.sh").read_text().splitlines()
    assert len(lines) == 3
    assert lines[1] == "set -euo pipefail"
    assert lines[2].endswith(f'--package avcl-avqa avqa {command} "$@"')
    assert (PACKAGE / f"{script}.sh").stat().st_mode & 0o111
