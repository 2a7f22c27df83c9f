"""Shared test set-up: the folder of real data where there is one, and one thread so that results do not depend on the machine."""

import os
from pathlib import Path

import pytest
import torch


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
