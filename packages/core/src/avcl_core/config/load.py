"""Reads a configuration: YAML with one level of ``extends`` and dotted overrides, with every error at its file and line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from avcl_core.errors import ConfigError, nearest

M = TypeVar("M", bound=BaseModel)
Path_ = tuple[str, ...]


COMPONENTS = ("model", "method")
"""Top-level keys that name a plug-in and hold its options."""
COMPONENT_NAMES = tuple(f"{component}.name" for component in COMPONENTS)


class Source:
    """A configuration tree, and where each of its keys was written.

    Attributes:
        tree: nested dictionaries and lists.
        places: dotted path → ``file:line`` or the override that set it.
        name: what error messages call the whole.
    """

    def __init__(self, tree: dict[str, Any], places: dict[Path_, str], name: str) -> None:
        self.tree, self.places, self.name = tree, places, name

    def place(self, path: Sequence[str]) -> str:
        """Return where the key at ``path`` (or the nearest key above it) was written."""
        parts = tuple(str(part) for part in path)
        while parts:
            if parts in self.places:
                return self.places[parts]
            parts = parts[:-1]
        return self.name


def read(path: Path | None, overrides: Sequence[str] = (), name: str = "configuration") -> Source:
    """Read a YAML file with its ``extends`` and apply ``key=value`` overrides.

    Args:
        path: the file, or ``None`` for an empty configuration.
        overrides: dotted keys with YAML values, for example ``training.lr=3e-4``.

    Raises:
        ConfigError: a file is missing or not YAML, ``extends`` is nested, or an override has another form.
    """
    source = Source({}, {}, name)
    if path is not None:
        source = _file(path)
        base = source.tree.pop("extends", None)
        if base is not None:
            below = _file((path.parent / str(base)).resolve())
            if "extends" in below.tree:
                raise ConfigError(f"{below.place(('extends',))}: extends within an extended file; one level is allowed")
            source = Source(lay_over(below.tree, source.tree), {**below.places, **source.places}, source.name)
    # Another component takes none of the options below it, so names come first, wherever they stand on the command line.
    for text in sorted(overrides, key=lambda text: text.partition("=")[0] not in COMPONENT_NAMES):
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"override {text!r}: expected key=value, with dots between levels")
        branch: Any = _parse(value, f"override {text!r}")
        for part in reversed(key.split(".")):
            branch = {part: branch}
        source.tree = lay_over(source.tree, branch)
        source.places[tuple(key.split("."))] = f"override {text!r}"
    return source


def lay_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one configuration over another; a component (model, method) of another name replaces the one below whole."""
    kept = dict(below)
    for component in COMPONENTS:
        old, new = below.get(component), above.get(component)
        if (
            isinstance(old, Mapping)
            and isinstance(new, Mapping)
            and new.get("name", old.get("name")) != old.get("name")
        ):
            del kept[component]
    return merge(kept, above)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``above`` over ``below``: mappings merge, everything else is replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def validate(model: type[M], source: Source, tree: Any = None, at: Sequence[str] = ()) -> M:
    """Validate a tree (by default the whole source) against a pydantic model.

    Args:
        tree: the part to validate, with ``at`` its path in the source.

    Raises:
        ConfigError: the first error, with its place, the field, what was found and the nearest known key.
    """
    try:
        return model.model_validate(source.tree if tree is None else tree)
    except ValidationError as error:
        raise ConfigError(_explain(model, source, error, tuple(at))) from error


def _explain(model: type[BaseModel], source: Source, error: ValidationError, at: Path_) -> str:
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    path = at + tuple(str(part) for part in first["loc"])
    where = f"{source.place(path)}: {'.'.join(path)}"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key{nearest(path[-1], _known(model, first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"{where}: is required and was not given"
    return f"{where}: found {first['input']!r}; {first['msg'].removeprefix('Value error, ')}"


def _known(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """Field names at a path inside a model."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        inner = [a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(a, type)]
        model = next((a for a in inner if issubclass(a, BaseModel)), model)
    return list(model.model_fields)


def _file(path: Path) -> Source:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; name an existing configuration file") from error
    tree = _parse(text, str(path)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: found a {type(tree).__name__}, expected keys and values")
    places: dict[Path_, str] = {}
    _mark(yaml.compose(text, yaml.SafeLoader), (), path, places)
    return Source(tree, places, str(path))


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 3e-4 is a number, as every user expects."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from error


def _mark(node: yaml.Node | None, path: Path_, file: Path, places: dict[Path_, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            here = (*path, str(key.value))
            if str(key.value) in seen:
                raise ConfigError(f"{file}:{key.start_mark.line + 1}: {'.'.join(here)}: key given twice; remove one")
            seen.add(str(key.value))
            places[here] = f"{file}:{key.start_mark.line + 1}"
            _mark(value, here, file, places)
