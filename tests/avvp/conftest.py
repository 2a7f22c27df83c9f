"""A tiny generated LLP, composed and prepared once for all tests."""

from pathlib import Path

import pytest

from avcl_avvp import plugin
from avcl_core.data.prepare import prepare
from avcl_core.data.prepared import Prepared
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
