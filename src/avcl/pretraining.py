"""Pretrains the tiny towers that ship with the package, on procedural classes that no task uses."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

import shared_backbones
from avcl_core.data.pool import run_jobs
from avcl_core.prompts.context import ClassPrompts, spoken
from avcl_core.seeding import derive, torch_generator
from avcl_core.world.composer import SceneBuilder, other_classes
from avcl_core.world.procedural import procedural
from avcl_core.world.render import frames, masks, sound_track
from avcl_core.world.seeds import rng_for
from shared_backbones.text import TextEncoder
from shared_backbones.tower import Tower

TOWERS = ("swin_v2", "clip_vit", "resnet18", "htsat", "clap", "pvt_v2", "resnet50", "vggish", "beats", "av_llama")
RATE = 32_000
SECONDS = 2
PIXELS = 96
GRID = 8
CONTEXT = 4
"""Context vectors in front of a name, as many as PHP learns."""
BACKGROUND = "background"
"""What an input without any class is called."""


@dataclass(frozen=True)
class Recipe:
    """How the tiny towers are pretrained; part of the weights' provenance.

    Attributes:
        scenes: two-second scenes to learn from; each gives two frames and two one-second sounds.
        held_out: scenes of unseen sprites and sounds, on which the reported score is measured.
        classes: classes of the pretraining bank.
        augment: whether images are mirrored, moved by whole tokens and coloured anew at each look.
    """

    scenes: int = 6000
    held_out: int = 400
    classes: int = 32
    augment: bool = False
    epochs: int = 10
    batch: int = 64
    lr: float = 2e-3
    seed: int = 0


RECIPES = {
    "clip_vit": Recipe(classes=64, epochs=30, augment=True),
    "clap": Recipe(classes=64, epochs=12),
    "av_llama": Recipe(classes=64, epochs=16),
}
"""What differs from the default: names of classes are made of two words, and a text side meets each word in four names."""


@dataclass(frozen=True)
class Corpus:
    """Frames, one-second sounds, and what they show.

    Attributes:
        pictures: uint8 ``[n, S, S, 3]``.
        sounds: float32 ``[n, RATE]``.
        seen: share of each cell of a GRID × GRID raster that a class covers, float16 ``[n, classes, GRID, GRID]``.
        heard: whether a class is heard, bool ``[n, classes]``.
    """

    pictures: np.ndarray
    sounds: np.ndarray
    seen: np.ndarray
    heard: np.ndarray


def compose(recipe: Recipe, split: str, workers: int) -> Corpus:
    """Compose the corpus of a split of the pretraining bank."""
    count = recipe.scenes if split == "train" else recipe.held_out
    jobs = [(recipe.seed, recipe.classes, split, index) for index in range(count)]
    found = dict(run_jobs(_scene, jobs, workers))
    parts = [np.concatenate([found[i][part] for i in range(count)]) for part in range(4)]
    return Corpus(*parts)


def _scene(job: tuple[int, int, str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    seed, classes, split, index = job
    bank = procedural("pretrain", classes)
    rng = rng_for(seed, "pretraining", split, index)
    builder = SceneBuilder(bank, split, rng, seconds=SECONDS, size=PIXELS)
    for cls in other_classes(rng, bank.classes, int(rng.integers(1, 3))):
        # Each source is seen and heard independently, so that neither modality can be told from the other.
        visible = [(0, SECONDS)] if rng.random() < 0.85 else []
        audible = [(0, SECONDS)] if rng.random() < 0.85 else []
        builder.add(cls, visible=visible, audible=audible)
    scene = builder.scene(f"p{index:08d}")
    times = np.arange(SECONDS) + 0.5
    covered = (
        masks(scene, bank, times=times).reshape(-1, SECONDS, GRID, PIXELS // GRID, GRID, PIXELS // GRID).mean((3, 5))
    )
    seen = np.zeros((SECONDS, len(bank.classes), GRID, GRID), np.float16)
    for source, share in zip(scene.sources, covered, strict=True):
        seen[:, bank.classes.index(source.cls)] += share
    heard = np.stack([[scene.audible(cls)[second] for cls in bank.classes] for second in range(SECONDS)])
    return frames(scene, bank, times=times), sound_track(scene, bank, RATE).reshape(SECONDS, RATE), seen, heard


def pretrain(
    name: str, recipe: Recipe, train: Corpus, held_out: Corpus, say: Callable[[str], None] = print
) -> tuple[Tower, dict[str, Any]]:
    """Pretrain one tiny tower and return it with its provenance.

    Every token learns which class lies under it, or none (audio: which class is heard), by a linear reading that is thrown
    away. Towers with text also learn to match the whole input with the classes' names, so that their sides share a space.
    """
    torch.manual_seed(derive(recipe.seed, "pretraining", name))
    tower = shared_backbones.create(name, size="tiny", pretrained=False, seed=recipe.seed)
    tower.set_trainable(True)
    classes = procedural("pretrain", recipe.classes).classes
    reading = nn.Linear(tower.info.width, len(classes) + 1)
    names = _Names(tower.info.modality, tower.text, classes) if tower.text is not None else None
    parameters = [*tower.net.parameters(), *reading.parameters(), *(names.parameters() if names else ())]
    inputs, shares = features_of(tower, train)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=0.05)
    steps = recipe.epochs * -(-len(inputs) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps, pct_start=0.15)
    for epoch in range(recipe.epochs):
        tower.train()
        total = 0.0
        for x, share in _batches(inputs, shares, recipe, epoch):
            tokens = tokens_of(tower, x)
            loss = _cross_entropy(reading(tokens[:, tower.info.class_tokens :]), share)
            if names is not None:
                loss = loss + _cross_entropy(names(tower.project(tokens))[:, None], share.amax(1, keepdim=True))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        say(f"{name}: epoch {epoch + 1}/{recipe.epochs}, loss {total / (steps / recipe.epochs):.4f}")
    tower.set_trainable(False)
    quality = {"held_out_mean_average_precision": round(_quality(tower, reading, held_out, len(classes)), 4)}
    say(f"{name}: {quality}")
    return tower, {"recipe": asdict(recipe), "bank": "procedural-pretrain", "classes": len(classes), **quality}


class _Names(nn.Module):
    """Scaled cosine between inputs and the names of the classes (Radford et al. 2021), and "background" for none of them.

    Names stand in the sentences in which PHP will use them: behind vectors of context that mean nothing yet for images, after "The
    sounds of" for sounds (php.md 3.7).
    """

    def __init__(self, modality: str, text: TextEncoder, classes: Sequence[str]) -> None:
        super().__init__()
        self.text = text
        classes = (*classes, BACKGROUND)
        self.prompts = ClassPrompts(text, classes, CONTEXT) if modality == "visual" else None
        self.ids = text.crop(text.tokenize([f"The sounds of {spoken(name)}" for name in classes]))
        self.scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, joint: Tensor) -> Tensor:
        """Return logits ``[B, classes + 1]`` of inputs ``[B, D]`` in the joint space."""
        if self.prompts is None:
            names = self.text.forward_embeddings(self.text.token_embeddings(self.ids), self.ids)
        else:
            names = self.prompts.encode(0.02 * torch.randn(CONTEXT, self.text.width))
        return self.scale.exp() * nn.functional.normalize(joint, dim=-1) @ nn.functional.normalize(names, dim=-1).T


def _cross_entropy(logits: Tensor, share: Tensor) -> Tensor:
    """Cross-entropy of ``[B, N, classes + 1]`` logits with the classes present, in equal parts, or the last one for none."""
    present = (share > 0.1).float()
    wanted = torch.cat([present, (present.sum(-1, keepdim=True) == 0).float()], -1)
    wanted = wanted / wanted.sum(-1, keepdim=True)
    return -(logits.log_softmax(-1) * wanted).sum(-1).mean()


def features_of(tower: Tower, corpus: Corpus) -> tuple[Tensor, Tensor]:
    """Front-end features of a corpus for one tower, and the share of each class under each token ``[n, N, classes]``."""
    info = tower.info
    if info.image_size is not None:
        pictures = torch.from_numpy(corpus.pictures).permute(0, 3, 1, 2).float().div_(255)
        size = (info.image_size, info.image_size)
        resized = nn.functional.interpolate(pictures, size, mode="bicubic", antialias=True).clamp_(0, 1)
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (info.mean, info.std))
        share = nn.functional.adaptive_max_pool2d(torch.from_numpy(corpus.seen).float(), info.grid)
        return (resized - mean) / std, share.flatten(2).transpose(1, 2).contiguous()
    rate = info.sample_rate or RATE
    waves = torch.from_numpy(corpus.sounds)
    parts = [tower.frontend(torchaudio.functional.resample(part, RATE, rate)) for part in waves.split(256)]
    # Time is folded into the grid, so that every token of a second hears the same classes.
    return torch.cat(parts), torch.from_numpy(corpus.heard).float()[:, None]


def _batches(inputs: Tensor, labels: Tensor, recipe: Recipe, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(inputs), generator=torch_generator(recipe.seed, "order", epoch))
    generator = torch_generator(recipe.seed, "augment", epoch)
    for rows in order.split(recipe.batch):
        yield _augmented(inputs[rows], labels[rows], generator) if recipe.augment else (inputs[rows], labels[rows])


def _augmented(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images ``[n, 3, S, S]`` and labels ``[n, N, classes]`` mirrored, rolled by whole tokens, with contrast and tint redrawn."""
    count, edge = len(images), math.isqrt(labels.shape[1])
    cells, step = labels.unflatten(1, (edge, edge)), images.shape[-1] // edge
    mirror = (torch.rand(count, generator=generator) < 0.5).view(-1, 1, 1, 1)
    images, cells = torch.where(mirror, images.flip(3), images), torch.where(mirror, cells.flip(2), cells)
    down, right = torch.randint(0, edge, (2,), generator=generator).tolist()
    images, cells = images.roll((down * step, right * step), (2, 3)), cells.roll((down, right), (1, 2))
    contrast, tint = 0.2 * torch.randn(2, count, 3, 1, 1, generator=generator)
    return images * (1 + contrast) + tint, cells.flatten(1, 2)


