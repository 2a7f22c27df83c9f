"""AVE from a generated world: one event per clip, audible and visible together only within its span."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from avcl_ave.data import HEADER, SECONDS, SPLIT_FILES
from avcl_ave.layout import ANNOTATIONS
from avcl_core.world.bank import SourceBank
from avcl_core.world.composer import SceneBuilder, draw_span, other_classes
from avcl_core.world.recipe import Recipe
from avcl_core.world.scene import Scene, Span, mask_of, spans_of
from avcl_core.world.seeds import clip_id, rng_for
from avcl_core.world.writer import Places, WorldSize

EVENTS = 8
"""The task uses the bank's first classes, at most this many."""
SHORTEST = 2
"""Shortest event in seconds."""
WHOLE = 0.25
"""Share of clips whose event lasts the whole clip; others are uniform in 2…9 s, so two thirds of all seconds are event."""
LEFTOVER = ("none", "visible", "audible")
"""What remains of the event's class before and after its span: nothing, its sight or its sound."""
DISTRACTED = {"visible": 0.7, "audible": 0.5}
"""Share of clips in which an object of another class is seen (but not heard), or heard (but not seen)."""
PLACES = Places(video="AVE/{id}.mp4", frames="frames/{id}", wave="wave/{id}.npy")


def task_classes(bank: SourceBank) -> tuple[str, ...]:
    """Return the bank's classes that the task uses, in index order."""
    return tuple(bank.classes[:EVENTS])


def scene(bank: SourceBank, size: WorldSize, seed: int, split: str, index: int) -> Scene:
    """Return clip ``index`` of a split; its first source is the event. Classes take turns."""
    rng = rng_for(seed, "ave", split, index)
    builder = SceneBuilder(bank, split, rng, seconds=size.seconds, size=size.size, fps=size.fps)
    event = bank.classes[index % len(bank.classes)]
    whole = bool(rng.random() < WHOLE)
    span = (0, size.seconds) if whole else draw_span(rng, size.seconds, SHORTEST, size.seconds - 1)
    seen, heard = _with_leftovers(rng, span, size.seconds)
    builder.add(event, visible=spans_of(seen), audible=spans_of(heard))
    # Two different classes: a distractor that is both seen and heard would be a second event.
    others = dict(zip(DISTRACTED, other_classes(rng, bank.classes, len(DISTRACTED), without=[event]), strict=True))
    for modality, share in DISTRACTED.items():
        if rng.random() < share:
            distraction = [draw_span(rng, size.seconds, SHORTEST)]
            seen, heard = (distraction, []) if modality == "visible" else ([], distraction)
            builder.add(others[modality], visible=seen, audible=heard)
    return builder.scene(clip_id(seed, "ave", split, index))


def _with_leftovers(rng: np.random.Generator, span: Span, seconds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return when the event's class is seen and heard, bool ``[seconds]`` each: both in ``span``, one or none outside."""
    seen = mask_of([span], seconds)
    heard = seen.copy()
    for side in (slice(0, span[0]), slice(span[1], seconds)):
        leftover = LEFTOVER[int(rng.integers(len(LEFTOVER)))]
        if leftover == "visible":
            seen[side] = True
        elif leftover == "audible":
            heard[side] = True
    return seen, heard


def annotation_files(scenes: Mapping[str, Sequence[Scene]], classes: Sequence[str]) -> dict[str, str]:
    """Return the text of every annotation file, by its path below the data set's folder."""
    rows = {split: [_row(clip) for clip in part] for split, part in scenes.items()}
    flat = [row for part in rows.values() for row in part]
    named = dict.fromkeys(row.split("&")[0] for row in flat)  # AVE numbers classes by first appearance
    texts = {SPLIT_FILES[split]: "".join(f"{row}\n" for row in part) for split, part in rows.items()}
    texts[ANNOTATIONS] = "".join(f"{row}\n" for row in ("&".join(HEADER), *flat))
    texts["categories.txt"] = "".join(f"{name}\n" for name in named)
    return texts


def _row(clip: Scene) -> str:
    event = clip.sources[0].cls
    ((start, end),) = spans_of(clip.both(event))
    return "&".join((event, clip.id, "good", str(start), str(end)))


compose = Recipe("ave", SECONDS, PLACES, task_classes, scene, annotation_files).compose
