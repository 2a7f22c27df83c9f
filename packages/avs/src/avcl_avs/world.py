"""AVSBench from a generated world: objects in view, of which one sounds all the time (S4), or several in turn (MS3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from avcl_avs.data import SECONDS, SETTINGS, Row, Setting
from avcl_avs.layout import CATEGORIES, PARTS
from avcl_avs.world_files import write_clip
from avcl_core.data.pool import Progress
from avcl_core.errors import ConfigError
from avcl_core.world.bank import SourceBank
from avcl_core.world.composer import SceneBuilder, draw_span, other_classes
from avcl_core.world.scene import Scene, Span
from avcl_core.world.seeds import clip_id, rng_for
from avcl_core.world.writer import WorldSize, write_world

EVENTS = 8
"""Number of classes of the task, where the bank has as many."""
FIRST = 12
"""The bank's class with which the task begins, going round at the end."""
SILENT = (0.8, 0.2)
"""S4: share of clips with one and two silent objects of other classes beside the one that sounds."""
OBJECTS = {2: 0.7, 3: 0.3}
"""MS3: share of clips with two and three objects, all of other classes."""
WHOLE = 0.25
"""MS3: share of clips whose first object sounds throughout; other spans have two to four seconds."""
MUTE = 0.5
"""MS3: share of the objects, the first excepted, that never sound."""


def task_classes(bank: SourceBank) -> tuple[str, ...]:
    """Return the bank's classes that the task uses, in index order."""
    total = len(bank.classes)
    return tuple(bank.classes[(FIRST + place) % total] for place in range(min(EVENTS, total)))


def single_source(bank: SourceBank, size: WorldSize, seed: int, split: str, index: int) -> Scene:
    """Return clip ``index`` of a split of S4: one object sounds throughout, one or two others are only seen.

    Classes take turns, and each is as often silent as it sounds: the picture alone does not tell which object it is.
    """
    rng, builder = _begin(bank, size, seed, "s4", split, index)
    sounding = bank.classes[index % len(bank.classes)]
    silent = other_classes(rng, bank.classes, 1 + int(rng.choice(len(SILENT), p=SILENT)), without=[sounding])
    whole: list[Span] = [(0, SECONDS)]
    objects = [(sounding, whole), *((name, []) for name in silent)]
    # Later objects hide earlier ones, so the order must not tell either.
    for place in rng.permutation(len(objects)):
        name, audible = objects[int(place)]
        builder.add(name, visible=whole, audible=audible)
    return builder.scene(clip_id(seed, "avs", "s4", split, index))


def multiple_sources(bank: SourceBank, size: WorldSize, seed: int, split: str, index: int) -> Scene:
    """Return clip ``index`` of a split of MS3: two or three objects in view, each sounds in a span of its own or never."""
    rng, builder = _begin(bank, size, seed, "ms3", split, index)
    first = bank.classes[index % len(bank.classes)]
    count = int(rng.choice(list(OBJECTS), p=list(OBJECTS.values())))
    names = [first, *other_classes(rng, bank.classes, count - 1, without=[first])]
    spans = [[(0, SECONDS) if rng.random() < WHOLE else draw_span(rng, SECONDS, 2, SECONDS - 1)]]
    spans += [[] if rng.random() < MUTE else [draw_span(rng, SECONDS, 2, SECONDS - 1)] for _ in names[1:]]
    for place in rng.permutation(count):
        builder.add(names[int(place)], visible=[(0, SECONDS)], audible=spans[int(place)])
    return builder.scene(clip_id(seed, "avs", "ms3", split, index))


SCENES = {"s4": single_source, "ms3": multiple_sources}


def _begin(
    bank: SourceBank, size: WorldSize, seed: int, setting: Setting, split: str, index: int
) -> tuple[np.random.Generator, SceneBuilder]:
    rng = rng_for(seed, "avs", setting, split, index)
    return rng, SceneBuilder(bank, split, rng, seconds=SECONDS, size=size.size, fps=size.fps)


def clips_of(bank: SourceBank, size: WorldSize, seed: int) -> list[tuple[Scene, Row]]:
    """Return all clips of both settings, each with its row of the metadata file."""
    clips = []
    for setting in SETTINGS:
        line = 1
        for split, count in size.items():
            for index in range(count):
                scene = SCENES[setting](bank, size, seed, split, index)
                line += 1
                clips.append((scene, Row(line, setting, scene.id, split, _category(setting, scene))))
    return clips


def _category(setting: Setting, scene: Scene) -> str:
    return next(source.cls for source in scene.sources if source.audible) if setting == "s4" else ""


def annotation_files(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, str]:
    """Return the text of every metadata file, by its path below the data set's folder."""
    single = [f"{row.video},0,{row.category},{row.split}" for row in rows if row.setting == "s4"]
    multiple = [f"{row.video},{row.split}" for row in rows if row.setting == "ms3"]
    texts = {
        PARTS["s4"].metadata: ["name,start,category,split", *single],
        PARTS["ms3"].metadata: ["name,split", *multiple],
        **{str(Path(part.metadata).with_name(CATEGORIES)): list(classes) for part in PARTS.values()},
    }
    return {name: "".join(f"{line}\n" for line in lines) for name, lines in texts.items()}


def compose(
    bank: SourceBank, size: WorldSize, seed: int, out: Path, workers: int = 2, progress: Progress | None = None
) -> None:
    """Write both settings below ``out`` in the published layout, ``size`` clips each; a pure function of bank, size and seed.

    Raises:
        ConfigError: the clips have another length, or the bank has too few classes.
        DataError: ``out`` holds something else.
    """
    if size.seconds != SECONDS:
        raise ConfigError(f"world avs: seconds is {size.seconds}; clips have {SECONDS}; set seconds={SECONDS}")
    bank = bank.subset(task_classes(bank))
    scenes, rows = zip(*clips_of(bank, size, seed), strict=True)
    write_world(
        out,
        scenes,
        bank,
        annotation_files(rows, bank.classes),
        task="avs",
        seed=seed,
        size=size,
        write=partial(write_clip, rows={row.video: row for row in rows}),
        workers=workers,
        progress=progress,
    )
