"""The JSON configuration of PHP's authors as a configuration of ours: every key that acts is carried over, every other is named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from avcl.php_json.acting import ACTING
from avcl.php_json.file import File, Line, read_json
from avcl.php_json.keys import IGNORED, NO_MEMORY, TASKS, UNUSED_PREFIX
from avcl_core.config.load import Source, merge, read
from avcl_core.config.presets import find_config
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError, nearest


@dataclass(frozen=True)
class Imported:
    """An imported configuration.

    Attributes:
        source: the complete configuration; an error in it is reported at the file and its key.
        lines: what became of every key, in the order of the file.
        hints: what the file asks for that is no configuration of one run.
    """

    path: Path
    source: Source
    lines: tuple[Line, ...]
    hints: tuple[str, ...]

    def yaml(self) -> str:
        """Return the configuration as a file of ours, which tells where it comes from and what was ignored."""
        tree = dict(self.source.tree)
        head = [f"# From {json.dumps(self.path.name)}, a configuration of PHP's authors."]
        head += [f"#   {line}" for line in self.lines if not line.acts]
        if "label" in tree:  # in quotes, so that it stays a text whatever it looks like
            head.append(f"label: {json.dumps(tree.pop('label'))}")
        return "\n".join(head) + "\n" + yaml.safe_dump(tree, sort_keys=False, width=120, default_flow_style=None)


BASES = {"clean": "php", "paper": "php_paper"}
"""Protocol → the shipped configuration that says what the authors' code fixes: optimiser, schedule, sizes without a key."""


def base_of(protocol: str) -> Path:
    """Return the configuration that a file is laid over under a protocol; ConfigError for an unknown one."""
    if protocol not in BASES:
        raise ConfigError(f"--protocol {protocol}: expected {' or '.join(BASES)}{nearest(protocol, [*BASES])}")
    return find_config(BASES[protocol], "avcl")


def import_config(path: Path, base: Path) -> Imported:
    """Read a configuration of PHP's authors (php.md, appendix A).

    Args:
        path: their JSON file.
        base: the configuration of ours that it is laid over.

    Raises:
        ConfigError: the file cannot be read, a key is in no table, or a value is not possible; with file and key.
    """
    file = File(path, read_json(path))
    known = [*ACTING, *IGNORED]
    for key in file.values:
        if key not in known and not (key.startswith(UNUSED_PREFIX) and key.isidentifier()):
            raise ConfigError(f"{path}: {key}: unknown key{nearest(key, known)}")
    if "task_order" not in file.values:
        raise ConfigError(f"{path}: task_order: is required and was not given; list tasks, as in {[*TASKS]}")
    tree = read(base).tree
    file.floor = tree["training"]["lr_min"]
    for key, act in ACTING.items():
        if key in file.values:
            act(file, key)
    lines = [file.lines.get(key) or _ignored(file, key) for key in file.values]
    places = {part: f"{path}: {key}" for part, key in file.places.items()}
    source = Source(merge(tree, file.tree), places, str(path))
    load_run(source)
    return Imported(path, source, tuple(lines), tuple(file.hints))


def _ignored(file: File, key: str) -> Line:
    return Line(key, file.shown(key), IGNORED.get(key, NO_MEMORY), acts=False)
