"""Every configuration that ships is valid, down to the options of its plug-ins; data and weight files need not be there."""

from pathlib import Path

import pytest

from avcl_core.config.load import read
from avcl_core.config.run import load_run

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(
    path
    for path in (*ROOT.glob("packages/*/configs/*.yaml"), *ROOT.glob("configs/*/*.yaml"))
    if path.parent.name != "sweeps"  # plans are no runs; tests/avcl/test_sweep_plans.py has them
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_shipped_configuration(path):
    folders = ["data.world.images=MNIST", "data.world.sounds=FSDD"] if "digits" in path.stem else []
    options, parts = load_run(read(path, folders))
    assert set(parts.tasks) == set(options.stream.tasks)
