"""Prepared MUSIC-AVQA as samples by key: a sample is one question about one video, whose media many questions share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from avcl_avqa.annotations import FOLDERS, Release, read_annotations
from avcl_avqa.data import SECONDS, Row
from avcl_avqa.metrics import TYPES
from avcl_avqa.vocabulary import Vocabulary
from avcl_core.data.prepared import Prepared
from avcl_core.data.problems import broken
from avcl_core.data.records import refuse_errors
from avcl_core.errors import DataError

NEGATIVE = "negative"
"""The input with frames of other videos."""


class QuestionData:
    """The questions of one release over prepared media.

    The key of a question is ``<video_id>/<question_id>``. The original release uses some question ids twice, always for the
    same video: the second such row of a file gets the suffix ``#2``, and so on.

    Args:
        prepared: a data set that was prepared from MUSIC-AVQA's layout.
        release: ``updated`` or ``original``; where only the other is there, that is used, and :attr:`note` says so.

    Raises:
        DataError: a question file has an error, or the data set is another one.
    """

    def __init__(self, prepared: Prepared, release: Release) -> None:
        if prepared.layout != "avqa":
            raise broken(prepared.folder, "layout", prepared.layout, "avqa", "name the folder of prepared AVQA data")
        folders = {name: folder for name in FOLDERS if (folder := release_folder(prepared, name)) is not None}
        if not folders:
            raise broken(prepared.folder, "questions", "none", "json_update/ or json/", "prepare the data set again")
        used = release if release in folders else next(iter(folders))
        found = read_annotations(folders[used])
        refuse_errors(found.problems)
        self.prepared, self.vocabulary = prepared, found.vocabulary
        self._rows = {split: keyed(rows) for split, rows in found.splits.items()}
        templates = dict.fromkeys(row.template for rows in found.splits.values() for row in rows)
        self.templates = {template: index for index, template in enumerate(templates)}
        instead = "" if used == release else f"; there are no {release} ones"
        parts = [f"{used} questions ({found.identity}){instead}", found.overlaps or "no video in two splits"]
        self.note = "; ".join(parts)

    def rows(self, split: str) -> Mapping[str, Row]:
        """Return the questions of a split by key, in file order."""
        return self._rows[split]

    def split(self, split: str, negatives: bool = True) -> Questions:
        """Return the samples of a split; without ``negatives`` none is drawn, with ``rng`` either."""
        drawn = frozenset({NEGATIVE} if negatives else ())
        return Questions(self.prepared, self.vocabulary, self.templates, self._rows[split], drawn)


def release_folder(prepared: Prepared, release: Release) -> Path | None:
    """Return the folder of the prepared copies of a release's question files, or nothing where it was not prepared."""
    try:
        return prepared.annotation(f"{FOLDERS[release]}/avqa-train").parent
    except DataError:
        return None


def keyed(rows: Sequence[Row]) -> dict[str, Row]:
    """Return the rows by key (see :class:`QuestionData`)."""
    found: dict[str, Row] = {}
    times: dict[str, int] = {}
    for row in rows:
        key = f"{row.video_id}/{row.question_id}"
        times[key] = times.get(key, 0) + 1
        found[key if times[key] == 1 else f"{key}#{times[key]}"] = row
    return found


class OtherVideos:
    """Frames of other videos: what a negative is drawn from.

    Args:
        prepared: the media.
        videos: ids to draw from; broken ones are left out.

    Raises:
        DataError: fewer than two videos can be read, so there is no other one.
    """

    def __init__(self, prepared: Prepared, videos: Sequence[str]) -> None:
        self.prepared = prepared
        self.videos = sorted(video for video in set(videos) if video not in prepared.quarantined)
        if len(self.videos) < 2:
            found = f"{len(self.videos)} readable videos in the split"
            raise broken(prepared.folder, "negative frames", found, "at least 2", "prepare more videos")

    def draw(self, video: str, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return ``count`` frames uint8 ``[count, H, W, 3]``, each a random one of the ten of a random video that is not ``video``."""
        others = [other for other in self.videos if other != video]
        chosen = [(others[int(rng.integers(len(others)))], int(rng.integers(SECONDS))) for _ in range(count)]
        return np.stack([self.prepared.frames(other)[place] for other, place in chosen])


@dataclass
class Questions:
    """The samples of one split."""

    prepared: Prepared
    vocabulary: Vocabulary
    templates: Mapping[str, int]
    rows: Mapping[str, Row]
    drawn: frozenset[str] = frozenset({NEGATIVE})
    _others: list[OtherVideos] = field(default_factory=list)

    def inputs(self, key: str, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Return ``visual`` uint8 ``[10, H, W, 3]``, ``audio`` float32 ``[10, 32000]`` and ``question`` int64 ``[14]``.

        With ``rng``, where :attr:`drawn` names it, also ``negative`` uint8 ``[10, H, W, 3]``: for each second a frame of another
        video of the split.

        Raises:
            DataError: the video is broken.
        """
        row = self.rows[key]
        found = {
            "visual": self.prepared.frames(row.video_id),
            "audio": self.prepared.wave(row.video_id),
            "question": self.vocabulary.encode(row.words),
        }
        if rng is not None and NEGATIVE in self.drawn:
            if not self._others:
                self._others.append(OtherVideos(self.prepared, [other.video_id for other in self.rows.values()]))
            found[NEGATIVE] = self._others[0].draw(row.video_id, SECONDS, rng)
        return found

    def targets(self, key: str) -> dict[str, np.ndarray]:
        """Return the indices of ``answer``, of the question's ``type`` (of nine) and of its ``template``."""
        row = self.rows[key]
        places = (self.vocabulary.answers.index(row.answer), TYPES.index(row.type), self.templates[row.template])
        return {name: np.array(place) for name, place in zip(("answer", "type", "template"), places, strict=True)}

    def digest(self, key: str) -> str:
        """Return the digest of the video's frames and sound; DataError for a broken video."""
        return self.prepared.sample_digest(self.rows[key].video_id)
