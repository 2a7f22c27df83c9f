"""An open-ended question in its one normal form, whatever file it was read from: slots filled, type named, media told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from avcl_core.data.problems import Problem

NAMED = 20
"""Keys and paths that a message lists."""


@dataclass(frozen=True)
class Media:
    """Where the media of a question are, as written in its file or resolved (:mod:`avcl_avqa.media_paths`).

    Attributes:
        name: file name of the video, where the file names one instead of frames and sound.
        frames: image files of the video in order, or empty.
        voice: the sound file.
        image: a single image.
    """

    name: str | None = None
    frames: tuple[str, ...] = ()
    voice: str | None = None
    image: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path of a file: frames, sound, image."""
        return (*self.frames, *(path for path in (self.voice, self.image) if path is not None))


@dataclass(frozen=True)
class OpenQuestion:
    """One question about one video, with its answer as free text.

    Attributes:
        id: the record's id as text, unique in its file: the second record of an id has the suffix ``#2``, and so on.
        video: id of the video: its name without ``_trimmed.mp4``, or the folder of its frames.
        question: the text with its slots filled, without media markers.
        answer: as written, blanks and capitals included.
        type: question type as experiences are named (``Come_From``, not ``Come From``).
        labels: what the video shows: one VGG-Sound class (Split-AVQA), instruments (Split-MUSIC-AVQA), or nothing.
        split: ``train``, ``val`` or ``test``.
    """

    id: str
    video: str
    question: str
    answer: str
    type: str
    split: str
    labels: tuple[str, ...] = ()
    media: Media = Media()

    @property
    def key(self) -> str:
        """``<video>/<id>``, the sample's key in streams and predictions."""
        return f"{self.video}/{self.id}"


class Numbering:
    """Makes repeated ids unique: the second record of an id gets the suffix ``#2``, and so on."""

    def __init__(self) -> None:
        self.times: dict[str, int] = {}

    def __call__(self, id: str) -> str:
        self.times[id] = self.times.get(id, 0) + 1
        return id if self.times[id] == 1 else f"{id}#{self.times[id]}"

    @property
    def repeated(self) -> list[str]:
        """The ids that came more than once."""
        return [id for id, times in self.times.items() if times > 1]


def listed(names: Iterable[str]) -> str:
    """Return the first names as text, with an ellipsis if there are more."""
    names = list(names)
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def shared_keys(questions: Iterable[OpenQuestion], where: str) -> list[Problem]:
    """Return an error for each pair of (split, type) that share a key: a question is learnt or judged, once.

    Args:
        where: the folder or stream that the message names.
    """
    first: dict[str, tuple[str, str]] = {}
    shared: dict[tuple[tuple[str, str], tuple[str, str]], list[str]] = {}
    for question in questions:
        place = (question.split, question.type)
        before = first.setdefault(question.key, place)
        if before != place:
            shared.setdefault((before, place), []).append(question.key)
    return [
        Problem(
            where,
            f"{b[0]} {b[1]}",
            "key",
            f"{len(keys)} questions that {a[0]} {a[1]} has too: {listed(keys)}",
            "each question in one split of one question type",
            "remove them from one of the files",
        )
        for (a, b), keys in shared.items()
    ]
