"""Makes the toy users importable as ``toys``, and gives tests folders in memory where the machine has one."""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def empty():
    """Make an empty folder, in memory if possible, because runs commit at every step and a commit waits for the disk."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))


@pytest.fixture
def folder():
    """An empty folder of one test."""
    made = empty()
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def memory():
    """An empty folder of all tests of a file."""
    made = empty()
    yield made
    shutil.rmtree(made)
