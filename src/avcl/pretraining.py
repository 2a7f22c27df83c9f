"""Pretrains the tiny towers that ship with the package, on procedural classes that no task uses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import shared_backbones
from avcl_core.data.pool import run_jobs
from avcl_core.seeding import derive, torch_generator
from avcl_core.world.composer import SceneBuilder, other_classes
from avcl_core.world.procedural import procedural
from avcl_core.world.render import frames, sound_track
from avcl_core.world.seeds import rng_for
from shared_backbones.tower import Tower

TOWERS = ("swin_v2", "clip_vit", "resnet18", "htsat", "clap")
RATE = 32_000
SECONDS = 2
PIXELS = 96


@dataclass(frozen=True)
class Recipe:
    """How the tiny towers are pretrained; part of the weights' provenance.

    Attributes:
        scenes: two-second scenes to learn from; each gives two frames and two one-second sounds.
        held_out: scenes of unseen sprites and sounds, on which the reported score is measured.
    """

    scenes: int = 6000
    held_out: int = 400
    epochs: int = 8
    batch: int = 64
    lr: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Corpus:
    """Frames uint8 ``[n, S, S, 3]``, sounds float32 ``[n, RATE]`` and, per second, which classes are seen and heard."""

    pictures: np.ndarray
    sounds: np.ndarray
    seen: np.ndarray
    heard: np.ndarray


def compose(recipe: Recipe, split: str, workers: int) -> Corpus:
    """Compose the corpus of a split of the pretraining bank."""
    count = recipe.scenes if split == "train" else recipe.held_out
    jobs = [(recipe.seed, split, index) for index in range(count)]
    found = dict(run_jobs(_scene, jobs, workers))
    parts = [np.concatenate([found[i][part] for i in range(count)]) for part in range(4)]
    return Corpus(*parts)


def _scene(job: tuple[int, str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    seed, split, index = job
    bank = procedural(family="pretrain")
    rng = rng_for(seed, "pretraining", split, index)
    builder = SceneBuilder(bank, split, rng, seconds=SECONDS, size=PIXELS)
    for cls in other_classes(rng, bank.classes, int(rng.integers(1, 3))):
        # Each source is seen and heard independently, so that neither modality can be told from the other.
        visible = [(0, SECONDS)] if rng.random() < 0.85 else []
        audible = [(0, SECONDS)] if rng.random() < 0.85 else []
        builder.add(cls, visible=visible, audible=audible)
    scene = builder.scene(f"p{index:08d}")
    labels = {
        name: np.stack([[getattr(scene, name)(cls)[s] for cls in bank.classes] for s in range(SECONDS)])
        for name in ("visible", "audible")
    }
    pictures = frames(scene, bank, times=np.arange(SECONDS) + 0.5)
    return pictures, sound_track(scene, bank, RATE).reshape(SECONDS, RATE), labels["visible"], labels["audible"]


def pretrain(
    name: str, recipe: Recipe, train: Corpus, held_out: Corpus, say: Callable[[str], None] = print
) -> tuple[Tower, dict[str, Any]]:
    """Pretrain one tiny tower and return it with its provenance.

    Towers without text learn which classes a picture or sound shows (multi-label); towers with text learn to match it with
    the classes' names, so that their two sides share a space.
    """
    torch.manual_seed(derive(recipe.seed, "pretraining", name))
    tower = shared_backbones.create(name, size="tiny", pretrained=False, seed=recipe.seed)
    tower.set_trainable(True)
    classes = procedural(family="pretrain").classes
    reader = _TextReader(tower, classes) if tower.text is not None else _LinearReader(tower.info.width, len(classes))
    data, test = (_features(tower, corpus) for corpus in (train, held_out))
    parameters = [*tower.net.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=0.05)
    steps = recipe.epochs * -(-len(data[0]) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps, pct_start=0.1)
    for epoch in range(recipe.epochs):
        tower.train()
        total = 0.0
        for inputs, labels in _batches(*data, recipe, epoch):
            loss = nn.functional.binary_cross_entropy_with_logits(reader(tower, _tokens(tower, inputs)), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss)
        say(f"{name}: epoch {epoch + 1}/{recipe.epochs}, loss {total / (steps / recipe.epochs):.4f}")
    tower.set_trainable(False)
    with torch.no_grad():
        scores = torch.cat([reader(tower, _tokens(tower, x)) for x in test[0].split(128)])
    quality = {"held_out_mean_average_precision": round(_mean_average_precision(scores, test[1]), 4)}
    say(f"{name}: {quality}")
    return tower, {"recipe": asdict(recipe), "bank": "procedural-pretrain", "classes": len(classes), **quality}


class _LinearReader(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, tower: Tower, tokens: Tensor) -> Tensor:
        return self.linear(tokens.mean(1))


class _TextReader(nn.Module):
    """Scaled cosine between a sample and the name of each class (CLIP), read as independent labels (SigLIP)."""

    def __init__(self, tower: Tower, classes: Sequence[str]) -> None:
        super().__init__()
        assert tower.text is not None
        self.ids = tower.text.crop(tower.text.tokenize([name.replace("-", " ") for name in classes]))
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def forward(self, tower: Tower, tokens: Tensor) -> Tensor:
        assert tower.text is not None
        names = tower.text.forward_embeddings(tower.text.token_embeddings(self.ids), self.ids)
        own = nn.functional.normalize(tower.project(tokens), dim=-1)
        return self.scale.exp() * own @ nn.functional.normalize(names, dim=-1).T + self.bias


def _features(tower: Tower, corpus: Corpus) -> tuple[Tensor, Tensor]:
    """Front-end features and labels of a corpus for one tower."""
    info = tower.info
    if info.modality == "visual":
        pictures = torch.from_numpy(corpus.pictures).permute(0, 3, 1, 2).float().div_(255)
        assert info.image_size is not None and info.mean is not None and info.std is not None  # noqa: PT018
        resized = nn.functional.interpolate(
            pictures, (info.image_size, info.image_size), mode="bicubic", antialias=True
        ).clamp_(0, 1)
        mean, std = torch.tensor(info.mean).view(3, 1, 1), torch.tensor(info.std).view(3, 1, 1)
        return (resized - mean) / std, torch.from_numpy(corpus.seen).float()
    import torchaudio

    assert info.sample_rate is not None
    parts = []
    for wave in torch.from_numpy(corpus.sounds).split(256):
        if info.sample_rate != RATE:
            wave = torchaudio.functional.resample(wave, RATE, info.sample_rate)
        parts.append(tower.frontend(wave))
    return torch.cat(parts), torch.from_numpy(corpus.heard).float()


def _batches(inputs: Tensor, labels: Tensor, recipe: Recipe, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(inputs), generator=torch_generator(recipe.seed, "order", epoch))
    for rows in order.split(recipe.batch):
        yield inputs[rows], labels[rows]


def _tokens(tower: Tower, inputs: Tensor) -> Tensor:
    tokens, aux = tower.embed(inputs)
    for sub in tower.subs:
        out = tower.run(sub, tokens, aux)
        tokens = tokens + out if sub.kind in ("attn", "mlp") else out
    return tower.final(tokens)


def _mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels.numpy(), scores.numpy(), average="macro"))


def rebuild(
    towers: Sequence[str], recipe: Recipe, workers: int, out: Path | None, say: Callable[[str], None] = print
) -> list[Path]:
    """Compose the corpus, pretrain ``towers`` and store them with provenance; the package's own folder by default."""
    say(f"composing {recipe.scenes} scenes")
    train, held_out = compose(recipe, "train", workers), compose(recipe, "test", workers)
    digest = hashlib.sha256(train.pictures.tobytes() + train.sounds.tobytes()).hexdigest()
    written = []
    for name in towers:
        tower, provenance = pretrain(name, recipe, train, held_out, say)
        provenance |= {"command": f"avcl weights pretrain {name}", "corpus_sha256": digest}
        written.append(shared_backbones.save_embedded(tower, out, json.loads(json.dumps(provenance))))
        say(f"{name}: written to {written[-1]}")
    return written
