"""Keys and shapes say what a checkpoint is; one that does not fit is refused, and the message names the key."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import released_layout as layout
import torch
from torch import Tensor, nn

from avcl_ave.cmbs import EventHead
from avcl_avqa.head import AnswerHead
from avcl_core.config.run import TowerOptions
from avcl_core.errors import ConfigError, IntegrityError
from avcl_core.importing.adapters import Adapters, infer, is_adapter
from avcl_core.importing.foreign import Foreign, read_foreign
from avcl_core.importing.keymap import KeyMap, Reader
from avcl_core.importing.published import published, published_names
from avcl_core.importing.tensors import trained_tensors
from avcl_core.importing.towers import differing, shape_of, tower_weights
from avcl_core.models.avmoe import AvMoe, AvMoeOptions
from avcl_core.ownership import Owners
from avcl_core.stream import Experience
from shared_backbones.registry import build
from shared_backbones.tower import Tower


@pytest.fixture(scope="module")
def full() -> tuple[Tower, Tower]:
    return build("swin_v2", "full", {}, device="meta"), build("htsat", "full", {}, device="meta")


@pytest.fixture(scope="module")
def tiny() -> tuple[Tower, Tower]:
    return build("swin_v2", "tiny", {}, device="meta"), build("htsat", "tiny", {}, device="meta")


def count(shapes: layout.Shapes) -> int:
    """Parameters: no running statistics."""
    return sum(math.prod(s) for n, s in shapes.items() if not re.search(r"running_|num_batches", n))


@pytest.mark.parametrize(
    ("released", "size", "wanted"),
    [
        (layout.AVE, 90_549_536, {"skip": 2, "bottleneck_norm": "batch", "uni_attention": "none", "latents": 32}),
        (replace(layout.AVE, skip=1), 111_996_288, {"skip": 1}),
        (replace(layout.AVE, skip=1, cross=2, uni=2), 118_570_032, {"cross_experts": 2, "uni_experts": 2}),
        (replace(layout.AVE, skip=1, uni=2), 114_859_200, {"cross_experts": 1, "uni_experts": 2}),
        (layout.AVVP, 111_877_104, {"skip": 1, "bottleneck_norm": "none", "uni_attention": "dense"}),
        (layout.S4, 199_702_032, {"latents": 87, "uni_attention": "temporal", "reduction": 8, "groups": 2}),
        (layout.MS3, 111_142_016, {"latents": 87, "uni_attention": "latent", "reduction": 2, "skip": 2}),
        (layout.AVQA, 109_841_880, {"latents": 2, "groups": 4, "uni_experts": 2}),
    ],
)
def test_released_models_are_recognised(full, released: layout.Released, size: int, wanted: dict[str, Any]) -> None:
    """Sizes are those that the released models have (avmoe.md 3.7), to the parameter, so the keys are all there."""
    shapes = layout.adapters(released, layout.FULL)
    assert count(shapes) == size
    found = infer(layout.meta(shapes), *full, "file")
    assert wanted.items() <= found.options.items()
    assert found.gates == {"audio": released.audio_gates, "visual": True}
    AvMoeOptions(**found.options, imported=True)


def test_heads_have_the_released_sizes() -> None:
    assert count(layout.ave_head(1536, 768)) == 12_071_554 + 21_845
    assert count(layout.avvp_head(1536, 768)) == 4_382_449
    assert count(layout.avqa_head(1536, 768)) == 70_415_532
    assert count(layout.grounding_head(1536, 768)) == 10_000_002
    temporal = {k: v for k, v in layout.avs_head(layout.FULL, 768).items() if k.startswith("temporal_attn")}
    assert count(temporal) == 42_910_728


def test_smaller_visual_tower_is_recognised(full) -> None:
    base = build("swin_v2", "full", {"variant": "base"}, device="meta")
    shapes = layout.adapters(layout.AVE, layout.BASE)
    assert count(shapes) == 86_134_176
    assert infer(layout.meta(shapes), base, full[1], "file").options["reduction"] == 8


RELEASED = layout.Released(skip=2, latents=8, reduction=4, norm=True, spelling="moe_")


def made(released: layout.Released = RELEASED) -> dict[str, Tensor]:
    return layout.values(layout.adapters(released, layout.TINY))


A = "audio_moe_adapter_blocks_p1.0."
ADAPTER_FAULTS = {
    "no adapters": (lambda t: {}, r"audio_moe_adapter_blocks_p1\.0\.fc\.weight is missing"),
    "a list is short": (
        lambda t: {k: v for k, v in t.items() if not k.startswith("vis_moe_adapter_blocks_p2.3.")},
        r"vis_…adapter_blocks_p2\.3 is missing",
    ),
    "a list is long": (
        lambda t: t | {k.replace("_p1.3.", "_p1.4."): v for k, v in t.items() if "audio" in k and "_p1.3." in k},
        r"adapter_blocks_p\d\.4 is missing",
    ),
    "no such number of pairs": (
        lambda t: {k: v for k, v in t.items() if not re.search(r"_p\d\.3\.", k)},
        r"audio_moe_adapter_blocks_p1\.2\.\*: 3 adapters in a list; with these towers expected one of \[4, 6, 8\]",
    ),
    "other towers": (
        lambda t: t | {f"{A}conv_adapter.weight": torch.zeros(256, 64, 1, 1)},
        r"audio_moe_adapter_blocks_p1\.0\.conv_adapter\.weight maps \(64,\) tokens to \(256,\)",
    ),
    "no mixer": (
        lambda t: {k: v for k, v in t.items() if k != f"{A}conv_adapter.weight"},
        r"audio_moe_adapter_blocks_p1\.0\.conv_adapter\.weight is missing",
    ),
    "two spellings": (
        lambda t: t | {"audio_adapter_blocks_p1.0.fc.weight": torch.zeros(16, 16)},
        r"audio_adapter_blocks_p1\.0\.fc\.weight: both spellings",
    ),
    "one more expert": (
        lambda t: t | {k.replace("experts.0.", "experts.1."): v for k, v in t.items() if k.startswith(A + "multi")},
        r"cross_experts 1, but 2 in audio_moe_adapter_blocks_p1\.0\.\*",
    ),
    "experts have gaps": (
        lambda t: {k.replace(f"{A}multimodal_experts.0.", f"{A}multimodal_experts.2."): v for k, v in t.items()},
        r"audio_moe_adapter_blocks_p1\.0\.multimodal_experts has the numbers \[2\]",
    ),
    "a gate is missing": (
        lambda t: {k: v for k, v in t.items() if k != f"{A}singlemodal_experts.0.gate"},
        "only some experts of the audio adapters have a gate",
    ),
    "a batch norm is missing": (
        lambda t: {k: v for k, v in t.items() if not k.startswith(f"{A}singlemodal_experts.0.bn1")},
        r"audio_moe_adapter_blocks_p1\.0\.\*: experts differ in bn1\.weight",
    ),
    "bottleneck does not divide": (
        lambda t: t | {f"{A}multimodal_experts.0.down_sampler.weight": torch.zeros(5, 8, 1, 1)},
        r"audio_moe_adapter_blocks_p1\.0\.multimodal_experts\.0\.down_sampler\.weight is 5×8, but the adapter is 16 wide",
    ),
    "no bottleneck": (
        lambda t: {k: v for k, v in t.items() if k != f"{A}multimodal_experts.0.down_sampler.weight"},
        r"audio_moe_adapter_blocks_p1\.0\.multimodal_experts\.0\.down_sampler\.weight is missing",
    ),
    "no experts": (
        lambda t: {k: v for k, v in t.items() if not (k.startswith(A) and "experts" in k)},
        r"audio_moe_adapter_blocks_p1\.0\.multimodal_experts\.0 is missing",
    ),
    "two kinds of attention": (
        lambda t: t | {f"{A}singlemodal_experts.0.my_tokens": torch.zeros(8, 16)},
        r"audio_moe_adapter_blocks_p1\.0\.singlemodal_experts has my_tokens; expected",
    ),
    "one adapter attends": (
        lambda t: t | {f"{A}singlemodal_experts.0.gate_av": torch.zeros(1)},
        "uni_attention none, but dense in audio_moe_adapter_blocks_p1",
    ),
    "latents differ": (
        lambda t: t | {f"{A}multimodal_experts.0.my_tokens": torch.zeros(9, 16)},
        r"latents 8, but 9 in audio_moe_adapter_blocks_p1\.0\.\*",
    ),
}


@pytest.mark.parametrize("name", ADAPTER_FAULTS)
def test_adapters_that_do_not_fit_are_refused(tiny, name: str) -> None:
    change, says = ADAPTER_FAULTS[name]
    with pytest.raises(IntegrityError, match=says):
        infer(change(made()), *tiny, "file")


# ---------------------------------------------------------------------- into a model
class Head:
    def __init__(self, make) -> None:
        self.make, self.plain = make, {}

    def head(self, spec, experience) -> nn.Module:
        return self.make(spec)


def model_of(kind: str, make, released: layout.Released, native: bool = False) -> tuple[AvMoe, Adapters]:
    own: dict[Any, Any] = {"visual": build("swin_v2", "tiny", {}), "audio": build("htsat", "tiny", {})}
    adapters = infer(made(released), own["visual"], own["audio"], "file")
    options = adapters.options | (
        {"uni_attention": "latent"} if native else {"audio_placement": "after_block", "imported": True}
    )
    task: Any = {kind: Head(make)}
    model = AvMoe(own, task, AvMoeOptions(**options))
    model.grow(Experience(0, kind, kind, (), (), ()))
    return model, adapters


@pytest.fixture(scope="module")
def ave() -> tuple[AvMoe, Adapters]:
    return model_of("ave", lambda spec: EventHead(spec, 28, 16), RELEASED)


def load(model: AvMoe, adapters: Adapters, tensors: dict[str, Tensor], kind: str = "ave", native: bool = False):
    return trained_tensors(Foreign(Path("made_up.pt"), "0" * 64, tensors), published(kind), adapters, model, native)


def ave_tensors() -> dict[str, Tensor]:
    return made(RELEASED) | layout.values(layout.ave_head(128, 128, 16))


TENSOR_FAULTS = {
    "unknown": (
        lambda t: t | {"temporal_attn.extra.weight": torch.zeros(2, 3), "zzz": torch.zeros(1)},
        r"made_up\.pt: temporal_attn\.extra\.weight 2×3 and 1 more: the published layout has no such key",
    ),
    "missing in the head": (
        lambda t: {k: v for k, v in t.items() if k != "CMBS.video_cas.bias"},
        r"CMBS\.video_cas\.bias is missing; expected 28 for heads\.ave\.clip\.visual_scores\.bias",
    ),
    "missing in an adapter": (
        lambda t: {k: v for k, v in t.items() if k != f"{A}router.4.weight"},
        r"audio_moe_adapter_blocks_p1\.0\.router\.4\.weight is missing; expected 2×32",
    ),
    "no inner gate": (
        lambda t: {k: v for k, v in t.items() if k != f"{A}multimodal_experts.0.gate_av"},
        r"multimodal_experts\.0\.gate_av is missing",
    ),
    "no norm before": (
        lambda t: {k: v for k, v in t.items() if k != f"{A}multimodal_experts.0.ln_before.weight"},
        r"multimodal_experts\.0\.ln_before\.weight is missing",
    ),
    "shape": (
        lambda t: t | {"CMBS.video_cas.weight": torch.zeros(29, 16)},
        r"CMBS\.video_cas\.weight 29×16; expected 28×16 for heads\.ave\.clip\.visual_scores\.weight",
    ),
    "transposed": (
        lambda t: t | {"CMBS.localize_module.classifier.weight": torch.zeros(16, 1)},
        r"CMBS\.localize_module\.classifier\.weight 16×1; expected 1×16",
    ),
    "not finite": (
        lambda t: t | {"temporal_attn.a_fc.bias": torch.full((8,), math.nan)},
        r"temporal_attn\.a_fc\.bias has values that are not finite",
    ),
}


@pytest.mark.parametrize("name", TENSOR_FAULTS)
def test_tensors_that_do_not_fit_are_refused(ave, name: str) -> None:
    change, says = TENSOR_FAULTS[name]
    with pytest.raises(IntegrityError, match=says):
        load(*ave, change(ave_tensors()))


def test_missing_gate_is_one(ave) -> None:
    model, adapters = ave
    tensors = {k: v for k, v in ave_tensors().items() if not (k.startswith("audio") and k.endswith(".gate"))}
    state = load(model, adapters, tensors).state
    assert set(state) == set(Owners(model).state())
    gates = {n: v for n, v in state.items() if n.endswith("output_gate")}
    assert {float(v) for n, v in gates.items() if n.startswith("parts.audio")} == {1.0}
    assert all(abs(float(v)) != 1.0 for n, v in gates.items() if n.startswith("parts.visual"))
    first = tensors["vis_moe_adapter_blocks_p1.0.multimodal_experts.0.gate"]
    assert gates["parts.visual_0_attn_add.experts.0.output_gate"] == first.squeeze()


def test_pairs_without_adapters_are_counted(ave) -> None:
    """Skip 2 keeps stages 0 and 2: the third adapter of a list stands at pair 4."""
    model, adapters = ave
    tensors = ave_tensors()
    state = load(model, adapters, tensors).state
    wanted = tensors["audio_moe_adapter_blocks_p2.2.fc.weight"]
    assert torch.equal(state["parts.audio_4_mlp_add.align.channel.weight"], wanted)


def test_fifty_answers_keep_the_first(tiny) -> None:
    released = layout.Released(1, 2, latents=2, reduction=4, groups=4, audio_gates=False)
    model, adapters = model_of("avqa", lambda spec: AnswerHead(spec, 93, 42), released)
    for rows, fits in ((42, True), (50, True), (43, False), (41, False)):
        tensors = made(released) | layout.values(layout.avqa_head(128, 128, rows))
        if fits:
            state = load(model, adapters, tensors, "avqa").state
            assert torch.equal(state["heads.avqa.answer.weight"], tensors["fc_ans.weight"][:42])
        else:
            with pytest.raises(IntegrityError, match=r"fc_ans\.weight .*expected 42×128"):
                load(model, adapters, tensors, "avqa")


def test_native_form_has_latent_for_dense_attention() -> None:
    released = layout.Released(latents=8, reduction=4, self_attention="dense")
    model, adapters = model_of("ave", lambda spec: EventHead(spec, 28, 16), released, native=True)
    tensors = made(released) | layout.values(layout.ave_head(128, 128, 16))
    trained = load(model, adapters, tensors, native=True)
    own = Owners(model).state()
    unimodal = "parts.audio_0_attn_add.experts.1"
    assert torch.equal(trained.state[f"{unimodal}.latents"], own[f"{unimodal}.latents"])
    assert trained.state[f"{unimodal}.inner_gate"] == 0
    cross = tensors["audio_adapter_blocks_p1.0.multimodal_experts.0.gate_av"]
    assert trained.state["parts.audio_0_attn_add.experts.0.inner_gate"] == cross.squeeze()
    assert "audio_adapter_blocks_p1.0.singlemodal_experts.0.gate_av" in trained.dropped
    assert f"{unimodal}.latents" in trained.fresh


def test_another_methods_adapters_are_read_for_ave_alone(tiny) -> None:
    other = {"audio_adapter_blocks_p1.0.down_sampler.weight": torch.zeros(4, 8, 1, 1)}
    assert published("ave").foreign_adapters
    assert not any(published(name).foreign_adapters for name in published_names() if name != "ave")
    lists = {
        f"{m}_adapter_blocks_{p}.{i}.fc.weight": torch.zeros(2, 2)
        for m in ("audio", "vis")
        for p in ("p1", "p2")
        for i in range(8)
    }
    assert all(is_adapter(key) for key in [*other, *lists])
    with pytest.raises(IntegrityError, match=r"adapter_blocks_p1\.0\.conv_adapter\.weight is missing"):
        infer(lists, *tiny, "file")


# ---------------------------------------------------------------------- files, towers, names
def test_tower_that_does_not_fit_is_refused(tiny) -> None:
    given = {f"swin.{name}": torch.zeros(t.shape) for name, t in tiny[0].net.state_dict().items()}
    given["swin.norm.weight"] = torch.zeros(7)
    del given["swin.patch_embed.proj.bias"]
    given["swin.more"] = torch.zeros(1)
    with pytest.raises(
        IntegrityError,
        match=r"swin\.\*.*missing 1 keys: patch_embed\.proj\.bias.*unknown 1 keys: more.*norm\.weight \(7,\)",
    ):
        tower_weights(Foreign(Path("x"), "", given), "visual", tiny[0])
    assert tower_weights(Foreign(Path("x"), "", given), "audio", tiny[1]).tensors == {}
    with pytest.raises(IntegrityError, match="swin_v2"):
        shape_of("visual", TowerOptions(name="clip_vit"))


def test_without_the_configured_file_nothing_is_compared(tmp_path: Path) -> None:
    options = TowerOptions(name="swin_v2", size="full", checkpoint=tmp_path / "not_here.pth")
    foreign = Foreign(Path("x"), "", {})
    assert (
        differing(tower_weights(foreign, "visual", build("swin_v2", "tiny", {}, device="meta")), "visual", options)
        is None
    )


def test_files_are_read_by_a_process_that_admits_tensors_only(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"module.a.weight": torch.ones(2), "module.b": Hostile()}, tmp_path / "file.pt")
    found = read_foreign(tmp_path / "file.pt")
    assert list(found.tensors) == ["a.weight"]
    assert not (tmp_path / "ran").exists()
    with pytest.raises(IntegrityError, match="no such file"):
        read_foreign(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(IntegrityError, match=r"text\.pt: neither safetensors nor a torch file"):
        read_foreign(tmp_path / "text.pt")


def test_kinds_of_checkpoints() -> None:
    assert published_names() == ["ave", "avqa", "avs_ms3", "avs_s4", "avvp", "grounding"]
    assert [name for name in published_names() if published(name).selected_on_test] == ["ave", "avs_ms3", "avs_s4"]
    with pytest.raises(ConfigError, match="did you mean 'avs_s4'"):
        published("avs_s5")


def test_tensor_of_ours_that_the_layout_does_not_have() -> None:
    with pytest.raises(IntegrityError, match=r"nothing for heads\.ave\.segments\.weight"):
        Reader("file", {}).take({"heads.ave.segments.weight": torch.zeros(1)}, KeyMap([]).keys)
