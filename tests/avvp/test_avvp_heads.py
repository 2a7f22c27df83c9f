"""Both AVVP heads: golden parameter counts, shapes, equations, any batch size, motion features, missing towers."""

import pytest
import torch
from torch import Tensor, nn

from avcl_avvp.mgn import GroupingHead
from avcl_avvp.mmil import PoolingHead
from avcl_avvp.segments import SegmentFeatures
from avcl_core.batch import Batch
from avcl_core.features import Features, FeatureSpec, TokenShape

FULL = FeatureSpec({"visual": TokenShape((6, 6), 1536), "audio": TokenShape((8, 8), 768)}, {})
SMALL = FeatureSpec({"visual": TokenShape((2, 2), 12), "audio": TokenShape((1, 3), 7)}, {})
HEADS = {"mgn": GroupingHead, "mmil": PoolingHead}


def count(*parts: nn.Module | nn.Parameter) -> int:
    tensors = [p for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())]
    return sum(tensor.numel() for tensor in tensors)


def randomised(head: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    head = head.double().eval()
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return head


def sample(spec: FeatureSpec, rows: int = 3, seed: int = 0) -> tuple[Features, Batch]:
    generator = torch.Generator().manual_seed(seed)
    tokens = {
        name: torch.randn(rows, 10, shape.tokens, shape.width, generator=generator, dtype=torch.float64)
        for name, shape in spec.final.items()
    }
    motion = torch.randn(rows, 10, 512, generator=generator, dtype=torch.float64)
    return Features(tokens, {}), Batch("avvp", tuple(map(str, range(rows))), {"motion": motion})


def test_published_sizes_of_the_grouping_head():
    head = GroupingHead(FULL, 25, 128, motion=True)
    parts = {
        "fc": count(head.segments),
        "tokens": count(head.audio_token, head.visual_token),
        "visual": count(head.visual),
        "audio": count(head.audio),
        "joint": count(head.joint),
        "outputs": count(head.clip, head.clip_audio, head.clip_visual, head.token_class),
    }
    assert parts == {
        "fc": 393_728,
        "tokens": 6_400,
        "visual": 995_161,
        "audio": 1_393_571,
        "joint": 1_589_977,
        "outputs": 3_612,
    }
    assert count(head) == sum(parts.values()) == 4_382_449


def test_sizes_without_motion_and_of_the_pooling_head():
    assert count(GroupingHead(FULL, 25)) == 4_382_449 - (512 * 128 + 128) - (256 * 128 + 128)
    assert count(PoolingHead(FULL, 25, motion=True)) == 393_728 + 3 * (128 * 25 + 25)


def test_first_values():
    torch.manual_seed(0)
    head = GroupingHead(SMALL, 4, 64, motion=True)
    assert not head.audio_token.any()
    assert not head.visual_token.any()
    for name, parameter in head.named_parameters():
        if "norm" in name:
            assert bool((parameter == float(name.endswith("weight"))).all()), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.002, name


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_of_three_equals_three_batches_of_one(name):
    head = randomised(HEADS[name](SMALL, 4, 16, motion=True))
    found, batch = sample(SMALL)
    whole = head(found, batch)
    for row in range(3):
        alone = Features({tower: value[row : row + 1] for tower, value in found.final.items()}, {})
        for output, value in head(alone, batch.select([row])).items():
            torch.testing.assert_close(value, whole[output][row : row + 1], rtol=0, atol=1e-10)
    assert (whole["clip"][0] - whole["clip"][1]).abs().max() > 1e-3


def test_grouping_head_by_its_equations():
    head = randomised(GroupingHead(SMALL, 4, 16))
    found, batch = sample(SMALL)
    outputs = head(found, batch)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "clip": (3, 4),
        "clip_audio": (3, 4),
        "clip_visual": (3, 4),
        "audio": (3, 10, 4),
        "visual": (3, 10, 4),
        "class_audio": (3, 4, 4),
        "class_visual": (3, 4, 4),
    }

    def linear(module: nn.Linear, x: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", x, module.weight) + module.bias

    means = {name: value.sum(2) / value.shape[2] for name, value in found.final.items()}
    a0, v0 = (linear(getattr(head.segments, name), means[name]) for name in ("audio", "visual"))
    tokens = {name: torch.stack([getattr(head, f"{name}_token")] * 3) for name in ("audio", "visual")}
    heard, audio_map = head.audio(a0, tokens["audio"], v0)
    seen, visual_map = head.visual(v0, tokens["visual"])
    joint, _ = head.joint(heard, seen)
    p = {"clip": (head.clip, joint), "clip_audio": (head.clip_audio, heard), "clip_visual": (head.clip_visual, seen)}
    for name, (layer, groups) in p.items():
        torch.testing.assert_close(outputs[name], linear(layer, groups)[..., 0], rtol=0, atol=1e-10)
    for name, found_map in (("audio", audio_map), ("visual", visual_map)):
        probability = 1 / (1 + (-outputs[f"clip_{name}"]).exp())
        expected = torch.einsum("bc,bct->btc", probability, found_map)
        torch.testing.assert_close(outputs[name], expected, rtol=0, atol=1e-10)
        for row in range(3):
            expected = linear(head.token_class, getattr(head, f"{name}_token"))
            torch.testing.assert_close(outputs[f"class_{name}"][row], expected, rtol=0, atol=1e-10)
    assert head.audio.cross.assign.hard
    assert head.visual.cross is None
    assert head.joint.cross is None
    assert not any(part.group.assign.hard for part in (head.audio, head.visual, head.joint))


def test_values_of_a_second_may_exceed_one():
    head = randomised(GroupingHead(SMALL, 4, 16))
    head.clip_audio.bias.data += 1000
    found, batch = sample(SMALL)
    values = head(found, batch)["audio"]
    assert values.max() > 1
    assert values.mean().item() == pytest.approx(1.1, abs=0.01)


def test_pooling_head_by_its_equations():
    head = randomised(PoolingHead(SMALL, 4, 16))
    found, batch = sample(SMALL)
    outputs = head(found, batch)
    a0, v0 = head.segments(found, batch)

    def weights(layer: nn.Linear, x: Tensor) -> Tensor:
        return torch.einsum("bsi,ci->bsc", x, layer.weight) + layer.bias

    chance = {m: 1 / (1 + (-weights(head.event, x)).exp()) for m, x in (("audio", a0), ("visual", v0))}
    time = {m: weights(head.time_attention, x).exp() for m, x in (("audio", a0), ("visual", v0))}
    share = {m: weights(head.modality_attention, x).exp() for m, x in (("audio", a0), ("visual", v0))}
    total = share["audio"] + share["visual"]
    video = torch.zeros(3, 4, dtype=torch.float64)
    for m in ("audio", "visual"):
        torch.testing.assert_close(outputs[m], chance[m], rtol=0, atol=1e-10)
        pooled = torch.zeros(3, 4, dtype=torch.float64)
        for second in range(10):
            part = time[m][:, second] / time[m].sum(1) * chance[m][:, second]
            pooled += part
            video += part * share[m][:, second] / total[:, second]
        torch.testing.assert_close(outputs[f"clip_{m}"], (pooled / (1 - pooled)).log(), rtol=0, atol=1e-9)
    inside = video < 1 - 1e-7
    assert inside.float().mean() > 0.5
    expected = (video / (1 - video)).log()[inside]
    torch.testing.assert_close(outputs["clip"][inside], expected, rtol=0, atol=1e-8)


def test_a_video_probability_above_one_is_clamped():
    head = PoolingHead(SMALL, 1, 8).double()
    for parameter in head.parameters():
        parameter.data.zero_()
    head.event.bias.data += 40
    # Audio is attended in second 0 and believed there, vision in second 1: each gives its whole probability.
    seconds = torch.zeros(1, 2, 8, dtype=torch.float64)
    head.time_attention.weight.data[0, 0] = 50
    head.modality_attention.weight.data[0, 1] = 50
    audio, visual = seconds.clone(), seconds.clone()
    audio[0, 0, :2], visual[0, 1, :2] = 1, 1

    class Given(nn.Module):
        def forward(self, features, batch):
            return audio, visual

    head.segments = Given()
    outputs = head(Features({}, {}), Batch("avvp", ("a",), {}))
    assert outputs["clip"].sigmoid().item() == pytest.approx(1 - 1e-7, abs=1e-12)


def test_motion_is_joined_to_what_is_seen():
    segments = randomised(SegmentFeatures(SMALL, 8, motion=True))
    found, batch = sample(SMALL)
    audio, visual = segments(found, batch)
    means = found.final["visual"].mean(2)
    both = torch.cat([segments.visual(means), segments.motion(batch.inputs["motion"])], -1)
    torch.testing.assert_close(visual, segments.fuse(both), rtol=0, atol=1e-10)
    torch.testing.assert_close(audio, segments.audio(found.final["audio"].mean(2)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", HEADS)
def test_motion_of_a_missing_visual_modality_is_not_seen(name):
    head = randomised(HEADS[name](SMALL, 4, 16, motion=True))
    found, batch = sample(SMALL)
    present = {"visual": torch.tensor([True, False, True])}
    first, second = (
        head(found, Batch("avvp", batch.keys, {"motion": motion}, present=present))
        for motion in (batch.inputs["motion"], batch.inputs["motion"] + 1)
    )
    for output in ("clip", "visual"):
        same = [bool(torch.equal(first[output][row], second[output][row])) for row in range(3)]
        assert same == [False, True, False]


def test_motion_of_single_seconds_without_vision_is_not_seen():
    segments = randomised(SegmentFeatures(SMALL, 8, motion=True))
    found, batch = sample(SMALL)
    present = torch.ones(3, 10, dtype=torch.bool)
    present[0, 4] = present[2, 0] = False
    motion = batch.inputs["motion"]

    def seen(motion: Tensor) -> Tensor:
        return segments(found, Batch("avvp", batch.keys, {"motion": motion}, present={"visual": present}))[1]

    as_given, other = seen(motion), seen(motion + 1)
    assert torch.equal(as_given[~present], other[~present])
    assert (as_given[present] != other[present]).any(1).all()


@pytest.mark.parametrize("tower", ["visual", "audio"])
def test_motion_needs_a_visual_tower(tower):
    spec = FeatureSpec({tower: SMALL.final[tower]}, {})
    segments = SegmentFeatures(spec, 8, motion=True)
    assert (segments.motion is not None) == (tower == "visual")
    found, batch = sample(spec)
    assert all(value.shape == (3, 10, 8) for value in segments.double()(found, batch))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("width", [8, 32])
def test_every_parameter_learns(name, width):
    head = randomised(HEADS[name](SMALL, 4, width, motion=True))
    found, batch = sample(SMALL)
    # What is added equally to all that a softmax or a norm is taken over changes nothing.
    free = ("time_attention.bias", "modality_attention.bias", "in_proj_bias", "token_mlp.2.bias", "query.bias")
    outputs = head(found, batch)
    generator = torch.Generator().manual_seed(5)
    total = sum((v * torch.randn(v.shape, generator=generator, dtype=v.dtype)).sum() for v in outputs.values())
    total.backward()
    for parameter, value in head.named_parameters():
        assert value.grad is not None, parameter
        assert parameter.endswith(free) or value.grad.abs().max() > 1e-12, parameter


def test_half_precision_stays_finite_and_keeps_the_values_of_seconds_fine():
    for name, make in HEADS.items():
        head = make(SMALL, 4, 16).train()
        found, batch = sample(SMALL)
        found = Features({tower: value.float() for tower, value in found.final.items()}, {})
        with torch.autocast("cpu", torch.bfloat16):
            outputs = head(found, batch)
        assert all(bool(torch.isfinite(value).all()) for value in outputs.values()), name
        assert outputs["audio"].dtype == torch.float32, name
