"""Every registered task, model and method keeps the contract; also those that this checkout declares and did not install."""

import importlib
import tomllib
from pathlib import Path

import pytest

from avcl_core import plugins
from avcl_core.config.run import DataOptions, WorldOptions
from avcl_core.running.provide import provide
from avcl_core.testing import ToyRun, check_method, check_model, check_task, toy_task, toy_towers
from avcl_core.testing.toy_tasks import TOY_TASKS
from shared_backbones import create

SMALL = {"avs": {"width": 32, "mask_size": 64}}
"""Options of tasks whose published heads would take long; the contract is the same."""
NARROW = {"avmoe": {"reduction": 2, "latents": 4}}
"""Options of models whose defaults do not fit the toy towers' widths."""
ROOT = Path(__file__).resolve().parents[2]


def registered(kind):
    """Return name → loader of the plug-ins of a kind, of the environment and of this checkout."""
    found = {}
    for project in sorted(ROOT.glob("packages/*/pyproject.toml")):
        points = tomllib.loads(project.read_text())["project"].get("entry-points", {}).get(plugins.GROUPS[kind], {})
        found |= points
    return sorted({*found, *plugins.names(kind)}), found


def load(kind, name):
    declared = registered(kind)[1]
    if name not in declared:
        return plugins.load(kind, name)
    module, _, attribute = declared[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("kind", TOY_TASKS)
def test_toy_tasks(kind):
    check_task(toy_task(kind, 2), toy_towers())


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return tmp_path_factory.mktemp("worlds")


@pytest.mark.parametrize("name", registered("task")[0])
def test_tasks(name, worlds):
    package = load("task", name)
    visual = create("swin_v2", size="tiny")  # four stage maps, as dense heads want
    data = provide(package, DataOptions(root=worlds, world=WorldOptions(scale=0.03)), visual.info.image_size, workers=1)
    task = package.build(package.options(**SMALL.get(name, {})), data, "clean")
    towers = {"visual": visual, **{n: t for n, t in toy_towers().items() if n == "audio"}}
    check_task(task, {name: tower for name, tower in towers.items() if name in task.modalities})


@pytest.mark.parametrize("name", registered("model")[0])
def test_models(name):
    model = load("model", name)
    options = model.Config(**NARROW.get(name, {}))
    check_model(model, toy_towers, {kind: toy_task(kind) for kind in TOY_TASKS}, options)


@pytest.mark.parametrize("name", registered("method")[0])
def test_methods(name, folder):
    tasks = {kind: toy_task(kind) for kind in ("labels", "tokens")}
    check_method(ToyRun(toy_towers, load("model", "residual_adapters"), load("method", name), tasks), folder, stops=2)
