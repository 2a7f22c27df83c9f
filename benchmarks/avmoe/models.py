"""Models, batches and objectives of the benchmark: random towers, random clips, the task's head, no data set."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from clock import random
from torch import Tensor, nn

from avcl_ave.cmbs import EventHead
from avcl_avqa.head import AnswerHead
from avcl_avs.head import SegmentationHead
from avcl_avs.options import SegmentationOptions
from avcl_avvp.mgn import GroupingHead
from avcl_core.batch import Batch
from avcl_core.features import FeatureSpec
from avcl_core.models.avmoe import AvMoe, AvMoeOptions
from avcl_core.ownership import own
from avcl_core.walk import Ctx
from shared_backbones.registry import build
from shared_backbones.tower import Tower

PRESETS: dict[str, dict[str, Any]] = {
    "ave": {"bottleneck_norm": "batch", "uni_attention": "none"},
    "avvp": {"skip": 1, "balance_weight": 2.0},
    "s4": {"skip": 1, "latents": 87, "uni_attention": "temporal", "router_noise": 0.01},
    "ms3": {
        "cross_experts": 2,
        "uni_experts": 2,
        "reduction": 2,
        "latents": 87,
        "router_noise": 0.01,
        "balance_weight": 0.04,
    },
    "avqa": {"uni_experts": 2, "skip": 1, "groups": 4, "latents": 2, "uni_attention": "none"},
}
"""The models of avmoe.md 3.8."""
TINY = {"reduction": 4, "latents": 8, "groups": 2}
SECONDS = {"s4": 5, "ms3": 5}


def towers_of(size: str, device: torch.device) -> dict[str, Tower]:
    """Return Swin-V2 and HTS-AT with random weights."""
    where = "meta" if device.type == "meta" else "cpu"
    return {
        m: build(name, size, {}, device=where).to(device) for m, name in (("visual", "swin_v2"), ("audio", "htsat"))
    }


def model_of(task: str, size: str, device: torch.device, **changes: Any) -> AvMoe:
    """Return a task's model with its head; gates are open, so that everything reaches the result."""
    torch.manual_seed(0)
    options = PRESETS[task] | (TINY if size == "tiny" else {}) | changes
    towers = towers_of(size, device)
    with torch.device(device):
        model = AvMoe(towers, {}, AvMoeOptions(**options))
        model.heads[task] = own(HEADS[task](model.spec(), size), f"head:{task}")
    model.tasks[task] = types.SimpleNamespace(plain={"negative": "visual"} if task == "avqa" else {}, texts=())  # type: ignore[assignment]
    for name, parameter in model.named_parameters():
        if name.endswith(("output_gate", "inner_gate")) and device.type != "meta":
            nn.init.constant_(parameter, 0.1)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0  # its draws depend on how it is computed
    return model


def batch_of(
    task: str, size: str, clips: int, device: torch.device, negatives: bool = False, training: bool = False
) -> Batch:
    """Return random clips as the tower's front ends deliver them."""
    seconds = SECONDS.get(task, 10)
    edge, mels = (192, 64) if size == "full" else (64, 16)
    frames = 1 + 100 * (seconds if size == "full" else 2)  # the tiny tower takes each second twice
    inputs: dict[str, Tensor] = {
        "visual": random(clips, seconds, 3, edge, edge, device=device),
        "audio": random(clips, seconds, 1, frames, mels, device=device, seed=1) * 20 - 40,
    }
    if task == "avvp":
        inputs["motion"] = random(clips, seconds, 512, device=device, seed=2)
    if task == "avqa":
        inputs["question"] = torch.arange(14, device=device).expand(clips, 14)
        if negatives:
            inputs["negative"] = random(clips, seconds, 3, edge, edge, device=device, seed=3)
    seeds = tuple(range(clips)) if training else ()
    return Batch(task, tuple(str(i) for i in range(clips)), inputs, experience=None, seeds=seeds)


def context(batch: Batch, training: bool = False) -> Ctx:
    """Return a fresh context."""
    return Ctx(training=training)


def objective(model: AvMoe, batch: Batch, training: bool) -> Tensor:
    """Return a loss that every output and every auxiliary term reaches."""
    ctx = context(batch, training)
    outputs = model(batch, ctx)
    terms = [value.float().square().mean() for value in outputs.values() if value.is_floating_point()]
    return torch.stack([*terms, *ctx.aux.values()]).sum()


def _masks(setting: str) -> Callable[[FeatureSpec, str], nn.Module]:
    def make(spec: FeatureSpec, size: str) -> nn.Module:
        width, edge = (256, 224) if size == "full" else (32, 64)
        options = SegmentationOptions(setting=setting, width=width, mask_size=edge, fusion_norm="clip")  # type: ignore[arg-type]
        return SegmentationHead(spec, options)

    return make


HEADS: dict[str, Callable[[FeatureSpec, str], nn.Module]] = {
    "ave": lambda spec, size: EventHead(spec, 28, 256 if size == "full" else 64),
    "avvp": lambda spec, size: GroupingHead(spec, 25, 128 if size == "full" else 32, True),
    "s4": _masks("s4"),
    "ms3": _masks("ms3"),
    "avqa": lambda spec, size: AnswerHead(spec, 93, 42),
}
