"""Known defects of LLP's dense label files: three corrupted rows that `clean` repairs, eight names that match no video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from avcl_avvp.data import LLP_CLASSES, DenseRow


@dataclass(frozen=True)
class Corrupted:
    """A row of the audio file as the forks ship it, and the name of the video that it belongs to (tasks.md 2.2)."""

    name: str
    onset: int
    offset: int
    label: str
    belongs_to: str

    def matches(self, row: DenseRow) -> bool:
        """Whether ``row`` is this row."""
        content = (row.name, row.onset, row.offset, row.label)
        return content == (self.name, self.onset, self.offset, LLP_CLASSES.index(self.label))


CORRUPTED = (
    Corrupted("Baby_cry_infant_cry", 0, 4, "Speech", "JfZEqeLZqWk_30_40"),
    Corrupted("Baby_cry_infant_cry", 7, 10, "Speech", "JfZEqeLZqWk_30_40"),
    Corrupted("KvIjsmANkxI_10_20`", 0, 1, "Cat", "KvIjsmANkxI_10_20"),
)
"""In the copies of AVMOE, MGN and DG-SCT; both videos are test videos. The LLP authors repaired them in 2024."""

LOST = frozenset(
    {
        "12eWNawPekw_30_40",
        "17iGUal2M_10_20",
        "19jWnmYnlD8_30_400",
        "7X3oSVoA_90_100",
        "AkAfFL5Q4QA_30_40",
        "CSWQ_HzQ_10_20",
        "P7x4FV4lg_570_580",
        "VMTJRpjbE_150_160",
    }
)
"""Names in every published copy that match no listed video; their events are lost in both protocols."""


def corrupted(row: DenseRow) -> Corrupted | None:
    """Return the known defect that ``row`` is, or ``None``."""
    return next((defect for defect in CORRUPTED if defect.matches(row)), None)


def repair(rows: Sequence[DenseRow]) -> tuple[list[DenseRow], int]:
    """Return the rows with the corrupted names replaced, and how many those were; a repaired file is left alone."""
    repaired = [replace(row, name=defect.belongs_to) if (defect := corrupted(row)) else row for row in rows]
    return repaired, sum(old is not new for old, new in zip(rows, repaired, strict=True))


def is_llp(names: Sequence[str]) -> bool:
    """Whether ``names`` are videos of LLP: those of the corrupted rows are among them."""
    return {defect.belongs_to for defect in CORRUPTED} <= set(names)
