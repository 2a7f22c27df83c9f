"""A tiny generated AVE, composed and prepared once for all tests."""

from pathlib import Path

import pytest

from avcl_ave import plugin
from avcl_core.data.prepare import prepare
from avcl_core.data.prepared import Prepared
from avcl_core.world.procedural import ProceduralBank
from avcl_core.world.writer import WorldSize


@pytest.fixture(scope="session")
def ave_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "ave"
    plugin.compose(ProceduralBank("task", 12), WorldSize(train=10, val=2, test=2, size=32, fps=2), 3, root, 1)
    return root


@pytest.fixture(scope="session")
def ave_prepared(ave_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(plugin.layout(ave_root), tmp_path_factory.mktemp("prepared") / "ave", frame_size=32, workers=1)
