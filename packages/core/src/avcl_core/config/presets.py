"""Finds the configurations that ship with a package, in a checkout and in an installed wheel alike."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from avcl_core.errors import ConfigError, nearest


def preset_folder(package: str) -> Path:
    """Return the ``configs`` folder of an importable package: inside it (wheel), or at the root of its project (checkout).

    Raises:
        ConfigError: the package is not installed, or ships no configurations.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"package {package} is not installed")
    inside = Path(spec.origin).parent
    for folder in (inside / "configs", inside.parents[1] / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"package {package} ships no configurations below {inside}")


def find_config(given: str, package: str, kind: str = "runs") -> Path:
    """Return a configuration file: a path, or the name of one that ships with ``package``.

    Args:
        kind: the folder of ``configs`` that a name without folder means, where several have it.

    Raises:
        ConfigError: there is neither; the message names the nearest shipped one.
    """
    path = Path(given)
    if path.is_file():
        return path
    folder = preset_folder(package)
    shipped = {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.rglob("*.yaml"))}
    last = sorted(shipped, key=lambda name: name.startswith(f"{kind}/"))
    by_stem = {name.rpartition("/")[2]: shipped[name] for name in last}
    for table in (shipped, by_stem):
        if given in table:
            return table[given]
    raise ConfigError(
        f"configuration {given!r}: no such file, and none of that name ships{nearest(given, list(shipped))}"
    )
