"""An imported checkpoint computes what the released model computes: the five tasks, the grounding stage, and its towers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import released_forward as forward
import released_layout as layout
import torch
from released_forward import Keys
from torch import Tensor, nn

from avcl_ave.cmbs import EventHead
from avcl_avqa.head import AnswerHead, MatchHead
from avcl_avs.head import SegmentationHead
from avcl_avs.options import SegmentationOptions
from avcl_avvp.mgn import GroupingHead
from avcl_core.batch import Batch
from avcl_core.importing.adapters import infer
from avcl_core.importing.foreign import Foreign
from avcl_core.importing.published import published
from avcl_core.importing.tensors import trained_tensors
from avcl_core.importing.towers import tower_weights
from avcl_core.models.avmoe import AvMoe, AvMoeOptions
from avcl_core.models.frozen import Frozen, FrozenOptions
from avcl_core.ownership import Owners
from avcl_core.stream import Experience
from avcl_core.walk import Ctx
from shared_backbones import create
from shared_backbones.registry import build

TOLERANCE = 1e-5
RELEASED = {"audio_placement": "after_block", "imported": True}


@dataclass
class Only:
    """A task as far as a model asks it: its head."""

    make: Any
    plain: dict[str, str] = field(default_factory=dict)

    def head(self, spec, experience) -> nn.Module:
        return self.make(spec)


@pytest.fixture(scope="module")
def towers():
    """The tiny towers, the audio batch norm drifted as in the released files."""
    visual, audio = create("swin_v2", size="tiny"), create("htsat", size="tiny")
    state = audio.net.state_dict()
    state["audio_encoder.batch_norm.running_mean"] += 0.3
    audio.net.load_state_dict(state)
    return visual, audio


def foreign_of(shapes: layout.Shapes, towers, seed: int = 0) -> Foreign:
    tensors = layout.values(shapes, seed) | layout.released_towers(*(tower.net.state_dict() for tower in towers))
    return Foreign(Path("made_up.pt"), "0" * 64, tensors)


def imported(foreign: Foreign, kind: str, make, plain: dict[str, str] | None = None) -> tuple[Any, Any]:
    """The model that the importer makes of a checkpoint, on towers that come from the checkpoint too."""
    about = published(kind)
    own: dict[Any, Any] = {"visual": build("swin_v2", "tiny", {}), "audio": build("htsat", "tiny", {})}
    for modality, tower in own.items():
        shapes = build(tower.info.name, "tiny", {}, device="meta")
        tower.net.load_state_dict(tower_weights(foreign, modality, shapes).tensors, strict=False)
    adapters = infer(foreign.tensors, own["visual"], own["audio"], "file") if about.adapters else None
    task: Any = {about.task: Only(make, plain or {})}
    if adapters is None:
        model: Any = Frozen(own, task, FrozenOptions(unnormed=("audio",)))
    else:
        model = AvMoe(own, task, AvMoeOptions(**adapters.options, **RELEASED))
    model.grow(Experience(0, about.task, about.task, (), (), ()))
    trained = trained_tensors(foreign, about, adapters, model)
    Owners(model).load(trained.state)
    return model.eval(), trained


def sample(clips: int, seconds: int) -> tuple[Tensor, Tensor]:
    """Frames ``[b, T, 3, 64, 64]`` and log-mels ``[b, T, 1, 201, 16]``."""
    generator = torch.Generator().manual_seed(5)
    frames = torch.randn(clips, seconds, 3, 64, 64, generator=generator)
    return frames, 10 * torch.randn(clips, seconds, 1, 201, 16, generator=generator) - 40


def run(model, task: str, frames: Tensor, sound: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
    batch = Batch(task, tuple(map(str, range(len(frames)))), {"visual": frames, "audio": sound, **inputs})
    with torch.no_grad():
        return model(batch, Ctx())


def expect(foreign: Foreign, released: layout.Released, towers, frames: Tensor, sound: Tensor) -> forward.Seen:
    clips, seconds = frames.shape[:2]
    with torch.no_grad():
        seen = forward.towers(
            Keys(foreign.tensors), released, *towers, frames.flatten(0, 1), sound.flatten(0, 1), seconds
        )
    unfold = lambda x: x.unflatten(0, (clips, seconds))  # noqa: E731
    return forward.Seen(unfold(seen.visual), unfold(seen.audio), [unfold(x) for x in seen.stages])


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert wanted.std() > 1e-4, "the reference is constant, so nothing is compared"
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)


def test_ave(towers) -> None:
    released = layout.Released(skip=2, latents=8, reduction=4, norm=True, spelling="moe_")
    shapes = layout.adapters(released, layout.TINY) | layout.ave_head(128, 128, 16)
    foreign = foreign_of(shapes, towers)
    model, trained = imported(foreign, "ave", lambda spec: EventHead(spec, 28, 16))
    frames, sound = sample(2, 3)
    seen = expect(foreign, released, towers, frames, sound)
    outputs = run(model, "ave", frames, sound)
    with torch.no_grad():
        for name, wanted in forward.ave(Keys(foreign.tensors), seen.visual, seen.audio).items():
            close(outputs[name], wanted)
    assert all("num_batches_tracked" in key or "layer" in key for key in trained.dropped)
    assert any(".decoder.layers.0.self_attn." in key for key in trained.dropped)


def test_avvp(towers) -> None:
    released = layout.Released(latents=8, reduction=4, self_attention="dense")
    shapes = layout.adapters(released, layout.TINY) | layout.avvp_head(128, 128, 16)
    foreign = foreign_of(shapes, towers, seed=1)
    model, trained = imported(foreign, "avvp", lambda spec: GroupingHead(spec, 25, 16, motion=True))
    frames, sound = sample(1, 10)
    motion = torch.randn(1, 10, 512, generator=torch.Generator().manual_seed(3))
    seen = expect(foreign, released, towers, frames, sound)
    outputs = run(model, "avvp", frames, sound, motion=motion)
    with torch.no_grad():
        for name, wanted in forward.avvp(Keys(foreign.tensors), seen.visual, seen.audio, motion).items():
            close(outputs[name], wanted)
    assert trained.dropped == ()


@pytest.mark.parametrize(
    ("setting", "gamma", "fusion", "released"),
    [
        (
            "s4",
            0.05,
            "clip",
            layout.Released(1, 1, 1, 7, 4, self_attention="temporal", audio_gates=False, spelling="moe_"),
        ),
        (
            "ms3",
            0.1,
            "batch",
            layout.Released(2, 2, 2, 7, 2, self_attention="latent", audio_gates=False, spelling="moe_"),
        ),
    ],
)
def test_avs(towers, setting, gamma, fusion, released) -> None:
    options = SegmentationOptions(setting=setting, width=16, mask_size=64, fusion_norm=fusion)
    foreign = foreign_of(layout.adapters(released, layout.TINY) | layout.avs_head(layout.TINY, 128, 16), towers, seed=2)
    model, trained = imported(foreign, f"avs_{setting}", lambda spec: SegmentationHead(spec, options))
    frames, sound = sample(1, 5)
    seen = expect(foreign, released, towers, frames, sound)
    logits = run(model, "avs", frames, sound)["logits"]
    with torch.no_grad():
        wanted = forward.avs(Keys(foreign.tensors), [*seen.stages[:3], seen.visual], seen.audio, gamma, 64)
        enlarged = nn.functional.interpolate(wanted, (224, 224), mode="bilinear", align_corners=False)
    close(logits, enlarged)
    for dead in ("encoder_backbone", "conv4", "x1_linear.", "temporal_attn.video_decoder", "path4.resConfUnit1"):
        assert any(key.startswith(dead) for key in trained.dropped), dead
    assert not any(key.startswith(("x1_linear_.", "path3.")) for key in trained.dropped)


@pytest.mark.parametrize("answers", [42, 50])
def test_avqa(towers, answers: int) -> None:
    released = layout.Released(1, 2, latents=2, reduction=4, groups=4, audio_gates=False)
    shapes = layout.adapters(released, layout.TINY) | layout.avqa_head(128, 128, answers)
    foreign = foreign_of(shapes, towers, seed=3)
    model, trained = imported(foreign, "avqa", lambda spec: AnswerHead(spec, 93, 42), {"negative": "visual"})
    frames, sound = sample(2, 2)
    question = torch.randint(93, (2, 14), generator=torch.Generator().manual_seed(1))
    seen = expect(foreign, released, towers, frames, sound)
    outputs = run(model, "avqa", frames, sound, question=question)
    with torch.no_grad():
        close(outputs["answer"], forward.avqa(Keys(foreign.tensors), seen.visual, seen.audio, question))
    assert {key.split(".")[0] for key in trained.dropped} == {"fc_a1_pure", "fc_a2_pure", "norm3"}


def test_grounding(towers) -> None:
    foreign = foreign_of(layout.grounding_head(128, 128), towers, seed=4)
    model, _ = imported(foreign, "grounding", MatchHead, {"negative": "visual"})
    frames, sound = sample(3, 1)
    negative = frames.flip(0)
    found = run(model, "avqa_ground", frames, sound, negative=negative)["match"]
    plain = layout.Released(skip=1)
    visual, audio = towers
    with torch.no_grad():
        heard, _ = audio.embed(sound.flatten(0, 1))
        for sub in audio.subs:
            out = audio.run(sub, heard, {})
            heard = heard + out if sub.kind in ("attn", "mlp") else out
        for half, images in enumerate((frames, negative)):
            seen = visual.encode(images.flatten(0, 1))
            pair = forward.ground(Keys(foreign.tensors), seen, heard.mean(1))
            close(found[:, half, 0], forward.match(Keys(foreign.tensors), *pair))
    assert plain.cross == 1


def test_towers_return_bit_for_bit(towers) -> None:
    """Every tensor of both towers comes back under its name; what the geometry says, and class heads, are dropped."""
    foreign = foreign_of({}, towers)
    for modality, tower in zip(("visual", "audio"), towers, strict=True):
        found = tower_weights(foreign, modality, build(tower.info.name, "tiny", {}, device="meta"))
        for name, tensor in tower.net.state_dict().items():
            assert torch.equal(found.tensors[name], tensor), name
        assert any("attn_mask" in key for key in found.dropped)
        assert any(".head." in key for key in found.dropped)
