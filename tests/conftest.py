"""Shared test set-up: the folder of real data where there is one, and one thread so that results do not depend on the machine."""

import os
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

FIRST = ("e2e", "contract", "core")
"""The folders with the longest files: begun last, one of them would be waited for by a single worker."""

# Tests start some hundred Python processes; where they may not keep compiled modules, each compiles all of its imports anew (8 s).
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest folders first."""
    places = {Path(__file__).with_name(name): place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent, len(FIRST)))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real annotation files, or skip: AVCL_REAL_DATA, else shared/data beside the checkout."""
    folder = Path(os.environ.get("AVCL_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set AVCL_REAL_DATA")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_server_left() -> Iterator[None]:
    """Stop the server that children are forked from: a process that a later test forks could not use this one's."""
    yield
    forkserver._forkserver._stop()
