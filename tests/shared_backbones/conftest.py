"""Towers with weights that matter: random values everywhere, so that no branch is silenced by a zero or an identity."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from shared_backbones import Tower
from shared_backbones.registry import build

INPUTS: dict[str, Callable[[int], Tensor]] = {
    "swin_v2": lambda b: torch.randn(b, 3, 64, 64),
    "clip_vit": lambda b: torch.randn(b, 3, 32, 32),
    "resnet18": lambda b: torch.randn(b, 3, 64, 64),
    "resnet50": lambda b: torch.randn(b, 3, 64, 64),
    "pvt_v2": lambda b: torch.randn(b, 3, 64, 64),
    "htsat": lambda b: 0.3 * torch.randn(b, 32000),
    "clap": lambda b: 0.3 * torch.randn(b, 8000),
    "vggish": lambda b: 0.3 * torch.randn(b, 16000),
    "beats": lambda b: 0.3 * torch.randn(b, 16000),
}


def scramble(module: torch.nn.Module, seed: int = 0) -> None:
    """Add noise to every parameter and give batch norms statistics of their own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else tensor + 0.1 * noise)


@pytest.fixture
def tiny() -> Callable[..., Tower]:
    def make(name: str, seed: int = 0, **overrides: Any) -> Tower:
        tower = build(name, "tiny", overrides, seed)
        scramble(tower.net, seed)
        return tower

    return make


@pytest.fixture
def sample() -> Callable[..., Tensor]:
    def make(name: str, batch: int = 2, seed: int = 1) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return INPUTS[name](batch)

    return make


@pytest.fixture
def scrambled() -> Callable[..., None]:
    return scramble


@pytest.fixture(scope="session")
def direct() -> ModuleType:
    """`direct_beats.py`, which lies beside the tests."""
    spec = importlib.util.spec_from_file_location("direct_beats", Path(__file__).with_name("direct_beats.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
