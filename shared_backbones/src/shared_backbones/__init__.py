"""Pretrained encoders as ordered lists of sublayers, with their weight catalogue; importing it imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from shared_backbones.errors import TowerError, WeightsError
from shared_backbones.registry import create, names, register

if TYPE_CHECKING:
    from shared_backbones.tower import Sub, Tower, TowerInfo
    from shared_backbones.weights import save_embedded

_LAZY = {"Sub": "tower", "Tower": "tower", "TowerInfo": "tower", "save_embedded": "weights"}

__all__ = ["Sub", "Tower", "TowerError", "TowerInfo", "WeightsError", "create", "names", "register", "save_embedded"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"shared_backbones.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'shared_backbones' has no attribute {name!r}")
