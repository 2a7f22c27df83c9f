"""Every registered task, model and method keeps the contract; also those that this checkout declares and did not install."""

import importlib
import tomllib
from pathlib import Path

import pytest

from avcl_core import plugins
from avcl_core.config.run import DataOptions, WorldOptions
from avcl_core.models.aligned import Aligned
from avcl_core.running.provide import provide
from avcl_core.testing import ToyRun, check_method, check_model, check_task, toy_task, toy_towers
from avcl_core.testing.toy_talks import ToyTalks
from avcl_core.testing.toy_tasks import TOY_TASKS
from avcl_core.testing.toy_texts import ToyTexts
from avcl_core.testing.toy_towers import aligned_towers, talking_towers
from avcl_core.training.session_data import SessionData
from shared_backbones import create

SMALL = {"avs": {"width": 32, "mask_size": 64}, "avqa_closed": {"width": 16, "experiences": "types"}}
"""Options of tasks whose published heads would take long; the contract is the same."""
NARROW = {
    "anchor_experts": {"longest": 6},
    "avmoe": {"reduction": 2, "latents": 4},
    "closed_experts": {"expert": {"rank": 2}},
    "coda_prompt": {"components": 12, "blocks": (0, 1), "modalities": ("visual", "audio")},
    "cross_modal": {"adapter": {"reduction": 4, "latents": 4}},
    "dualprompt": {"general_blocks": (0,), "expert_blocks": (1, 2), "modalities": ("visual", "audio")},
    "l2p": {"modalities": ("visual", "audio")},
    "php": {
        "shallow": {"blocks": (0,), "latents": 4, "reduction": 4},
        "mid": {"blocks": (1,), "dictionary": 16, "rows": 8, "depth": 1},
        "deep": {"blocks": (2, 3), "length": 2, "pool_size": 2},
    },
    "s_prompts": {"modalities": ("visual", "audio")},
}
"""Options of models whose defaults do not fit the toy towers' widths and depths."""
ROUTED = {"php": {"router": "centres"}}
"""Options with which a model can do without the task."""
OF_A_TASK = {"avqacl"}
"""Methods made for one task: its package's tests check them on it (tests/avqa/test_avqacl_method.py)."""
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
    towers = {**talking_towers(), "visual": visual, "audio": toy_towers()["audio"]}
    check_task(task, {name: tower for name, tower in towers.items() if name in task.modalities})


@pytest.mark.parametrize("name", registered("model")[0])
def test_models(name):
    model = load("model", name)
    options = model.Config(**NARROW.get(name, {}))
    towers, tasks = surroundings(model)
    check_model(model, towers, tasks, options)


def surroundings(model):
    """Return towers and tasks that a model can work with."""
    if "language" in model.requires.towers:
        return talking_towers, {"talks": ToyTalks("talks", 2)}
    tasks = {kind: toy_task(kind) for kind in TOY_TASKS}
    return (
        (aligned_towers, {**tasks, "texts": ToyTexts("texts")}) if issubclass(model, Aligned) else (toy_towers, tasks)
    )


@pytest.mark.parametrize(
    "name", ["anchor_experts", "avmoe", "closed_experts", "coda_prompt", "dualprompt", "l2p", "php", "s_prompts"]
)
def test_models_where_the_task_is_hidden(name):
    model = load("model", name)
    options = model.Config(**NARROW[name], **ROUTED.get(name, {}))
    assert "hidden" in model.needs(options).task_id
    towers, tasks = surroundings(model)

    def calibrate(method, stream, loader):
        for experience in stream.experiences:
            method.model.calibrate(experience, SessionData(loader, experience, 4, lambda: None), hidden=True)

    check_model(model, towers, tasks, options, "hidden", calibrate)


@pytest.mark.parametrize("name", sorted({*registered("method")[0]} - OF_A_TASK))
def test_methods(name, folder):
    tasks = {kind: toy_task(kind) for kind in ("labels", "tokens")}
    check_method(ToyRun(toy_towers, load("model", "residual_adapters"), load("method", name), tasks), folder, stops=2)
