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
    stage = path.stem.startswith("ground")
    assert options.stream.tasks == (("avqa_ground",) if stage else ("avqa",))
    assert list(parts.tasks) == list(options.stream.tasks)
    if stage:
        assert options.model["name"] == "frozen"


def test_ground_is_a_command():
    app = typer.Typer()
    cli._ground(app)
    (command,) = app.registered_commands
    assert command.name == "ground"


@pytest.mark.parametrize(("script", "command"), [("train", "train"), ("test", "test"), ("grounding", "ground")])
def test_scripts_hold_no_numbers(script, command):
    lines = (PACKAGE / f"{script}.sh").read_text().splitlines()
    assert len(lines) == 3
    assert lines[1] == "set -euo pipefail"
    assert lines[2].endswith(f'--package avcl-avqa avqa {command} "$@"')
    assert (PACKAGE / f"{script}.sh").stat().st_mode & 0o111
