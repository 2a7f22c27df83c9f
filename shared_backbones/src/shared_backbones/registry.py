"""Towers by name: a decorator on a factory function, and `create`, which imports only the file it needs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shared_backbones.errors import TowerError, nearest

if TYPE_CHECKING:
    from shared_backbones.tower import Tower

Factory = TypeVar("Factory", bound=Callable[..., Any])
_factories: dict[str, Callable[..., Tower]] = {}
SIZES = ("full", "tiny")
COMMON = ("seed", "pretrained", "trainable")


def register(name: str) -> Callable[[Factory], Factory]:
    """Register ``factory(size, **overrides) -> Tower`` under a name; it builds the tower with random weights."""

    def enter(factory: Factory) -> Factory:
        _factories[name] = factory
        return factory

    return enter


def names() -> list[str]:
    """Names of all towers, from the files of ``towers/`` and from what others have registered; imports no torch."""
    files = pkgutil.iter_modules([str(Path(__file__).parent / "towers")])
    return sorted({module.name for module in files} | set(_factories))


def factory_of(name: str) -> Callable[..., Tower]:
    """The factory registered under a name, its file imported now. TowerError for an unknown name."""
    if name not in names():
        raise TowerError(f"tower: unknown name {name!r}{nearest(name, names())}")
    if name not in _factories:
        importlib.import_module(f"shared_backbones.towers.{name}")
    return _factories[name]


def overrides_of(name: str) -> list[str]:
    """The overrides that a tower takes beside those common to all. TowerError for an unknown name."""
    return [parameter for parameter in inspect.signature(factory_of(name)).parameters if parameter != "size"]


def build(name: str, size: str, overrides: dict[str, Any], seed: int = 0, device: str = "cpu") -> Tower:
    """A frozen tower with weights drawn from ``seed``; on the meta device with shapes only. TowerError on bad overrides."""
    import torch

    factory = factory_of(name)
    if size not in SIZES:
        raise TowerError(f"tower {name}: size {size!r}{nearest(size, SIZES)}")
    known = overrides_of(name)
    for key in overrides:
        if key not in known:
            raise TowerError(
                f"tower {name}: unknown override {key!r}{nearest(key, [*known, *COMMON, 'checkpoint', 'size'])}"
            )
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return factory(size, **overrides)


def create(name: str, *, size: str = "full", checkpoint: str | Path | None = None, **overrides: Any) -> Tower:
    """Build a tower (`names()` lists them), frozen, in eval mode, float32, on the CPU.

    ``size``: full, or tiny (the same class in a small configuration). ``checkpoint``: a converted safetensors file, or one in
    the authors' layout, which is converted first in a separate process (`convert`). Without one, full has random weights
    and tiny the embedded pretrained ones. Overrides common to all: ``seed=0`` (of random weights), ``pretrained=False``
    (random weights although embedded ones exist), ``trainable=True`` (not frozen); of some: ``variant=`` (a published size, for
    full), ``tokenizer=`` (a local vocabulary, for the text side).

    Raises TowerError (unknown name, size, variant or override) and WeightsError (weights absent, malformed or of
    another tower).
    """
    from shared_backbones import weights

    seed = overrides.pop("seed", 0)
    trainable = overrides.pop("trainable", False)
    pretrained = overrides.pop("pretrained", None)
    if pretrained is not None and checkpoint is not None:
        raise TowerError(f"tower {name}: give either checkpoint= or pretrained=, not both")
    if pretrained and size == "full":
        raise TowerError(f"tower {name}: full-size weights do not ship with the package; pass checkpoint=<file>")
    file = None
    if checkpoint is not None:
        # Shapes alone first: a file that does not fit is refused before random weights are drawn for nothing.
        file = weights.fitting_file(build(name, size, overrides, device="meta").info, Path(checkpoint))
    tower = build(name, size, overrides, seed)
    if file is not None:
        weights.load_file_into(tower, file)
    elif size == "tiny" and pretrained is not False:
        weights.load_embedded(tower)
    return tower.set_trainable(trainable)
