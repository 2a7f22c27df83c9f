"""Split-AVQA from a generated world: one to three sources on a stage, and one question of each of the four types about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from avcl_avqa.benchmarks import SPLIT_AVQA
from avcl_avqa.questions import COUNTS, level, side
from avcl_avqa.split_avqa import ENDING, WRITTEN
from avcl_avqa.world import instrument_names, task_classes
from avcl_avqa.world import scene as music_scene
from avcl_core.world.bank import SourceBank
from avcl_core.world.recipe import Recipe
from avcl_core.world.scene import Scene, Source
from avcl_core.world.seeds import rng_for
from avcl_core.world.writer import Places, WorldSize

SECONDS = 10
PLACES = Places(video="videos/{id}" + ENDING, frames="frames/{id}", wave="audio_wave/{id}.npy")
WORDINGS: Mapping[str, tuple[str, ...]] = {
    "Come_From": ("Where does the sound in this video come from?", "What is the main source of the sound?"),
    "Happening": ("What is happening in this video?", "How many things sound in this video?"),
    "Where": ("Where is the {name} in this video?", "On which side is the {name}?"),
    "Which": ("Which one is on the {side} in this video?", "What is seen on the {side} side?"),
}
"""Question type → ways to ask it. The real benchmark's types, too, are nearly told by their wording alone (avqacl_moe.md 7.3)."""
GROUP = 2
"""Labels of an increment."""
NEITHER = "not in the picture"
Asked = tuple[dict[str, str], str]
"""Values of the wording, and the answer."""


def scene(bank: SourceBank, size: WorldSize, seed: int, split: str, index: int) -> Scene:
    """Return video ``index`` of a split: a scene of the MUSIC-AVQA world with an id like YouTube's."""
    found = music_scene(bank, size, seed, split, index)
    letters = rng_for(seed, "split avqa", split, index).integers(0, 26, 9)
    name = "".join(chr(ord("a") + int(letter)) for letter in letters)
    return replace(found, id=f"{name}{split[1]}{index}")


def asked(scene: Scene, names: Mapping[str, str]) -> dict[str, list[Asked]]:
    """Return question type → every question that the scene settles, as values of its wording and answer."""
    seen = [source for source in scene.sources if source.visible]
    heard = [source for source in scene.sources if source.audible]
    found: dict[str, list[Asked]] = {name: [] for name in SPLIT_AVQA.types}
    if heard:
        found["Come_From"] = [({}, names[max(heard, key=level).cls])]
    found["Happening"] = [({}, f"{COUNTS[len(heard)]} sounding")]
    places = Counter(source.cls for source in scene.sources if source.visible)
    for cls, name in names.items():
        if places[cls] == 1:
            found["Where"].append(({"name": name}, side(_only(seen, cls))))
        elif not places[cls]:
            found["Where"].append(({"name": name}, NEITHER))
    for source in seen:
        found["Which"].append(({"side": side(source)}, names[source.cls]))
    return found


def _only(sources: Sequence[Source], cls: str) -> Source:
    return next(source for source in sources if source.cls == cls)


def annotation_files(scenes: Mapping[str, Sequence[Scene]], classes: Sequence[str]) -> dict[str, str]:
    """Return the text of the question files ``<split>_<Type>.json``, in Split-AVQA's own form, by path."""
    names = instrument_names(classes)
    written = {name: text for text, name in WRITTEN.items()}
    texts, number = {}, 0
    for split, part in scenes.items():
        rows: dict[str, list[dict[str, object]]] = {name: [] for name in SPLIT_AVQA.types}
        for clip, kind, question, answer in _balanced(split, part, names):
            rows[kind].append(
                {
                    "id": number,
                    "video_name": clip.id + ENDING,
                    "video_id": number,
                    "question_text": question,
                    "answer": answer,
                    "question_relation": "Both",
                    "question_type": written[kind],
                    "label": clip.sources[0].cls,
                }
            )
            number += 1
        texts |= {f"{split}_{kind}.json": json.dumps(found, indent=1) + "\n" for kind, found in rows.items()}
    # Labels are what a scene's first source is; the files of the real benchmark group 120 of them by 20.
    steps = [list(classes[at : at + GROUP]) for at in range(0, len(classes), GROUP)]
    return texts | {f"task_partition_{len(steps)}_{GROUP}.json": json.dumps(steps, indent=1) + "\n"}


def _balanced(split: str, scenes: Sequence[Scene], names: Mapping[str, str]) -> Iterator[tuple[Scene, str, str, str]]:
    """One question of each type about every scene that settles one: the one whose answer is the rarest so far."""
    rng = rng_for("split avqa questions", split)
    answers: Counter[tuple[str, str]] = Counter()
    for clip in scenes:
        for kind, choices in asked(clip, names).items():
            if choices:
                order = [choices[int(i)] for i in rng.permutation(len(choices))]
                values, answer = min(order, key=lambda choice: answers[kind, choice[1]])
                answers[kind, answer] += 1
                wordings = WORDINGS[kind]
                yield clip, kind, wordings[int(rng.integers(len(wordings)))].format(**values), answer


compose = Recipe("avqa_open", SECONDS, PLACES, task_classes, scene, annotation_files).compose
