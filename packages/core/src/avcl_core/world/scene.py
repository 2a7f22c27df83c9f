"""A scene: which sources are seen and heard when and where. It is the truth from which media and labels are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from avcl_core.errors import ConfigError

Span = tuple[int, int]
"""[onset, offset) in whole seconds, the label resolution of every task."""


def mask_of(spans: Iterable[Span], seconds: int) -> np.ndarray:
    """Seconds covered by the spans, bool [seconds]."""
    covered = np.zeros(seconds, dtype=bool)
    for onset, offset in spans:
        covered[onset:offset] = True
    return covered


def spans_of(covered: np.ndarray) -> tuple[Span, ...]:
    """Maximal runs of true seconds as half-open spans: the rows of an onset / offset annotation file."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], np.asarray(covered, dtype=bool), [False]])))
    return tuple((int(onset), int(offset)) for onset, offset in edges.reshape(-1, 2))


@dataclass(frozen=True)
class Source:
    """One object: a picture that is in view during ``visible`` and a sound that is heard during ``audible``.

    ``start`` and ``end`` are the centre in fractions of the frame (x, y) at the beginning and end of the scene; ``scale`` is
    the longer side of the sprite as a fraction of the frame; ``angle`` in degrees; ``gain`` is linear against the nominal
    loudness, ``pitch`` the playback speed, ``phase`` in [0, 1) where a looped sound begins.
    """

    cls: str
    sprite: str
    sound: str
    visible: tuple[Span, ...] = ()
    audible: tuple[Span, ...] = ()
    start: tuple[float, float] = (0.5, 0.5)
    end: tuple[float, float] = (0.5, 0.5)
    scale: float = 0.4
    angle: float = 0.0
    gain: float = 1.0
    pitch: float = 1.0
    phase: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Everything that a clip shows and plays. Later sources hide earlier ones.

    ``seed`` fixes background, scraps, pixel noise and background sound; ``scraps`` is the number of meaningless pieces in the
    background and ``clutter`` the contrast of its texture (8-bit steps); ``grain`` the standard deviation of pixel noise (8-bit steps); ``snr_db`` the level of a source of gain 1 over
    the background noise, which is there whether or not anything sounds; ``size`` in pixels (square), ``fps`` frames a second.
    """

    id: str
    seconds: int
    sources: tuple[Source, ...]
    seed: int
    scraps: int = 8
    clutter: float = 25.0
    grain: float = 5.0
    snr_db: float = 10.0
    size: int = 96
    fps: int = 4

    def __post_init__(self) -> None:
        for source in self.sources:
            for field, spans in (("visible", source.visible), ("audible", source.audible)):
                for onset, offset in spans:
                    if not 0 <= onset < offset <= self.seconds:
                        raise ConfigError(
                            f"scene {self.id}: source {source.cls}: {field} span ({onset}, {offset}) is not inside 0..{self.seconds}"
                        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of all sources, each once, in source order."""
        return tuple(dict.fromkeys(source.cls for source in self.sources))

    def visible(self, cls: str) -> np.ndarray:
        """Seconds in which some source of the class is in view, bool [seconds]."""
        return mask_of((span for s in self.sources if s.cls == cls for span in s.visible), self.seconds)

    def audible(self, cls: str) -> np.ndarray:
        """Seconds in which some source of the class is heard, bool [seconds]."""
        return mask_of((span for s in self.sources if s.cls == cls for span in s.audible), self.seconds)

    def both(self, cls: str) -> np.ndarray:
        """Seconds in which the class is heard and seen (an audio-visual event), bool [seconds]."""
        return self.visible(cls) & self.audible(cls)

    def matrix(self, what: str, classes: Sequence[str]) -> np.ndarray:
        """``visible``, ``audible`` or ``both`` for several classes, bool [len(classes), seconds]."""
        query = {"visible": self.visible, "audible": self.audible, "both": self.both}[what]
        return np.stack([query(cls) for cls in classes])

    def to_json(self) -> dict[str, Any]:
        """The scene as JSON values; :meth:`from_json` gives it back."""
        return {**vars(self), "sources": [dict(vars(source)) for source in self.sources]}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Scene:
        """Rebuild a scene from :meth:`to_json`."""
        sources = []
        for values in record["sources"]:
            spans = {field: tuple((int(a), int(b)) for a, b in values[field]) for field in ("visible", "audible")}
            places = {field: (float(values[field][0]), float(values[field][1])) for field in ("start", "end")}
            sources.append(Source(**{**values, **spans, **places}))
        return cls(**{**record, "sources": tuple(sources)})
