"""MUSIC-AVQA from a generated world: one to three instruments on a stage, some silent, some sounds from outside the picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from avcl_avqa.annotations import FOLDERS, SPLITS
from avcl_avqa.data import SECONDS
from avcl_avqa.questions import FIXED_ANSWERS, FIXED_VALUES, SIDES, TEMPLATES, Question, balanced
from avcl_avqa.vocabulary import ANSWERS_FILE, PAD, WORDS_FILE
from avcl_core.errors import ConfigError
from avcl_core.world.bank import SourceBank
from avcl_core.world.composer import DIFFICULTY, SceneBuilder, draw_span, other_classes
from avcl_core.world.recipe import Recipe
from avcl_core.world.scene import Scene, Source, Span
from avcl_core.world.seeds import rng_for
from avcl_core.world.writer import RATE, Places, WorldSize

INSTRUMENTS = 4
"""The task uses the bank's first classes, at most this many."""
STAGE = (0.25, 0.45, 0.3)
"""Share of clips with one, two and three instruments in view."""
TWINS = 0.25
"""Share of clips with several instruments in which two are of one class."""
SILENT = 0.25
"""Share of instruments in view that do not sound."""
OUTSIDE = 0.35
"""Share of clips in which a further instrument is heard but not seen."""
PLAYBACK = 0.5
"""Share of those in which it is the only one that is heard."""
STAGGERED = 0.5
"""Share of clips whose sounds begin one after the other; in the others all sound together."""
STEP = 2
"""Seconds between staggered onsets, at least."""
QUESTIONS = 6
"""Questions about one video, each of another type; MUSIC-AVQA has five on average."""
CREST = 6.0
"""Recordings whose peak exceeds their root mean square by more are always soft: rendering holds peaks down, whatever the gain."""
PLACES = Places(video="videos/{id}.mp4", frames="frames/{id}", wave="audio_wave/{id}.npy")
ACROSS = {"left": 0.22, "middle": 0.5, "right": 0.78}
"""Centre of an instrument by its side, in widths of the frame."""
UP_AND_DOWN = (0.3, 0.7)
"""Centre of outer instruments and of the middle one, in heights of the frame: three of them do not hide each other."""


def task_classes(bank: SourceBank) -> tuple[str, ...]:
    """Return the bank's classes that the task uses, in index order."""
    return tuple(bank.classes[:INSTRUMENTS])


def instrument_names(classes: Sequence[str]) -> dict[str, str]:
    """Return class → the one word that questions and answers call it: blanks become ``_``, other answers are avoided.

    Raises:
        ConfigError: two classes get one name, or a name would look like a placeholder.
    """
    names: dict[str, str] = {}
    for cls in classes:
        word = "_".join(cls.split())
        word = f"object_{word}" if word in (*FIXED_ANSWERS, *FIXED_VALUES) else word
        if "<" in word or word in names.values():
            raise ConfigError(f"world avqa: class {cls!r} cannot be called {word!r} in a question; rename the class")
        names[cls] = word
    return names


def scene(bank: SourceBank, size: WorldSize, seed: int, split: str, index: int) -> Scene:
    """Return video ``index`` of a split; its id has eight digits, as those of MUSIC-AVQA's real videos."""
    rng = rng_for(seed, "avqa", split, index)
    builder = SceneBuilder(bank, split, rng, seconds=size.seconds, size=size.size, fps=size.fps)
    count = 1 + int(rng.choice(len(STAGE), p=STAGE))
    outside = bool(rng.random() < OUTSIDE)
    classes = other_classes(rng, bank.classes, count + 1)
    if count > 1 and rng.random() < TWINS:
        classes[1] = classes[0]
    sounding = rng.random(count) >= SILENT
    if outside and rng.random() < PLAYBACK:
        sounding[:] = False
    spans = iter(_spans(rng, int(sounding.sum()) + outside, size.seconds))
    sides = _sides(rng, count)
    for place in range(count):
        across, down = ACROSS[sides[place]], UP_AND_DOWN[sides[place] == "middle"]
        centre = tuple(np.array([across, down]) + rng.uniform(-0.03, 0.03, 2))
        audible = [next(spans)] if sounding[place] else []
        builder.add(classes[place], visible=[(0, size.seconds)], audible=audible, start=(centre[0], centre[1]))
    if outside:
        builder.add(classes[-1], audible=[next(spans)])
    loud = rng.permutation(len(builder.sources)) % 2 == int(rng.integers(2))
    for place, source in enumerate(builder.sources):
        high = bool(loud[place]) and _crest(bank, source) <= CREST
        builder.sources[place] = replace(source, gain=_gain(rng, high))
    return builder.scene(f"{(1 + SPLITS.index(split)) * 10_000_000 + index:08d}")


