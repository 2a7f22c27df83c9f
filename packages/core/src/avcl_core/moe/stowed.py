"""Modules that rest on disk: a file holds their parameters until somebody computes with them."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn


class Stowed:
    """Moves parameters between files of a temporary folder and a device, at most the asked ones on the device at a time.

    A resting parameter is mapped from its file by the operating system: it can be read, written and stored as any other, and takes no
    memory that something else needs. The folder is deleted with this object.

    Args:
        folder: where the temporary folder is made; it exists or is made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="experts-", dir=folder)
        self._resting: dict[int, Tensor] = {}  # id of a parameter → its values in the file
        self._out: list[nn.Module] = []

    def rests(self, parameter: Tensor) -> bool:
        """Whether a parameter has a file and is not in use."""
        known = self._resting.get(id(parameter))
        return known is not None and known.data_ptr() == parameter.data_ptr()

    def put(self, module: nn.Module) -> None:
        """Let a module rest; values that changed since it was taken out are written."""
        for parameter in module.parameters():
            if self.rests(parameter):
                continue
            if id(parameter) not in self._resting:
                name = str(Path(self._folder.name) / str(len(self._resting)))
                mapped = torch.from_file(name, shared=True, size=parameter.numel(), dtype=parameter.dtype)
                self._resting[id(parameter)] = mapped.view(parameter.shape)
            held = self._resting[id(parameter)]
            held.copy_(parameter.data)
            parameter.data = held

    def use(self, modules: Collection[nn.Module], device: torch.device) -> None:
        """Take resting modules out, onto a device, and put back those that were taken out before and are not among them."""
        for module in self._out:
            if not any(module is one for one in modules):
                self.put(module)
        taken = [module for module in modules if any(self.rests(p) for p in module.parameters())]
        for module in taken:
            for parameter in module.parameters():
                parameter.data = parameter.data.to(device, copy=True)
        self._out = [one for one in (*self._out, *taken) if any(one is module for module in modules)]
