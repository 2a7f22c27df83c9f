"""AVSBench's metadata: one comma-separated row per video, read by position and by the one column whose name is known, `split`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from avcl_core.data.records import AnnotationFile
from avcl_core.errors import nearest

Setting = Literal["s4", "ms3"]
SETTINGS: tuple[Setting, ...] = ("s4", "ms3")
SPLITS = ("train", "val", "test")
SECONDS = 5
"""Length of a clip in seconds, which is the number of its frames."""
EDGE = 224
"""Edge of frames and masks in pixels."""
CATEGORIES = (
    "baby_laughter", "female_singing", "male_speech", "dog_barking", "cat_meowing", "lions_roaring", "horse_clip-clop",
    "coyote_howling", "mynah_bird_singing", "playing_acoustic_guitar", "playing_tabla", "playing_violin", "playing_piano",
    "playing_ukulele", "playing_glockenspiel", "helicopter", "race_car", "driving_buses", "ambulance_siren",
    "typing_on_computer_keyboard", "chainsawing_trees", "cap_gun_shooting", "lawn_mowing",
)  # fmt: skip
"""The 23 categories of the single-source setting (tasks.md 3.1)."""
CATEGORY_COLUMN = {"s4": 2, "ms3": None}
"""Position of the category in a row; the multi-source setting has none."""


@dataclass(frozen=True)
class Row:
    """One video: its setting, name, split and category (empty in the multi-source setting); ``line`` is 1-based."""

    line: int
    setting: Setting
    video: str
    split: str
    category: str = ""

    @property
    def id(self) -> str:
        """The clip's id, which is its sample key too."""
        return f"{self.setting}/{self.video}"

    @property
    def annotated(self) -> int:
        """How many of the five frames have a mask, from the first on: in training of the single-source setting one."""
        return 1 if self.setting == "s4" and self.split == "train" else SECONDS

    @property
    def place(self) -> str:
        """Folder of the video's masks and sound below theirs: split, then category where there is one."""
        return f"{self.split}/{self.category}" if self.category else self.split


def read_rows(file: AnnotationFile, setting: Setting, categories: Sequence[str] = ()) -> list[Row]:
    """Return the well-formed rows of a metadata file; the others are recorded in ``file.problems``.

    Category names are checked against ``categories``, by default the 23 published ones.

    Raises:
        DataError: the file is missing, empty or not UTF-8.
    """
    (_, heading), *lines = file.lines()
    header = _fields(heading)
    if header.count("split") != 1:
        found = f"the columns {', '.join(header)}"
        file.note(1, "header", found, "one column named split", "put the published file there")
        return []
    if not lines:
        file.note(None, "rows", "a header and nothing else", "at least one video", "put the published file there")
    rows: dict[str, Row] = {}
    for line, text in lines:
        row = _row(file, line, _fields(text), header, setting, categories or CATEGORIES)
        if row is None:
            continue
        if (first := rows.setdefault(row.video, row)) is not row:
            found = f"{row.video}, also in line {first.line} ({first.split})"
            file.note(line, "video", found, "each video once, in one split", "remove one of the rows")
    return list(rows.values())


def _fields(text: str) -> list[str]:
    return [field.strip() for field in next(csv.reader([text]), [])]


def _row(
    file: AnnotationFile, line: int, fields: list[str], header: list[str], setting: Setting, categories: Sequence[str]
) -> Row | None:
    """Parse one line, or record every field that is wrong and return ``None``."""
    if len(fields) != len(header):
        file.note(line, "fields", f"{len(fields)}", f"{len(header)} separated by commas", "correct the row")
        return None
    before = len(file.problems)
    video, split = fields[0], fields[header.index("split")]
    if not video or video in (".", "..") or any(sign in video for sign in "/\\"):
        file.note(line, "video", repr(video), "a file name without folders", "correct the row")
    if split not in SPLITS:
        file.note(line, "split", repr(split), ", ".join(SPLITS), f"correct the row{nearest(split, SPLITS)}")
    column, category = CATEGORY_COLUMN[setting], ""
    if column is not None:
        category = fields[column] if column < len(fields) else ""
        if category not in categories:
            action = f"correct the row{nearest(category, [*categories])}"
            file.note(line, "category", repr(category), f"one of {len(categories)} categories", action)
    return Row(line, setting, video, split, category) if len(file.problems) == before else None
