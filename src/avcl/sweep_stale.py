"""Which runs of a plan are stale: a newer one that is done was computed from other data or other tower weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avcl.sweep_plan import Planned

CONFIGURATION = "configuration"
"""The one digest of a run that its plan decides; the others say what it found on disk."""


class Current:
    """What data, stream and weights are now, as far as runs tell: those of the newest run that is done.

    Runs are compared within one configuration of a plan, and in each digest only with runs whose options ask for the same: a
    variant with another tower has other weights by right.
    """

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str, str], tuple[str, str]] = {}

    def add(self, run: Planned, began: str, digests: Mapping[str, str]) -> None:
        """Take in a run that is done; ``began``: its folder's name, which sorts by the time it began and read its data."""
        for name, digest in digests.items():
            if name != CONFIGURATION:
                key = _key(run, name)
                self._newest[key] = max(self._newest.get(key, ("", "")), (began, digest))

    def differing(self, run: Planned, began: str, digests: Mapping[str, str]) -> tuple[str, ...]:
        """Return the names of the digests in which a newer run that is done differs."""
        found = []
        for name, digest in digests.items():
            newest, current = self._newest.get(_key(run, name), ("", digest))
            if newest > began and current != digest:
                found.append(name)
        return tuple(sorted(found))


def _key(run: Planned, name: str) -> tuple[str, str, str]:
    """Return configuration, digest, and the options that decide what the digest is of."""
    options = run.options
    asked = [tower for modality, tower in options.towers.items() if name == f"weights of the {modality} tower"]
    if asked:
        text = asked[0].model_dump_json()
    else:  # Frames are prepared at the tower's size.
        towers = {n: t.model_dump(mode="json", exclude={"checkpoint"}) for n, t in options.towers.items()}
        parts = [options.data.model_dump(mode="json"), options.stream.model_dump(mode="json"), options.tasks, towers]
        text = json.dumps(parts, sort_keys=True)
    return run.config, name, text
