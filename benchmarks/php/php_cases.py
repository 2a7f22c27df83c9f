"""Models, batches and objectives of PHP's benchmark: random towers with stand-in vocabularies, random clips, the tasks' own heads."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from clock import random
from php_direct_parts import gates_open
from torch import Tensor, nn
from torch.nn import functional as F

from avcl_ave.classes import CLASSES
from avcl_ave.similarity import SimilarityHead
from avcl_avqa.head import TemporalGrounding
from avcl_avqa.patches import PatchHead, TokenGrounding
from avcl_avs.options import SegmentationOptions
from avcl_avs.readout import Readout
from avcl_avs.upsampling import UpsamplingHead
from avcl_avvp.data import LLP_CLASSES
from avcl_avvp.similarity import ParsingReadout
from avcl_core.batch import Batch
from avcl_core.features import FeatureSpec
from avcl_core.models.php import Php, PhpOptions
from avcl_core.stream import Experience
from avcl_core.walk import Ctx
from shared_backbones.registry import build
from shared_backbones.tower import Tower

TASKS = ("ave", "avvp", "avqa", "avs")
TEXTS = {"ave": (*CLASSES, "background"), "avvp": (*LLP_CLASSES, "background")}
TINY = {
    "shallow": {"blocks": [0], "latents": 4, "reduction": 4},
    "mid": {"blocks": [1], "dictionary": 16, "rows": 8, "depth": 2},
    "deep": {"blocks": [2, 3], "length": 2, "pool_size": 2},
}
"""PHP on the embedded towers (php.md 10), with a generator of two layers, so that the first and the last differ."""


def seconds_of(task: str) -> int:
    """Return the number of frames and seconds of a clip."""
    return 5 if task == "avs" else 10


@cache
def shapes_of(size: str) -> dict[str, Tower]:
    """Return towers without values; nothing changes them, so all models that are only counted share them."""
    return towers_of(size, torch.device("meta"))


def towers_of(size: str, device: torch.device) -> dict[str, Tower]:
    """Return CLIP and CLAP with random weights and, at full size, a vocabulary without meaning."""
    words = {"tokenizer": "stand-in"} if size == "full" else {}
    where = "meta" if device.type == "meta" else "cpu"
    return {
        name: build(tower, size, words, device=where).to(device)
        for name, tower in (("visual", "clip_vit"), ("audio", "clap"))
    }


def model_of(size: str, device: torch.device, tasks: tuple[str, ...] = TASKS, **changes: Any) -> Php:
    """Return a model that knows the tasks; gates are open, so that everything reaches the result; nothing is dropped."""
    torch.manual_seed(0)
    known = {name: _task(name, size) for name in tasks}
    options = PhpOptions(**({**TINY, **changes} if size == "tiny" else changes))
    towers = dict(shapes_of(size)) if device.type == "meta" else towers_of(size, device)
    with torch.device(device):
        model = Php(towers, known, options)  # type: ignore[arg-type]
        for index, name in enumerate(tasks):
            model.grow(experience(name, index))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    if device.type != "meta":
        gates_open(model)
    return model


def experience(task: str, index: int = 0) -> Experience:
    """Return a task as one experience, of which only the names matter."""
    return Experience(index, task, task, (), (), ())


def batch_of(task: str, size: str, clips: int, device: torch.device) -> Batch:
    """Return random clips as the tower's front ends deliver them, log-mels from the cache."""
    count = seconds_of(task)
    edge, mels, frames = (224, 64, 1001) if size == "full" else (32, 16, 101)
    inputs: dict[str, Tensor] = {
        "visual": random(clips, count, 3, edge, edge, device=device),
        "audio": random(clips, count, 1, frames, mels, device=device, seed=1) * 20 - 40,
    }
    if task == "avqa":
        inputs["question"] = torch.arange(14, device=device).expand(clips, 14)
    return Batch(task, tuple(str(i) for i in range(clips)), inputs, experience=task)


def context(batch: Batch, training: bool = False) -> Ctx:
    """Return a fresh context."""
    return Ctx((str(batch.experience),) * len(batch), training=training)


def score(outputs: dict[str, Tensor], aux: dict[str, Tensor]) -> Tensor:
    """Return a loss that every output and every term reaches."""
    terms = [1e-2 * value.square().mean() for value in outputs.values() if value.is_floating_point()]
    return torch.stack([*terms, *aux.values()]).sum()


def learning(model: Php, task: str) -> list[nn.Parameter]:
    """Let exactly what a task teaches take gradients, and return it."""
    from avcl_core.ownership import Owners

    owners, patterns = Owners(model), model.active(experience(task))
    owners.set_trainable(patterns)
    return list(owners.match(patterns).values())


@contextmanager
def direct_heads(model: nn.Module) -> Iterator[None]:
    """Let the answer head make keys and values of every token (3.8), and the segmentation head hold all channels of Φ at once and
    weigh them by the sound before they are added up (3.9)."""

    def read_out(readout: Readout, maps: Tensor, sound: Tensor, frames: int) -> Tensor:
        phi = F.relu(readout.norm(readout.conv(maps), frames))
        heard = (phi * sound[:, :, None, None]).sum(1, keepdim=True)
        return F.conv2d(phi * heard, readout.out.weight[:, :, None, None], readout.out.bias).squeeze(1)

    readouts = [module for module in model.modules() if isinstance(module, Readout)]
    for readout in readouts:
        readout.__dict__["forward"] = lambda maps, sound, frames, readout=readout: read_out(
            readout, maps, sound, frames
        )
    groundings = [module for module in model.modules() if isinstance(module, TokenGrounding)]
    for grounding in groundings:
        grounding.__dict__["attend"] = partial(TemporalGrounding.attend, grounding)
    try:
        yield
    finally:
        for readout in readouts:
            del readout.__dict__["forward"]
        for grounding in groundings:
            del grounding.__dict__["attend"]


def _task(name: str, size: str) -> Any:
    """What a model asks of a task."""
    return types.SimpleNamespace(
        name=name, texts=TEXTS.get(name, ()), plain={}, head=lambda spec, _: HEADS[name](spec, size), widen=lambda h, _: h
    )  # fmt: skip


def _masks(spec: FeatureSpec, size: str) -> nn.Module:
    width, edge = (256, 224) if size == "full" else (32, 32)
    return UpsamplingHead(spec, SegmentationOptions(head="upsampling", width=width, mask_size=edge))


HEADS: dict[str, Callable[[FeatureSpec, str], nn.Module]] = {
    "ave": lambda spec, size: SimilarityHead(spec),
    "avvp": lambda spec, size: ParsingReadout(spec),
    "avqa": lambda spec, size: PatchHead(spec, 93, 42),
    "avs": _masks,
}
