"""The report before launch: the published parameter counts to the unit and FLOPs within 1 %, on tensors without values."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from avcl_ave.cmbs import EventHead
from avcl_avqa.head import AnswerHead
from avcl_avs.head import SegmentationHead
from avcl_avs.options import SegmentationOptions
from avcl_avvp.mgn import GroupingHead
from avcl_core.batch import Batch
from avcl_core.features import FeatureSpec
from avcl_core.models.avmoe import AvMoe, AvMoeOptions
from avcl_core.ownership import Owners, own
from avcl_core.running.size import forward_flops, shapes_only
from avcl_core.walk import Ctx
from shared_backbones.registry import build
from shared_backbones.tower import Tower

AVE = {"bottleneck_norm": "batch", "uni_attention": "none"}
AVVP = {"skip": 1, "balance_weight": 2.0}
S4 = {"skip": 1, "latents": 87, "uni_attention": "temporal", "router_noise": 0.01}
MS3 = {"cross_experts": 2, "uni_experts": 2, "reduction": 2, "latents": 87, "balance_weight": 0.04}
AVQA = {"uni_experts": 2, "skip": 1, "groups": 4, "latents": 2, "uni_attention": "none"}


def masks(setting: str) -> Callable[[FeatureSpec], nn.Module]:
    return lambda spec: SegmentationHead(spec, SegmentationOptions(setting=setting, width=256, mask_size=224))


HEADS: dict[str, Callable[[FeatureSpec], nn.Module]] = {
    "ave": lambda spec: EventHead(spec, 28, 256),
    "avvp": lambda spec: GroupingHead(spec, 25, 128, True),
    "s4": masks("s4"),
    "ms3": masks("ms3"),
    "avqa": lambda spec: AnswerHead(spec, 93, 42),
}


@pytest.fixture(scope="module")
def towers() -> dict[str, Tower]:
    return {
        name: build(tower, "full", {}, device="meta") for name, tower in (("visual", "swin_v2"), ("audio", "htsat"))
    }


def model_of(towers: dict[str, Tower], task: str | None, options: dict[str, Any]) -> AvMoe:
    with torch.device("meta"):
        model = AvMoe(towers, {}, AvMoeOptions(**options))
        if task is not None:
            model.heads[task] = own(HEADS[task](model.spec()), f"head:{task}")
            model.tasks[task] = types.SimpleNamespace(plain={"negative": "visual"} if task == "avqa" else {}, texts=())  # type: ignore[assignment]
    return model


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def clip(task: str, negatives: bool) -> Batch:
    seconds = 5 if task in ("s4", "ms3") else 10
    frames = torch.zeros(1, seconds, 3, 192, 192, device="meta")
    inputs = {"visual": frames, "audio": torch.zeros(1, seconds, 1, 100 * seconds + 1, 64, device="meta")}
    if task == "avvp":
        inputs["motion"] = torch.zeros(1, seconds, 512, device="meta")
    if task == "avqa":
        inputs["question"] = torch.zeros(1, 14, dtype=torch.long, device="meta")
    if negatives:
        inputs["negative"] = frames
    return Batch(task, ("clip",), inputs)


@pytest.mark.parametrize(
    ("task", "options", "adapters", "trainable", "gigaflops", "negatives"),
    [
        ("ave", AVE, 90_549_536, 98_431_223, 842, False),
        ("ave", {**AVE, "skip": 1}, 111_996_288, 119_877_975, 885, False),
        ("avvp", AVVP, 112_724_976, 117_107_425, 905, False),
        ("s4", S4, 199_702_080, 228_752_265, 734, False),
        ("s4", {**S4, "uni_attention": "latent"}, 115_639_536, 144_689_721, 644, False),
        ("ms3", MS3, 111_142_080, 140_192_265, 685, False),
        ("avqa", AVQA, 109_841_952, 176_712_396, 863, False),
        ("avqa", AVQA, 109_841_952, 176_712_396, 1382, True),
    ],
)
def test_counts_to_the_unit_and_flops_within_one_percent(
    towers: dict[str, Tower], task: str, options: dict, adapters: int, trainable: int, gigaflops: float, negatives: bool
) -> None:
    model = model_of(towers, task, options)
    assert count(model.parts) == adapters
    assert sum(p.numel() for p in Owners(model).match().values()) == trainable
    parts = forward_flops(model, clip(task, negatives), Ctx())
    assert sum(parts.values()) == pytest.approx(gigaflops * 1e9, rel=0.01)
    seconds = 5 if task in ("s4", "ms3") else 10
    # One plain frame of Swin-V2-L costs 51.9 GF wherever it is walked, one second of HTS-AT without its front end 11.8.
    assert parts["visual"] == pytest.approx(51.9e9 * seconds * (1 + negatives), rel=0.01)
    assert parts["audio"] == pytest.approx(11.9e9 * seconds, rel=0.01)
    assert parts["other"] == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({**AVE, "cross_experts": 2, "uni_experts": 2}, 93_476_096),
        ({**AVE, "skip": 1, "cross_experts": 2, "uni_experts": 2}, 118_570_032),
        ({**AVE, "skip": 1, "uni_experts": 2}, 114_859_200),
        ({**AVE, "skip": 1, "cross_experts": 2}, 115_707_120),
        ({}, 90_961_408),
    ],
)
def test_adapters_of_other_numbers_of_experts(towers: dict[str, Tower], options: dict, expected: int) -> None:
    assert count(model_of(towers, None, options).parts) == expected


@pytest.mark.parametrize(
    ("options", "modality", "owners"),
    [
        (
            AVE, "audio",
            {"token": 19_105_280, "channel": 1_808_832, "router": 673_552, "expert:0": 208_384, "expert:1": 128_504},
        ),
        (
            AVE, "visual",
            {"token": 19_101_024, "channel": 1_811_328, "router": 1_312_528, "expert:0": 642_544, "expert:1": 482_792},
        ),
    ],
)  # fmt: skip
def test_one_list_of_adapters_by_owner(towers: dict[str, Tower], options: dict, modality: str, owners: dict) -> None:
    model = model_of(towers, None, options)
    found = dict.fromkeys(owners, 0)
    for row in Owners(model).rows.values():
        if row.kind == "parameter" and row.name.startswith(f"parts.{modality}_") and "_attn_" in row.name:
            kind = row.owner if row.owner != "shared" else row.name.split(".")[3]
            found[kind] += row.tensor.numel()
    assert found == owners


@pytest.mark.parametrize(
    ("skip", "attention", "expected"),
    [(1, "none", 1_485_632), (1, "latent", 1_501_024), (2, "none", 824_656), (2, "latent", 829_792)],
)
def test_tiny_adapters(skip: int, attention: str, expected: int) -> None:
    tiny = {
        name: build(tower, "tiny", {}, device="meta") for name, tower in (("visual", "swin_v2"), ("audio", "htsat"))
    }
    model = model_of(tiny, None, {"skip": skip, "uni_attention": attention, "latents": 8, "reduction": 4})
    assert count(model.parts) == expected


def test_towers_without_values_share_nothing_with_the_real_ones() -> None:
    tower = build("swin_v2", "tiny", {})
    before = tower.weights_digest()
    empty = shapes_only({"visual": tower})["visual"]
    assert count(empty) == count(tower)
    assert all(p.is_meta for p in empty.parameters())
    assert all(b.is_meta for b in empty.buffers())
    assert not any(p.is_meta for p in tower.parameters())
    assert tower.weights_digest() == before
