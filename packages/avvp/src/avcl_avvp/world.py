"""LLP from a generated world: one to three events per clip, each audible, visible or both, in spans of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from avcl_avvp.data import DENSE_HEADER, SECONDS, WEAK_HEADER
from avcl_avvp.layout import DENSE_FILES, MEDIA, WEAK_FILES
from avcl_core.world.bank import SourceBank
from avcl_core.world.composer import SceneBuilder, draw_span, other_classes
from avcl_core.world.recipe import Recipe
from avcl_core.world.scene import Scene, Span, spans_of
from avcl_core.world.seeds import clip_id, rng_for
from avcl_core.world.writer import Places, WorldSize

EVENTS = 8
"""Number of classes of the task, where the bank has as many."""
FIRST = 6
"""The bank's class with which the task begins, going round at the end: few are shared with a task that begins at 0."""
COUNTS = (0.4, 0.45, 0.15)
"""Share of clips with one, two and three events."""
KINDS = {"both": 0.45, "audible": 0.3, "visible": 0.25}
"""Share of events that are heard and seen, only heard, and only seen."""
SHORTEST = 2
"""Shortest span in seconds."""
WHOLE = 0.3
"""Share of spans that last the whole clip, as many of LLP's do; others are uniform in 2…9 s."""
PLACES = Places(
    video=f"{MEDIA}/video/{{id}}.mp4",
    frames=f"{MEDIA}/frame/{{id}}",
    wave=f"{MEDIA}/wave/{{id}}.npy",
    frame_times="middle",
)


def task_classes(bank: SourceBank) -> tuple[str, ...]:
    """Return the bank's classes that the task uses, in index order."""
    total = len(bank.classes)
    return tuple(bank.classes[(FIRST + place) % total] for place in range(min(EVENTS, total)))


def scene(bank: SourceBank, size: WorldSize, seed: int, split: str, index: int) -> Scene:
    """Return clip ``index`` of a split. The classes of first events take turns, further events are drawn."""
    rng = rng_for(seed, "avvp", split, index)
    builder = SceneBuilder(bank, split, rng, seconds=size.seconds, size=size.size, fps=size.fps)
    first = bank.classes[index % len(bank.classes)]
    count = 1 + int(rng.choice(len(COUNTS), p=COUNTS))
    for event in (first, *other_classes(rng, bank.classes, count - 1, without=[first])):
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        visible = [] if kind == "audible" else [_span(rng, size.seconds)]
        audible = [] if kind == "visible" else [_span(rng, size.seconds)]
        builder.add(event, visible=visible, audible=audible)
    return builder.scene(clip_id(seed, "avvp", split, index))


def _span(rng: np.random.Generator, seconds: int) -> Span:
    if rng.random() < WHOLE:
        return (0, seconds)
    return draw_span(rng, seconds, SHORTEST, seconds - 1)


def annotation_files(scenes: Mapping[str, Sequence[Scene]], classes: Sequence[str]) -> dict[str, str]:
    """Return the text of every label file, by its path below the data set's folder."""
    judged = [clip for split in ("val", "test") for clip in scenes[split]]
    weak = {
        WEAK_FILES[split]: _table(WEAK_HEADER, [(_name(clip), ",".join(clip.classes)) for clip in part])
        for split, part in scenes.items()
    }
    when: dict[str, Callable[[Scene, str], np.ndarray]] = {"audio": Scene.audible, "visual": Scene.visible}
    dense = {
        DENSE_FILES[modality]: _table(DENSE_HEADER, [row for clip in judged for row in _events(clip, mask)])
        for modality, mask in when.items()
    }
    return {**weak, **dense, "categories.txt": "".join(f"{name}\n" for name in classes)}


def _name(clip: Scene) -> str:
    return f"{clip.id}_0_{clip.seconds}"


def _events(clip: Scene, mask: Callable[[Scene, str], np.ndarray]) -> list[tuple[str, str, str, str]]:
    spans = [(cls, span) for cls in clip.classes for span in spans_of(mask(clip, cls))]
    return [(_name(clip), str(onset), str(offset), cls) for cls, (onset, offset) in spans]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in (header, *rows))


compose = Recipe("avvp", SECONDS, PLACES, task_classes, scene, annotation_files).compose
