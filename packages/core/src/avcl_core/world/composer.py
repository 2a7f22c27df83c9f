"""Drawing scenes from a bank: sources in time and space, with the world's one difficulty setting. Recipes live with the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from avcl_core.errors import ConfigError
from avcl_core.world.bank import SourceBank, check_class, check_split
from avcl_core.world.scene import Scene, Source, Span, mask_of

Range = tuple[float, float]


@dataclass(frozen=True)
class Difficulty:
    """How hard the world is. Set from control scores and the joint upper bound alone; a change gets a new version.

    Ranges are drawn uniformly: ``scale`` of a sprite against the frame, ``angle`` in degrees, ``travel`` across the frame
    during a scene, ``gain_db`` and ``pitch`` of a sound, ``snr_db`` of a scene, ``clutter`` and ``grain`` in 8-bit steps, number of ``scraps``.
    """

    version: str = "1"
    scale: Range = (0.42, 0.58)
    angle: Range = (-25.0, 25.0)
    travel: float = 0.15
    gain_db: Range = (-4.0, 2.0)
    pitch: Range = (0.93, 1.07)
    snr_db: Range = (4.0, 12.0)
    grain: Range = (3.0, 8.0)
    clutter: Range = (12.0, 32.0)
    scraps: tuple[int, int] = (3, 9)

    def record(self) -> dict[str, Any]:
        """JSON values for ``world.json``."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


DIFFICULTY = Difficulty()


def draw_span(rng: np.random.Generator, seconds: int, shortest: int, longest: int | None = None) -> Span:
    """One [onset, offset) with a length uniform in shortest..longest seconds, anywhere in the clip."""
    top = seconds if longest is None else min(longest, seconds)
    if not 1 <= shortest <= top:
        raise ConfigError(f"span: length {shortest}..{top} is not inside 1..{seconds} seconds")
    length = int(rng.integers(shortest, top + 1))
    onset = int(rng.integers(0, seconds - length + 1))
    return onset, onset + length


def other_classes(rng: np.random.Generator, classes: Sequence[str], n: int, without: Sequence[str] = ()) -> list[str]:
    """n distinct classes that are not in ``without``."""
    left = [cls for cls in classes if cls not in without]
    if n > len(left):
        raise ConfigError(
            f"scene: {n} further classes wanted, {len(left)} left of {len(classes)}; use a bank with more classes"
        )
    return [left[int(index)] for index in rng.permutation(len(left))[:n]]


@dataclass
class SceneBuilder:
    """Collects sources for one clip, then places them and returns the frozen scene.

    All randomness comes from ``rng`` (see :func:`avcl_core.world.seeds.rng_for`), sprites and sounds from one split of the bank::

        builder = SceneBuilder(bank, "train", rng_for(seed, "ave", "train", index))
        builder.add("drone-moon", visible=[(2, 8)], audible=[(2, 6)])        # heard and seen, then only seen
        builder.add("reed-drop", visible=[(0, 10)])                         # a silent distractor
        scene = builder.scene(clip_id(seed, "ave", "train", index))
    """

    bank: SourceBank
    split: str
    rng: np.random.Generator
    seconds: int = 10
    size: int = 96
    fps: int = 4
    difficulty: Difficulty = DIFFICULTY
    sources: list[Source] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_split(self.split)

    def add(
        self,
        cls: str,
        *,
        visible: Sequence[Span] = (),
        audible: Sequence[Span] = (),
        start: tuple[float, float] | None = None,
    ) -> Source:
        """Add an object of a class with a random sprite and sound of the split, visible and audible in these spans.

        ``start`` fixes its place (x, y in fractions of the frame; it then stays there), otherwise it is put where it hides
        the others least.
        """
        check_class(self.bank, cls)
        d = self.difficulty
        sprites, sounds = self.bank.sprites(cls, self.split), self.bank.sounds(cls, self.split)
        scale = float(self.rng.uniform(*d.scale))
        sprite, sound = sprites[int(self.rng.integers(len(sprites)))], sounds[int(self.rng.integers(len(sounds)))]
        begin, end = self._path(scale, tuple(visible)) if start is None else (start, start)
        source = Source(
            cls=cls,
            sprite=sprite,
            sound=sound,
            visible=tuple(visible),
            audible=tuple(audible),
            start=begin,
            end=end,
            scale=scale,
            angle=float(self.rng.uniform(*d.angle)),
            gain=float(10 ** (self.rng.uniform(*d.gain_db) / 20)),
            pitch=float(self.rng.uniform(*d.pitch)),
            phase=float(self.rng.uniform(0, 1)),
        )
        self.sources.append(source)
        return source

    def _path(self, scale: float, visible: tuple[Span, ...]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Of 16 random paths the one whose closest encounter with sources in view at the same time is farthest."""
        seen = mask_of(visible, self.seconds)
        rivals = [s for s in self.sources if (mask_of(s.visible, self.seconds) & seen).any()]
        margin = min(0.5, 0.55 * scale)
        best, best_gap = None, -np.inf
        for _ in range(16):
            begin = self.rng.uniform(margin, 1 - margin, 2)
            end = np.clip(begin + self.rng.uniform(-1, 1, 2) * self.difficulty.travel, margin, 1 - margin)
            gap = np.inf
            for rival in rivals:
                for part in (0.0, 0.5, 1.0):
                    here = begin * (1 - part) + end * part
                    there = np.array(rival.start) * (1 - part) + np.array(rival.end) * part
                    gap = min(gap, float(np.hypot(*(here - there))) - 0.5 * (scale + rival.scale))
            if gap > best_gap:
                best, best_gap = (begin, end), gap
            if gap >= 0:
                break
        assert best is not None
        begin, end = best
        return (float(begin[0]), float(begin[1])), (float(end[0]), float(end[1]))

    def scene(self, id: str) -> Scene:
        """Freeze what was added into a scene with its own background, scraps and noise."""
        d = self.difficulty
        return Scene(
            id=id,
            seconds=self.seconds,
            sources=tuple(self.sources),
            seed=int(self.rng.integers(2**31)),
            scraps=int(self.rng.integers(d.scraps[0], d.scraps[1] + 1)),
            clutter=float(self.rng.uniform(*d.clutter)),
            grain=float(self.rng.uniform(*d.grain)),
            snr_db=float(self.rng.uniform(*d.snr_db)),
            size=self.size,
            fps=self.fps,
        )
