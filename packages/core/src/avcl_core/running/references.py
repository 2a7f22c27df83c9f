"""The runs that a run is judged by: ordinary run folders beside it, named in its ``run.json`` and made from it alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from avcl_core.config.load import read
from avcl_core.config.run import load_run
from avcl_core.running.folder import RunFolder
from avcl_core.training.checkpoint import replace_text


def places(names: Sequence[str], run: str) -> dict[str, str]:
    """Return method → folder of the reference of the run called ``run``, relative to that run's own folder.

    They follow from the run's name, so whoever is killed while they are made finds them again.
    """
    return {name: f"../../{name}/{run}" for name in names}


def references_of(run: Path) -> dict[str, Path]:
    """Return method → run folder of the references that a run has, made or not.

    Raises:
        IntegrityError: ``run`` is no run folder.
    """
    given = RunFolder.open(run).read_json("run.json").get("references", {})
    return {name: Path(os.path.normpath(run / place)) for name, place in given.items()}


def name_references(run: Path, names: Sequence[str]) -> None:
    """Record that a run has these references too.

    Raises:
        ConfigError: a name is no reference, or the run's own method.
    """
    given = list(references_of(run))
    wanted = [*given, *(name for name in names if name not in given)]
    load_run(read(run / "config.yaml", [f"references={json.dumps(wanted)}"]))
    folder = RunFolder(run)
    folder.write_json("run.json", {**folder.read_json("run.json"), "references": places(wanted, run.resolve().name)})


def make_references(run: Path) -> dict[str, Path]:
    """Make what is missing of a run's references, ready to be resumed, and return method → run folder.

    A reference has the run's configuration with another method, and its data, weights and stream.
    """
    found = references_of(run)
    record = RunFolder.open(run).read_json("run.json")
    for name, path in found.items():
        if (path / "run.json").is_file():
            continue
        path.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        config |= {"method": {"name": name}, "references": []}
        replace_text(path / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        options, _ = load_run(read(path / "config.yaml"))
        shutil.copyfile(run / "stream.json", path / "stream.json")
        own = {key: value for key, value in record.items() if key != "references"}
        digests = {**record["digests"], "configuration": options.digest}
        # run.json comes last, so a folder that has it is complete.
        RunFolder(path).write_json("run.json", {**own, "status": "stopped", "method": name, "digests": digests})
    return found
