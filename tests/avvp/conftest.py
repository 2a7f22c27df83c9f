"""A tiny generated LLP, composed and prepared once for all tests; and a model that compares features with texts."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from avcl_avvp import plugin
from avcl_core.data.prepare import prepare
from avcl_core.data.prepared import Prepared
from avcl_core.features import Features, FeatureSpec
from avcl_core.models.base import Model
from avcl_core.ownership import own
from avcl_core.world.procedural import ProceduralBank
from avcl_core.world.writer import WorldSize


@pytest.fixture(scope="session")
def avvp_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "avvp"
    plugin.compose(ProceduralBank("task", 10), WorldSize(train=6, val=4, test=4, size=32, fps=2), 3, root, 1)
    return root


@pytest.fixture(scope="session")
def avvp_prepared(avvp_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(plugin.layout(avvp_root), tmp_path_factory.mktemp("prepared") / "avvp", frame_size=32, workers=1)


class Comparing(Model):
    """Plain towers whose mean tokens are compared with a learnt vector per text: what a model with a text side gives a task."""

    def __init__(self, towers, tasks, options) -> None:
        super().__init__(towers, tasks, options)
        (task,) = tasks.values()
        widths = {name: shape.width for name, shape in self.spec().final.items()}
        made = {name: nn.Linear(width, len(task.texts)) for name, width in widths.items()}
        self.texts = own(nn.ModuleDict(made), "shared")

    def spec(self) -> FeatureSpec:
        return replace(super().spec(), similarity=("visual", "audio"))

    def features(self, batch, ctx) -> Features:
        found = super().features(batch, ctx)
        return replace(found, similarity={n: self.texts[n](value.mean(2)) for n, value in found.final.items()})


@pytest.fixture
def comparing() -> type[Model]:
    return Comparing