def tokens_of(tower: Tower, inputs: Tensor, normed: bool = True) -> Tensor:
    """Tokens ``[B, N, C]`` of front-end features, with gradients, behind or in front of the tower's last norm."""
    tokens, aux = tower.embed(inputs)
    for sub in tower.subs:
        tokens = tower.join(sub, tokens, tower.run(sub, tokens, aux))
    return tower.final(tokens) if normed else tokens


def _quality(tower: Tower, reading: nn.Module, corpus: Corpus, classes: int) -> float:
    """Mean average precision of the linear reading's best token, over classes, on unseen sprites and sounds."""
    inputs, share = features_of(tower, corpus)
    with torch.no_grad():
        tokens = torch.cat([tokens_of(tower, x)[:, tower.info.class_tokens :] for x in inputs.split(128)])
        scores = reading(tokens).softmax(-1)[..., :classes].amax(1)
    return float(average_precision_score((share.amax(1) > 0.1).numpy(), scores.numpy(), average="macro"))


def recipe_of(name: str, **changes: int) -> Recipe:
    """Return a tower's recipe, with what is to be different from it."""
    return replace(RECIPES.get(name, Recipe()), **changes)


def _pretrainer(name: str) -> Callable[..., tuple[Tower, dict[str, Any]]]:
    if name != "av_llama":
        return pretrain
    from avcl.pretraining_language import pretrain_language

    return pretrain_language


def rebuild(
    recipes: Mapping[str, Recipe], workers: int, out: Path | None, say: Callable[[str], None] = print
) -> list[Path]:
    """Compose the corpora, pretrain the towers and store them with provenance; the package's own folder by default."""
    written, corpora = [], {}
    for name, recipe in recipes.items():
        wanted = recipe.scenes, recipe.held_out, recipe.classes, recipe.seed
        if wanted not in corpora:
            say(f"composing {recipe.scenes} scenes of {recipe.classes} classes")
            corpora = {wanted: (compose(recipe, "train", workers), compose(recipe, "test", workers))}
        train, held_out = corpora[wanted]
        tower, provenance = _pretrainer(name)(name, recipe, train, held_out, say)
        digest = hashlib.sha256(train.pictures.tobytes() + train.sounds.tobytes()).hexdigest()
        provenance |= {"command": f"avcl weights pretrain {name}", "corpus_sha256": digest}
        written.append(shared_backbones.save_embedded(tower, out, json.loads(json.dumps(provenance))))
        say(f"{name}: written to {written[-1]}")
    return written
