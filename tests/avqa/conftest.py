"""A tiny generated MUSIC-AVQA, composed and prepared once for all tests."""

from pathlib import Path

import pytest

from avcl_avqa import plugin
from avcl_core.data.prepare import prepare
from avcl_core.data.prepared import Prepared
from avcl_core.world.procedural import ProceduralBank
from avcl_core.world.writer import WorldSize

SIZE = WorldSize(train=12, val=2, test=2, size=32, fps=2)


@pytest.fixture(scope="session")
def avqa_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "avqa"
    plugin.compose(ProceduralBank("task", 12), SIZE, 3, root, 1)
    return root


@pytest.fixture(scope="session")
def avqa_prepared(avqa_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(plugin.layout(avqa_root), tmp_path_factory.mktemp("prepared") / "avqa", frame_size=64, workers=1)
