"""Prepared AVSBench as samples by key: five frames, five seconds of sound, masks, and which of them are annotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avcl_avs.annotations import read_annotations
from avcl_avs.data import SECONDS, SETTINGS, SPLITS, Row, Setting
from avcl_avs.masks import unpack
from avcl_core.data.prepared import Prepared
from avcl_core.data.problems import broken
from avcl_core.data.records import refuse_errors
from avcl_core.errors import DataError


class MaskData:
    """One setting of AVSBench under a protocol. A sample is a video; its key is the clip's id, ``<setting>/<video>``.

    Args:
        prepared: a data set that was prepared from AVSBench's layout.
        setting: ``s4`` or ``ms3``.
        protocol: ``clean`` or ``paper``; they differ in what is selected and how M_F is averaged, not in data.

    Raises:
        DataError: the metadata file has an error, the data set lacks the setting, or it is another one.
    """

    def __init__(self, prepared: Prepared, setting: Setting, protocol: str) -> None:
        if prepared.layout != "avs":
            raise broken(prepared.folder, "layout", prepared.layout, "avs", "name the folder of prepared AVSBench data")
        path = _annotation(prepared, setting)
        if path is None:
            there = ", ".join(name for name in SETTINGS if _annotation(prepared, name))
            action = f"prepare a folder that holds {setting} too, or set tasks.avs.setting={there}"
            raise broken(prepared.folder, "setting", f"{there} only", setting, action)
        found = read_annotations({setting: path}, _annotation(prepared, "categories"))
        refuse_errors(found.problems)
        self.prepared, self.setting, self.protocol = prepared, setting, protocol
        self.rows = {row.id: row for row in found.rows[setting]}
        lacking = [split for split in SPLITS if not self.keys(split)]
        if lacking:
            raise broken(
                path, "split", f"no {lacking[0]} video", "videos of every split", "put the published file there"
            )
        judged = "M_F per clip" if protocol == "paper" else "M_F from one curve over the split"
        self.note = f"setting {setting}; {judged}"

    def keys(self, split: str) -> tuple[str, ...]:
        """Return the sample keys of a split in the order of the metadata file."""
        return tuple(key for key, row in self.rows.items() if row.split == split)

    def split(self, split: str) -> MaskClips:
        """Return the samples of a split."""
        return MaskClips(self.prepared, {key: self.rows[key] for key in self.keys(split)})


@dataclass
class MaskClips:
    """The samples of one split."""

    prepared: Prepared
    rows: Mapping[str, Row]
    drawn: frozenset[str] = frozenset()

    def inputs(self, key: str, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Return ``visual`` uint8 ``[5, H, W, 3]`` and ``audio`` float32 ``[5, 32000]``; DataError for a broken clip."""
        return {"visual": self.prepared.frames(key), "audio": self.prepared.wave(key)}

    def targets(self, key: str) -> dict[str, np.ndarray]:
        """Return ``mask``, bool ``[5, 224, 224]``, and ``annotated``, bool ``[5]``; other frames have an empty mask."""
        annotated = np.arange(SECONDS) < self.rows[key].annotated
        return {"mask": unpack(self.prepared.extra("masks", key)), "annotated": annotated}

    def digest(self, key: str) -> str:
        """Return the digest of the clip's frames, sound and masks; DataError for a broken clip."""
        return self.prepared.sample_digest(key)


def _annotation(prepared: Prepared, name: str) -> Path | None:
    """Return the copy of a metadata file that a data set may lack."""
    try:
        return prepared.annotation(name)
    except DataError:
        return None