def _sides(rng: np.random.Generator, count: int) -> list[str]:
    """Where the instruments stand: anywhere, left and right, or all three sides; in random order."""
    sides = {1: [SIDES[int(rng.integers(3))]], 2: ["left", "right"], 3: list(SIDES)}[count]
    return [sides[int(i)] for i in rng.permutation(count)]


def _spans(rng: np.random.Generator, count: int, seconds: int) -> list[Span]:
    """When the sounds are heard: begun one after the other and held for a while or to the end, or all together."""
    if rng.random() < STAGGERED:
        slack = seconds - STEP - 1 - STEP * (count - 1)
        waits = np.sort(rng.integers(0, slack + 1, count)) if count else np.zeros(0, dtype=int)
        onsets = [int(wait) + STEP * place for place, wait in enumerate(waits)]
        ends = [seconds if rng.random() < 0.5 else int(rng.integers(on + STEP, seconds + 1)) for on in onsets]
        return [(onsets[int(i)], ends[int(i)]) for i in rng.permutation(count)]
    span = (0, seconds) if rng.random() < 0.8 else draw_span(rng, seconds, STEP)
    return [span] * count


def _crest(bank: SourceBank, source: Source) -> float:
    """Peak over root mean square of a source's recording."""
    wave = bank.sound(source.cls, source.sound, RATE)
    return float(np.abs(wave).max() / max(np.sqrt(np.mean(np.square(wave, dtype=np.float64))), 1e-9))


def _gain(rng: np.random.Generator, loud: bool) -> float:
    """A level in the lowest or the highest fourth of the world's range, so that a loud and a soft source clearly differ."""
    low, high = DIFFICULTY.gain_db
    fourth = (high - low) / 4
    level = rng.uniform(high - fourth, high) if loud else rng.uniform(low, low + fourth)
    return float(10 ** (level / 20))


def annotation_files(scenes: Mapping[str, Sequence[Scene]], classes: Sequence[str]) -> dict[str, str]:
    """Return the text of the question files and word lists, in MUSIC-AVQA's own encoding, by path."""
    names = instrument_names(classes)
    folder, number, texts = FOLDERS["original"], 0, {}
    for split, part in scenes.items():
        items = []
        for clip, asked in zip(part, balanced(part, names, QUESTIONS, rng_for("avqa questions", split)), strict=True):
            for question in asked:
                items.append(_item(clip.id, number, question))
                number += 1
        texts[f"{folder}/avqa-{split}.json"] = json.dumps(items, indent=1) + "\n"
    fixed = [word for template in TEMPLATES for word in template[:-1].split(" ") if "<" not in word]
    words = dict.fromkeys((PAD, *fixed, *FIXED_VALUES, *names.values()))
    texts[f"{folder}/{WORDS_FILE}"] = "".join(f"{word}\n" for word in words)
    texts[f"{folder}/{ANSWERS_FILE}"] = "".join(f"{word}\n" for word in (*FIXED_ANSWERS, *names.values()))
    return texts


def _item(video: str, number: int, question: Question) -> dict[str, object]:
    return {
        "video_id": video,
        "question_id": number,
        "type": json.dumps(question.type),
        "question_content": question.template,
        "templ_values": json.dumps(question.values),
        "question_deleted": 0,
        "anser": question.answer,
    }


compose = Recipe("avqa", SECONDS, PLACES, task_classes, scene, annotation_files).compose
