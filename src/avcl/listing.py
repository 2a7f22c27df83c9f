"""What ``avcl list`` shows: plug-ins, towers, shipped streams, recorded runs."""

from __future__ import annotations

import json
from pathlib import Path

from avcl_core.errors import ConfigError, nearest

KINDS = ("tasks", "methods", "models", "towers", "streams", "runs")


def rows(kind: str) -> list[dict[str, str]]:
    """Return the rows of one listing.

    Raises:
        ConfigError: there is no such listing.
    """
    if kind in ("tasks", "methods", "models"):
        from avcl_core.plugins import listing

        return [
            {
                "name": p.name,
                "package": p.distribution,
                "summary": p.summary if p.error is None else f"BROKEN: {p.error}",
            }
            for p in listing(kind[:-1])
        ]
    found = {"towers": _towers, "streams": _streams, "runs": _runs}.get(kind)
    if found is None:
        raise ConfigError(f"list {kind!r}: no such listing{nearest(kind, KINDS)}")
    return found()


def _towers() -> list[dict[str, str]]:
    import shared_backbones
    from shared_backbones.weights import EMBEDDED

    return [
        {"name": name, "tiny weights": "embedded" if (EMBEDDED / f"{name}.safetensors").is_file() else "none"}
        for name in shared_backbones.names()
    ]


def _streams() -> list[dict[str, str]]:
    from avcl_core.config.load import read
    from avcl_core.config.presets import preset_folder

    folder = preset_folder("avcl") / "streams"
    found = []
    for path in sorted(folder.glob("*.yaml")):
        stream = read(path).tree.get("stream", {})
        found.append(
            {
                "name": path.stem,
                "tasks": " → ".join(stream.get("tasks", ())),
                "task id": str(stream.get("task_id", "given")),
            }
        )
    return found


def _runs() -> list[dict[str, str]]:
    found = []
    for path in sorted(Path("runs").glob("*/*/*/run.json")):
        record = json.loads(path.read_text())
        found.append(
            {
                "run": str(path.parent),
                "method": record["method"],
                "seed": str(record["seed"]),
                "status": record["status"],
            }
        )
    return found
