"""Finds the prepared data of a task, or composes and prepares the generated world that the configuration asks for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from avcl_core.config.run import DataOptions, WorldOptions
from avcl_core.data.atomic import digest_of
from avcl_core.data.pool import one_pool
from avcl_core.data.prepare import prepare
from avcl_core.data.prepared import MANIFEST, Prepared
from avcl_core.errors import ConfigError, DataError
from avcl_core.plugins import TaskPackage
from avcl_core.training.checkpoint import replace_text
from avcl_core.world.bank import SourceBank
from avcl_core.world.composer import DIFFICULTY
from avcl_core.world.writer import WorldSize

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]
"""``title -> context manager`` of a progress callback ``(done, total)``."""
WORKERS = 2
"""Processes that compose and prepare clips."""


def silent(title: str) -> AbstractContextManager[None]:
    """Show no progress."""
    return nullcontext()


def make_bank(options: WorldOptions) -> SourceBank:
    """Return the source bank that a world is composed from."""
    if options.bank == "procedural":
        from avcl_core.world.procedural import procedural

        return procedural(family="task")
    if options.bank == "folder" and options.folder is not None:
        from avcl_core.world.folder import folder

        return folder(options.folder, options.seed)
    if options.images is None or options.sounds is None:
        raise ConfigError(f"data.world: bank {options.bank} needs images and sounds")
    from avcl_core.world.digits import digits

    return digits(options.images, options.sounds)


def scaled(size: WorldSize, scale: float) -> WorldSize:
    """Return the world size with clip counts scaled and rounded up."""
    return replace(size, **{split: math.ceil(count * scale) for split, count in size.items()})


def prepared_folder(root: Path, dataset: str, frame_size: int) -> Path:
    """Return where the prepared form of a data set lives below a data root."""
    return root / "prepared" / f"{dataset}-{frame_size}"


def provide(
    package: TaskPackage, data: DataOptions, frame_size: int, workers: int = WORKERS, bar: Bar = silent
) -> Prepared:
    """Return the prepared data of a task, making the generated world first where it is missing.

    Args:
        frame_size: edge of the prepared frames in pixels, the visual tower's.

    Raises:
        DataError: there is no prepared data and no world to compose, or the root holds another world.
    """
    target = prepared_folder(data.root, package.dataset, frame_size)
    if data.world is None:
        if not (target / MANIFEST).is_file():
            raise DataError(
                f"{target}: no prepared data of {package.dataset}; make it with: avcl data prepare {package.dataset} SOURCE "
                f"--root {data.root} --size {frame_size}"
            )
        return Prepared(target)
    _claim(data.root, data.world)
    if (target / MANIFEST).is_file():
        return Prepared(target)
    with one_pool(workers):
        source = compose_world(package, data.root, data.world, workers, bar)
        with bar(f"{package.name}: preparing") as progress:
            return prepare(package.layout(source), target, frame_size=frame_size, workers=workers, progress=progress)


def compose_world(
    package: TaskPackage, root: Path, world: WorldOptions, workers: int = WORKERS, bar: Bar = silent
) -> Path:
    """Compose a task's world in its published layout and return its folder; a world that is there is left as it is.

    Raises:
        ConfigError: the root holds another world.
    """
    _claim(root, world)
    out = root / "source" / package.dataset
    with bar(f"{package.name}: composing") as progress:
        package.compose(make_bank(world), scaled(package.world_size, world.scale), world.seed, out, workers, progress)
    return out


def _claim(root: Path, world: WorldOptions) -> None:
    """Record which world a root holds, and refuse another one in the same place."""
    bank = make_bank(world).describe()
    wish: dict[str, Any] = {
        **world.model_dump(mode="json", exclude={"images", "sounds", "folder"}),
        "sources": digest_of(bank),
        "difficulty": DIFFICULTY.version,
    }
    path = root / "world.json"
    if not path.is_file():
        root.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(wish, indent=1) + "\n")
        return
    try:
        have = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}); delete {root} to compose the world again") from error
    for name, value in wish.items():
        if have.get(name) != value:
            raise ConfigError(
                f"data.world.{name}: {value!r}, but {root} holds a world with {have.get(name)!r}; choose another data.root"
            )
