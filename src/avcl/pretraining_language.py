"""Pretrains the tiny audio-visual language model: questions about scenes of classes that no task uses, answered word by word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import shared_backbones
from avcl.pretraining import GRID, SECONDS, Corpus, Recipe, features_of, tokens_of
from avcl_core.seeding import derive, numpy_generator, torch_generator
from avcl_core.texts import IGNORED
from avcl_core.world.procedural import procedural
from shared_backbones.language import LanguageTower, Media, generate, padded, plain_walk
from shared_backbones.tower import Tower

MEDIA = "<video>\n<audio>\n"
SHARE = 0.1
"""Least share of a cell of the raster that a class covers to be seen there."""
COUNTS = ("zero", "one", "two", "three")
SIDES = ("left", "middle", "right")
LONGEST = 40
"""Words of a generated answer, at most."""
Asked = tuple[str, str]


@dataclass(frozen=True)
class Watched:
    """Scenes as the frozen tiny towers see and hear them.

    Attributes:
        visual: patch tokens of the scene's frames ``[n, SECONDS, P, D]``.
        audio: tokens of its seconds of sound ``[n, SECONDS, L, D]``.
        questions: questions and answers of each scene.
    """

    visual: Tensor
    audio: Tensor
    questions: tuple[tuple[Asked, ...], ...]


def asked(names: Sequence[str], seen: np.ndarray, heard: np.ndarray) -> tuple[Asked, ...]:
    """Return every question about a scene that its truth settles.

    Args:
        names: of the classes.
        seen: share of the raster's cells ``[classes, GRID, GRID]``.
        heard: bool ``[classes]``.
    """
    found: list[Asked] = []
    shown = [k for k in range(len(names)) if (seen[k] > SHARE).any()]
    sounding = [int(k) for k in np.flatnonzero(heard)]
    found.append(("how many things sound?", COUNTS[len(sounding)]))
    found.append(("how many things are seen?", COUNTS[len(shown)]))
    if len(sounding) == 1:
        found.append(("what makes the sound?", names[sounding[0]]))
    if len(shown) == 1:
        found.append(("what is seen?", names[shown[0]]))
    for k in shown:
        columns = seen[k].sum(0)
        side = SIDES[min(int((columns * (np.arange(GRID) + 0.5)).sum() / columns.sum() / GRID * 3), 2)]
        found.append((f"where is the {names[k]}?", side))
        if len(shown) > 1:
            found.append((f"what is on the {side} side?", names[k]))
        found.append((f"does the {names[k]} sound?", "yes" if heard[k] else "no"))
    for k in sounding:
        found.append((f"is the {names[k]} in the picture?", "yes" if k in shown else "no"))
    absent = [k for k in range(len(names)) if k not in shown and not heard[k]]
    for k in absent[:: max(1, len(absent) // 2)][:2]:
        found.append((f"where is the {names[k]}?", "not in the picture"))
        found.append((f"is the {names[k]} in the picture?", "no"))
    return tuple(found)


def watch(corpus: Corpus, classes: Sequence[str]) -> Watched:
    """Return a corpus as the embedded tiny CLIP and BEATs see and hear it."""
    visual, audio = (shared_backbones.create(name, size="tiny") for name in ("clip_vit", "beats"))
    seen = corpus.seen.reshape(-1, SECONDS, *corpus.seen.shape[1:]).max(1)
    heard = cast(np.ndarray, corpus.heard.reshape(-1, SECONDS, corpus.heard.shape[1]).any(1))
    questions = tuple(asked(classes, s, h) for s, h in zip(seen, heard, strict=True))
    return Watched(_plain(visual, corpus, False), _plain(audio, corpus, True), questions)


def _plain(tower: Tower, corpus: Corpus, normed: bool) -> Tensor:
    """Tokens of a frozen tower without class tokens, by scene and second, in front of its last norm unless ``normed``."""
    inputs, _ = features_of(tower, corpus)
    with torch.no_grad():
        parts = [tokens_of(tower, part, normed)[:, tower.info.class_tokens :] for part in inputs.split(256)]
    return torch.cat(parts).unflatten(0, (-1, SECONDS))


def pretrain_language(
    name: str, recipe: Recipe, train: Corpus, held_out: Corpus, say: Callable[[str], None] = print
) -> tuple[Tower, dict[str, Any]]:
    """Pretrain the tiny language model with its connectors and return it with its provenance."""
    torch.manual_seed(derive(recipe.seed, "pretraining", name))
    tower = cast(LanguageTower, shared_backbones.create(name, size="tiny", pretrained=False, seed=recipe.seed))
    nn.init.normal_(tower.net.audio.query_tokens, std=0.02)
    tower.set_trainable(True)
    classes = procedural("pretrain", recipe.classes).classes
    watched = watch(train, classes)
    parameters = list(tower.net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=0.05)
    steps = recipe.epochs * -(-len(watched.questions) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps, pct_start=0.1)
    for epoch in range(recipe.epochs):
        tower.train()
        total, count = 0.0, 0
        order = torch.randperm(len(watched.questions), generator=torch_generator(recipe.seed, "order", epoch))
        for rows in order.split(recipe.batch):
            rng = numpy_generator(recipe.seed, "questions", epoch, int(rows[0]))
            loss = _loss(tower, watched, rows.tolist(), rng)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total, count = total + float(loss.detach()), count + 1
        say(f"{name}: epoch {epoch + 1}/{recipe.epochs}, loss {total / count:.4f}")
    tower.set_trainable(False)
    quality = {"held_out_exact_match": round(_quality(tower, watch(held_out, classes), recipe), 4)}
    say(f"{name}: {quality}")
    return tower, {"recipe": asdict(recipe), "bank": "procedural-pretrain", "classes": len(classes), **quality}


def _media(tower: LanguageTower, watched: Watched, rows: Sequence[int]) -> dict[str, Media]:
    visual, audio = watched.visual[rows], watched.audio[rows]
    # All seconds of a scene are one piece of sound, as a whole clip is where experts use the model.
    heard = audio.flatten(1, 2).unsqueeze(1)
    return {"video": tower.connect("visual", visual), "audio": tower.connect("audio", heard)}


def _loss(tower: LanguageTower, watched: Watched, rows: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Cross-entropy of the words of one question's answer per scene, drawn anew."""
    chosen = [watched.questions[row][int(rng.integers(len(watched.questions[row])))] for row in rows]
    prompts = [tower.dialogue.prompt(MEDIA + question) for question, _ in chosen]
    answers = [tower.dialogue.answer(answer) for _, answer in chosen]
    ids = padded(
        [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)], torch.device("cpu")
    )
    embedded, valid = tower.splice(ids, _media(tower, watched, rows), "right")
    final = plain_walk(tower, embedded, valid, None)
    targets = torch.full(valid.shape, IGNORED)
    for index, answer in enumerate(answers):
        end = int(valid[index].sum())
        targets[index, end - len(answer) : end] = torch.tensor(answer)
    kept = targets != IGNORED
    return functional.cross_entropy(tower.logits(final[kept]), targets[kept])


def _quality(tower: LanguageTower, watched: Watched, recipe: Recipe) -> float:
    """Share of held-out questions, one of each scene, whose generated answer is exactly the true one."""
    rng = numpy_generator(recipe.seed, "held out")
    pairs = [questions[int(rng.integers(len(questions)))] for questions in watched.questions]
    right = 0
    with torch.no_grad():
        for start in range(0, len(pairs), 64):
            rows = list(range(start, min(start + 64, len(pairs))))
            texts = [MEDIA + pairs[row][0] for row in rows]
            said = generate(tower, texts, _media(tower, watched, rows), LONGEST, partial(plain_walk, tower))
            right += sum(text == pairs[row][1] for text, row in zip(said, rows, strict=True))
    return right / len(pairs)
