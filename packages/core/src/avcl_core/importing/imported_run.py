"""Writes the run folder of something imported, which evaluates like any other run and is whole or not there at all."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from avcl_core.evaluation.matrix import ResultMatrix
from avcl_core.methods.base import Method
from avcl_core.ownership import Owners
from avcl_core.running.assemble import Assembly
from avcl_core.running.code import code_digest
from avcl_core.running.folder import RunFolder
from avcl_core.training.checkpoint import Checkpoint, replace_text
from avcl_core.training.position import Position

STATUS = "imported"


@contextmanager
def fresh(out: Path) -> Iterator[None]:
    """Make the folder; leave nothing of it where the block fails."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def write_imported(
    out: Path,
    assembly: Assembly,
    method: Method,
    position: Position,
    imported: Mapping[str, Any],
    source: Mapping[str, Any],
    notes: Sequence[str],
    command: Sequence[str],
    marks: Mapping[str, str] | None = None,
) -> None:
    """Write the run folder; ``run.json`` comes last, so that a folder that has it is complete.

    Args:
        position: where the run stands: ``before`` everything, so that it can be trained on, or ``done``.
        imported: what the import did, for ``run.json``.
        source: what was read, for the event log.
        notes: what reports say.
        marks: task → what chose its checkpoint by test scores.
    """
    options, folder = assembly.options, RunFolder(out)
    owners = Owners(method.model)
    folder.write_json("stream.json", assembly.stream.to_json())
    replace_text(out / "config.yaml", yaml.safe_dump(json.loads(options.model_dump_json()), sort_keys=False))
    folder.ownership(owners.report())
    state = {
        "position": asdict(position),
        "grown": sorted(experience.name for experience in assembly.sessions[0].experiences),
        "matrix": ResultMatrix([test.name for test in assembly.stream.tests]).to_json(),
        "best": {"skill": None, "epoch": -1},
        "offsets": folder.offsets(),
        "digests": dict(assembly.digests),
    }
    held = {row.name: row.owner for row in owners.rows.values()}
    folder.store.commit(Checkpoint(owners.state(), held, method.state(), {}, {}, state), STATUS)
    folder.event(STATUS, **source)
    record = {
        "format": 1,
        "status": STATUS,
        "method": options.method["name"],
        "model": options.model["name"],
        "seed": options.seed,
        "command": list(command),
        "cwd": str(Path.cwd()),
        "notes": list(notes),
        "skipped": list(assembly.skipped),
        "digests": dict(assembly.digests),
        "init": {},
        "test_selected": dict(marks or {}),
        "imported": dict(imported),
        "libraries": {
            name: version(name) for name in ("avcl-core", "torch", "timm", "transformers", "lightning-fabric")
        },
        "code": code_digest(),
        "python": platform.python_version(),
    }
    folder.write_json("run.json", record)
