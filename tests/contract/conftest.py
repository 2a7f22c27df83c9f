"""Makes the toy users importable as ``toys``, and gives each test a folder in memory where the machine has one."""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def folder():
    """An empty folder; in memory if possible, because runs commit at every step and a commit waits for the disk."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield made
    shutil.rmtree(made)
