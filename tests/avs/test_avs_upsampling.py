"""The up-sampling head: its parameters, the equations of php.md 3.9 in full, chunks, clips of their own, towers that do not fit."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from avcl_avs import plugin
from avcl_avs.mapnorm import MapNorm
from avcl_avs.options import SegmentationOptions
from avcl_avs.readout import Readout
from avcl_avs.upsampling import UpsamplingHead, doublings
from avcl_core.batch import Batch
from avcl_core.clipnorm import ClipNorm
from avcl_core.collective import Collective
from avcl_core.config.options import Options
from avcl_core.data.prepare import prepare
from avcl_core.errors import ConfigError
from avcl_core.features import Features, FeatureSpec, TokenShape
from avcl_core.models.base import Model
from avcl_core.testing import check_task
from shared_backbones import create

BATCH = Batch("avs", (), {})
WIDTH, AUDIO = 12, 10


def spec(width: int = WIDTH, audio: int = AUDIO, grid=(4, 4), classes: int = 1, sounds: int = 3) -> FeatureSpec:
    shapes = {"visual": TokenShape(grid, width, classes), "audio": TokenShape((1, sounds), audio)}
    return FeatureSpec(shapes, {name: (shape,) for name, shape in shapes.items()})


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(clips: int = 2, seconds: int = 5, tokens: int = 17) -> Features:
    """Stages before the last, and final tokens, are of other values, so that a head that reads them is found out."""
    stages = {
        "visual": (random(clips, seconds, tokens, WIDTH, seed=2), random(clips, seconds, tokens, WIDTH, seed=3)),
        "audio": (random(clips, seconds, 3, AUDIO, seed=4), random(clips, seconds, 3, AUDIO, seed=5)),
    }
    final = {"visual": random(clips, seconds, tokens, WIDTH, seed=6), "audio": random(clips, seconds, 3, AUDIO, seed=7)}
    return Features(final, stages)


def rows(found: Features, places) -> Features:
    return Features({}, {name: tuple(value[places] for value in values) for name, values in found.stages.items()})


def head(mask_size: int = 16, width: int = 8) -> UpsamplingHead:
    """Random values everywhere, in float64; statistics too."""
    module = UpsamplingHead(spec(), SegmentationOptions(head="upsampling", width=width, mask_size=mask_size)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.4)
        for name, tensor in module.named_buffers():
            if name.endswith("running_var"):
                tensor.abs_().add_(0.3)
    return module


def small(module: UpsamplingHead, found: Features) -> torch.Tensor:
    """The logits before they are enlarged to 224 pixels."""
    kept = []
    handle = module.readout.register_forward_hook(lambda _, __, output: kept.append(output))
    module(found, BATCH)
    handle.remove()
    return kept[0]


def test_parameters_at_full_size():
    with torch.device("meta"):
        full = UpsamplingHead(spec(768, 768, (7, 7), sounds=64), SegmentationOptions(head="upsampling"))
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in full.named_children()}
    assert parts == {"project": 295_296, "steps": 959_424, "attend": 1_575_424, "readout": 296_961}
    assert sum(parts.values()) == 3_127_105
    assert [step.conv.out_channels for step in full.steps] == [192, 96, 64, 64, 64]


@pytest.mark.parametrize("training", [True, False])
def test_shapes_at_full_size(training):
    with torch.device("meta"):
        full = UpsamplingHead(spec(768, 768, (7, 7), sounds=64), SegmentationOptions(head="upsampling")).train(training)
        stages = {"visual": (torch.empty(2, 5, 50, 768),), "audio": (torch.empty(2, 5, 64, 768),)}
        assert full(Features({}, stages), BATCH)["logits"].shape == (2, 5, 224, 224)


# ---------------------------------------------------------------- php.md 3.9, written down once more
def doubled(x: torch.Tensor) -> torch.Tensor:
    """Bilinear doubling, corners not aligned, as two products with interpolation matrices."""
    n = x.shape[-1]
    matrix = torch.zeros(2 * n, n, dtype=x.dtype)
    for row in range(2 * n):
        place = min(max((row + 0.5) / 2 - 0.5, 0), n - 1)
        low = int(place)
        matrix[row, low] += 1 - (place - low)
        matrix[row, min(low + 1, n - 1)] += place - low
    return torch.einsum("rh,nchw,sw->ncrs", matrix, x, matrix)


def convolved(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """3×3 convolution as a sum of nine shifted products."""
    padded = functional.pad(x, (1, 1, 1, 1))
    h, w = x.shape[-2:]
    return sum(
        torch.einsum("nchw,dc->ndhw", padded[:, :, i : i + h, j : j + w], weight[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )


def normed(x: torch.Tensor, norm, training: bool, frames: int) -> torch.Tensor:
    def apply(clip, mean, var):
        scaled = (clip - mean[:, None, None]) / torch.sqrt(var[:, None, None] + norm.eps)
        return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]

    if not training:
        return apply(x, norm.running_mean, norm.running_var)
    clips = x.split(frames)
    return torch.cat([apply(c, c.mean((0, 2, 3)), c.var((0, 2, 3), unbiased=False)) for c in clips])


def attended(module, query: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    def affine(layer, x):
        return x @ layer.weight.T + layer.bias

    sound = affine(module.sound, tokens)
    q, k, v = affine(module.query, query), affine(module.key, sound), affine(module.value, sound)
    size, parts = q.shape[-1] // 8, []
    for place in range(8):
        part = slice(place * size, (place + 1) * size)
        weights = (torch.einsum("nc,nlc->nl", q[:, part], k[:, :, part]) / size**0.5).softmax(-1)
        parts.append(torch.einsum("nl,nlc->nc", weights, v[:, :, part]))
    return affine(module.out, torch.cat(parts, -1))


def plain(module: UpsamplingHead, found: Features) -> torch.Tensor:
    """Logits ``[b·T, S, S]`` with Φ ``[b·T, P, S, S]`` in memory."""
    training, frames = module.training, found.stages["visual"][-1].shape[1]
    visual, audio = (found.stages[tower][-1].flatten(0, 1) for tower in ("visual", "audio"))
    grid = visual[:, 1:].transpose(1, 2).reshape(len(visual), WIDTH, 4, 4)
    x = torch.einsum("nchw,dc->ndhw", grid, module.project.weight) + module.project.bias[:, None, None]
    for step in module.steps:
        x = normed(convolved(doubled(x), step.conv.weight), step.norm, training, frames).clamp(min=0)
    readout = module.readout
    phi = convolved(x, readout.conv.weight) + readout.conv.bias[:, None, None]
    phi = normed(phi, readout.norm, training, frames).clamp(min=0)
    u = attended(module.attend, visual[:, 0], audio)
    m = torch.einsum("nchw,nc->nhw", phi, u)
    return torch.einsum("nchw,c->nhw", phi * m[:, None], readout.out.weight[0]) + readout.out.bias


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask_size", [8, 16, 32])
def test_logits_are_their_equation(training, mask_size):
    module, found = head(mask_size).train(training), features()
    with torch.no_grad():
        expected = plain(module, found)
        logits = small(module, found)
        whole = module(found, BATCH)["logits"]
    assert expected.abs().max() > 1
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=1e-10)
    enlarged = functional.interpolate(
        expected.unflatten(0, (2, 5)), size=(224, 224), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(whole, enlarged, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("chunk", [1, 5 * 256 * 3, 5 * 256 * 16])
def test_chunks_give_the_logits_and_gradients_of_the_plain_form(training, chunk):
    module, found = head().train(training), features()
    module.readout.chunk = chunk
    weights = random(10, 16, 16, seed=9)
    plain_loss = (plain(module, found) * weights).sum()
    expected = torch.autograd.grad(plain_loss, list(module.parameters()))
    logits = small(module, found)
    gradients = torch.autograd.grad((logits * weights).sum(), list(module.parameters()))
    torch.testing.assert_close(logits, plain(module, found), atol=1e-10, rtol=1e-10)
    for (name, _), got, want in zip(module.named_parameters(), gradients, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-8, rtol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return out


@pytest.mark.parametrize("training", [True, False])
def test_all_channels_are_never_in_memory_together(training):
    readout = Readout(4, 64, chunk=5 * 256 * 8).double().train(training)
    maps, sound = random(10, 4, 16, 16).requires_grad_(), random(10, 64)
    with Largest() as largest:
        readout(maps, sound, 5).sum().backward()
    assert 5 * 256 * 8 <= largest.numel < 10 * 256 * 16


def test_nothing_of_the_chunks_is_kept_for_the_gradient():
    readout = Readout(4, 64, chunk=5 * 256 * 16).double().train()
    maps, sound = random(10, 4, 16, 16).requires_grad_(), random(10, 64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        readout(maps, sound, 5)
    assert max(kept) <= maps.numel()


# ---------------------------------------------------------------- batch norm
def test_norm_is_clip_norm_over_maps():
    maps = random(10, 6, 3, 4)
    own, known = MapNorm(6).double(), ClipNorm(6).double()
    with torch.no_grad():
        for module in (own, known):
            module.weight.copy_(random(6, seed=2))
            module.bias.copy_(random(6, seed=3))
    for training in (True, False):
        own.train(training), known.train(training)
        tokens = known(maps.flatten(2).transpose(1, 2), 5)
        torch.testing.assert_close(own(maps, 5), tokens.transpose(1, 2).view_as(maps))
        if training:
            for module in (own, known):
                module.settle(Collective())
    torch.testing.assert_close(own.running_mean, known.running_mean)
    torch.testing.assert_close(own.running_var, known.running_var)
    assert (own.running_mean != 0).all()


def test_statistics_of_the_readout_move_once_per_step_by_the_mean_over_clips():
    readout = Readout(4, 6, chunk=5 * 9 * 4).double().train()
    maps, sound = random(10, 4, 3, 3), random(10, 6)
    phi = functional.conv2d(maps, readout.conv.weight, readout.conv.bias, padding=1)
    clips = [phi[:5].transpose(0, 1).flatten(1), phi[5:].transpose(0, 1).flatten(1)]
    mean = 0.1 * sum(clip.mean(1) for clip in clips) / 2
    var = 0.9 + 0.1 * sum(clip.var(1) for clip in clips) / 2
    readout(maps, sound, 5).sum().backward()  # the gradient computes the chunks again, which counts once
    assert (readout.norm.running_mean == 0).all()
    readout.norm.settle(Collective())
    torch.testing.assert_close(readout.norm.running_mean, mean.detach())
    torch.testing.assert_close(readout.norm.running_var, var.detach())


@pytest.mark.parametrize("training", [True, False])
def test_clips_do_not_mix(training):
    module, found = head().train(training), features(3)
    with torch.no_grad():
        whole = module(found, BATCH)["logits"]
        for places in ([1], [2, 0]):
            torch.testing.assert_close(module(rows(found, places), BATCH)["logits"], whole[places], atol=1e-12, rtol=0)


def test_frames_do_not_mix_in_evaluation():
    module, found = head().eval(), features(1)
    turned = Features({}, {name: (values[-1].flip(1),) for name, values in found.stages.items()})
    with torch.no_grad():
        whole = module(found, BATCH)["logits"]
        torch.testing.assert_close(module(turned, BATCH)["logits"], whole.flip(1), atol=1e-12, rtol=0)


def test_micro_batches_leave_the_statistics_of_the_whole_batch():
    one, other = head().train(), head().train()
    found = features(3)
    one(found, BATCH)
    for places in ([0], [1, 2]):
        other(rows(found, places), BATCH)
    for module in (one, other):
        for part in module.modules():
            if isinstance(part, ClipNorm):
                part.settle(Collective())
    before = dict(head().named_buffers())
    for (name, tensor), again in zip(one.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(tensor, again)
        assert not torch.equal(tensor, before[name]), name


def test_every_parameter_learns():
    module = head().train()
    module(features(), BATCH)["logits"].square().mean().backward()
    # A shift of what a norm centres, or of the keys of a softmax, has no effect.
    without = {"readout.conv.bias", "attend.key.bias"}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.abs().max() > 1e-9) == (name not in without), name


# ---------------------------------------------------------------- the task with this head, and what is refused
def test_towers_that_do_not_fit_are_named():
    options = SegmentationOptions(head="upsampling", width=8, mask_size=16)
    with pytest.raises(ConfigError, match=r"needs a tower towers\.audio; configured: \['visual'\]"):
        UpsamplingHead(
            FeatureSpec({"visual": TokenShape((4, 4), 8, 1)}, {"visual": (TokenShape((4, 4), 8, 1),)}), options
        )
    with pytest.raises(ConfigError, match=r"class token of towers\.visual, which has none; choose clip_vit"):
        UpsamplingHead(spec(classes=0), options)
    with pytest.raises(ConfigError, match=r"square grid of patches; towers\.visual has \(4, 2\)"):
        UpsamplingHead(spec(grid=(4, 2)), options)


@pytest.mark.parametrize(("grid", "size", "steps"), [(7, 224, 5), (14, 224, 4), (4, 16, 2), (4, 32, 3), (24, 48, 1)])
def test_doublings(grid, size, steps):
    assert doublings(grid, size) == steps


@pytest.mark.parametrize(("grid", "size"), [(4, 4), (4, 2), (7, 192), (24, 224)])
def test_sizes_that_no_doubling_reaches(grid, size):
    with pytest.raises(ConfigError, match=rf"mask_size {size} is none of {2 * grid}, {4 * grid}"):
        doublings(grid, size)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="not a multiple of 32, as head: tpavi"):
        SegmentationOptions(mask_size=16)
    with pytest.raises(ValueError, match="no maps for the match loss of setting: ms3; set match_weight: 0"):
        SegmentationOptions(head="upsampling", setting="ms3")
    assert SegmentationOptions(head="upsampling", setting="ms3", match_weight=0.0, mask_size=16).mask_size == 16


@pytest.mark.parametrize("setting", ["s4", "ms3"])
def test_contract_with_tiny_clip_and_clap(avs_root, tmp_path, setting):
    small = prepare(plugin.layout(avs_root), tmp_path / "avs", frame_size=32, workers=1)
    towers = {"visual": create("clip_vit", size="tiny"), "audio": create("clap", size="tiny")}
    options = plugin.options(setting=setting, head="upsampling", width=8, mask_size=16, match_weight=0.0)
    task = plugin.build(options, small, "clean")
    made = task.head(Model(towers, {"avs": task}, Options()).spec(), task.experiences()[0])
    assert isinstance(made, UpsamplingHead)
    assert len(made.steps) == 2
    assert task.fields == {"logits": "mask"}
    check_task(task, towers, samples=2)


def test_other_frames_of_the_single_source_setting_teach_nothing(avs_prepared):
    """Only the first frame's logits are in the loss; the others shape its batch norm, as in any step."""
    task = plugin.build(plugin.options(head="upsampling", width=8, mask_size=16), avs_prepared, "clean")
    logits = random(2, 5, 224, 224).requires_grad_()
    annotated = torch.tensor([[True] + [False] * 4] * 2)
    parts = task.loss({"logits": logits}, {"mask": random(2, 5, 224, 224) > 0, "annotated": annotated})
    assert parts.keys() == {"mask"}
    parts["mask"].backward()
    assert logits.grad[:, 0].abs().sum() > 0
    assert logits.grad[:, 1:].abs().sum() == 0
