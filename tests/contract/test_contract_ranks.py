"""Two processes equal one: for a mean, a token and a coupled loss, each with replay, and for coupled regularisers."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from toys.ranks import CASES, run

from avcl_core.evaluation.usage_file import usage_file


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Run all cases on two ranks of gloo and return the folder of what they saved."""
    folder = tmp_path_factory.mktemp("ranks")
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "toys.ranks", "2", str(folder)]
    subprocess.run(command, env=environment, check=True, timeout=600)
    return folder


@pytest.fixture(scope="module")
def alone(memory):
    """Return what a case learns in one process, and the folder of the run."""
    return cache(lambda case: (run(case, memory / case), memory / case))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, two, alone):
    one, _ = alone(case)
    ranks = [torch.load(two / f"{case}-{rank}.pt", weights_only=False) for rank in range(2)]
    assert ranks[0]["matrix"] == ranks[1]["matrix"]
    assert all(torch.equal(value, ranks[1]["owned"][name]) for name, value in ranks[0]["owned"].items())
    assert ranks[0]["method"].keys() == ranks[1]["method"].keys() == one["method"].keys()
    assert all(torch.equal(value, ranks[1]["method"][name]) for name, value in ranks[0]["method"].items())
    assert ranks[0]["gradients"].keys() == one["gradients"].keys()
    largest = max(float(value.abs().max()) for value in one["gradients"].values())
    apart = {n: float((v - ranks[0]["gradients"][n]).abs().max()) for n, v in one["gradients"].items()}
    assert max(apart.values()) < 2e-4 * largest, max(apart, key=apart.get)


def test_two_processes_tell_the_usage_of_one(two, alone):
    _, place = alone("balance")
    one, both = (json.loads(usage_file(found).read_text()) for found in (place, two / "balance"))
    for row, tests in one.items():
        assert list(both[row]) == list(tests)
        for test, usage in tests.items():
            other = both[row][test]
            assert other["samples"] == usage["samples"] == 4
            assert other["sites"].keys() == usage["sites"].keys()
            for site, told in usage["sites"].items():
                assert other["sites"][site]["rows"] == told["rows"] == 8
                assert other["sites"][site]["gates"] == pytest.approx(told["gates"], abs=1e-4)
            assert {name: g["samples"] for name, g in other["groups"].items()} == {
                name: g["samples"] for name, g in usage["groups"].items()
            }
