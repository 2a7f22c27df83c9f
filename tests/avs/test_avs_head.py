"""The segmentation head against its equations in float64, its published parameter counts, and what it refuses."""

import math

import pytest
import torch
from torch.nn import functional

from avcl_avs.fpn import Decoder, ResidualUnit
from avcl_avs.head import SegmentationHead, stage_shapes
from avcl_avs.losses import PUBLISHED_FRAMES, audio_visual_match, frame_bce
from avcl_avs.necks import DilatedNeck, LinearNeck, resized
from avcl_avs.options import SegmentationOptions
from avcl_avs.temporal import TemporalGating
from avcl_avs.tpavi import Tpavi
from avcl_core.batch import Batch
from avcl_core.errors import ConfigError
from avcl_core.features import Features, FeatureSpec, TokenShape

BATCH = Batch("avs", (), {})


def spec_of(widths, grids, audio, class_tokens=0) -> FeatureSpec:
    stages = tuple(TokenShape((g, g), w, class_tokens) for w, g in zip(widths, grids, strict=True))
    sound = TokenShape((2, 2), audio)
    return FeatureSpec({"visual": stages[-1], "audio": sound}, {"visual": stages, "audio": (sound,)})


SWIN = spec_of((192, 384, 768, 1536), (48, 24, 12, 6), 768)
PVT = spec_of((64, 128, 320, 512), (56, 28, 14, 7), 128)
SMALL = spec_of((3, 4, 5, 6), (8, 4, 2, 1), 7)


def features_of(spec: FeatureSpec, clips: int, seconds: int = 5, seed: int = 0, **kind) -> Features:
    generator = torch.Generator().manual_seed(seed)

    def tokens(shape: TokenShape) -> torch.Tensor:
        return torch.randn(clips, seconds, shape.tokens, shape.width, generator=generator, **kind)

    stages = {name: tuple(tokens(shape) for shape in shapes) for name, shapes in spec.stages.items()}
    return Features({name: tokens(shape) for name, shape in spec.final.items()}, stages)


def scrambled(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random values everywhere, in float64; batch-norm statistics too."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.4)
        for name, tensor in module.named_buffers():
            if name.endswith("running_var"):
                tensor.abs_().add_(0.3)
    return module


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def count(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def test_published_parameter_counts():
    with torch.device("meta"):
        head = SegmentationHead(SWIN, SegmentationOptions())
        baseline = SegmentationHead(PVT, SegmentationOptions(head="avsbench"))
    parts = {name: count(part) for name, part in head.named_children() if name != "decoder"}
    assert parts == {"neck": 738_304, "audio": 98_432, "gating": 18_957_320, "fusion": 663_040}
    assert count(head.decoder.paths) == 8_261_120
    assert count(head.decoder) - count(head.decoder.paths) == 331_969
    assert count(head) == 29_050_185
    assert count(head.gating.gates[0]) == 4_739_330
    assert count(head.fusion[0]) == 165_760
    # 9.44 M: the weights 1,024 · 256 · 9 · 4 and one bias per output channel.
    assert count(baseline.neck) == 9_437_184 + 4 * 4 * 256
    assert count(baseline) == count(baseline.neck) + 663_040 + 8_261_120 + 331_969


def direct_tpavi(module: Tpavi, grid: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
    """The definition with the N × N matrix."""
    b, t, c, h, w = grid.shape
    aligned = torch.einsum("bta,ca->btc", audio, module.align.weight) + module.align.bias
    sound = aligned[:, :, :, None, None].expand(b, t, c, h, w)

    def convolve(layer, x):
        return functional.conv3d(x.transpose(1, 2), layer.weight[:, :, None, None, None], layer.bias).flatten(2)

    theta, phi, g = convolve(module.query, grid), convolve(module.key, sound), convolve(module.value, grid)
    attention = torch.einsum("bcn,bcm->bnm", theta, phi) / (t * h * w)
    y = torch.einsum("bnm,bcm->bcn", attention, g)
    wy = torch.einsum("dc,bcn->bdn", module.out.weight, y) + module.out.bias[:, None]
    norm = module.batch_norm
    if module.training:
        mean, variance = wy.mean((0, 2)), wy.var((0, 2), unbiased=False)
    else:
        mean, variance = norm.running_mean, norm.running_var
    wy = (wy - mean[:, None]) / torch.sqrt(variance[:, None] + norm.eps) * norm.weight[:, None] + norm.bias[:, None]
    z = wy.view(b, c, t, h, w).transpose(1, 2) + grid
    z = (z - z.mean(2, keepdim=True)) / torch.sqrt(z.var(2, unbiased=False, keepdim=True) + module.norm.eps)
    return z * module.norm.weight[:, None, None] + module.norm.bias[:, None, None]


@pytest.mark.parametrize("training", [True, False])
def test_linear_tpavi_equals_the_direct_form(training):
    module = scrambled(Tpavi(8, 6)).train(training)
    grid, audio = random(2, 5, 8, 4, 4), random(2, 5, 6, seed=2)
    expected = direct_tpavi(module, grid, audio)
    found, aligned = module(grid, audio)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(aligned, functional.linear(audio, module.align.weight, module.align.bias))
    single = module.float()
    torch.testing.assert_close(single(grid.float(), audio.float())[0], expected.float(), atol=1e-5, rtol=1e-5)


def test_tpavi_begins_as_a_norm_of_the_map_and_learns():
    module = Tpavi(8, 4)
    grid, audio = random(2, 5, 8, 3, 3).float(), random(2, 5, 4, seed=2).float()
    z, _ = module(grid, audio)
    torch.testing.assert_close(z, functional.layer_norm(grid.movedim(2, -1), (8,)).movedim(-1, 2))
    (z**3).sum().backward()
    assert module.batch_norm.weight.grad.abs().sum() > 0


def encoder_by_hand(recurrent, encoder, x):
    """A time encoder from its equations: LSTM cells in loops, attention as products, post-norm layers."""

    def direction(suffix, order):
        wi, wh, bi, bh = (
            getattr(recurrent, f"{n}_l0{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = c = torch.zeros(x.shape[0], wh.shape[1], dtype=x.dtype)
        found = {}
        for t in order:
            i, f, g, o = (x[:, t] @ wi.T + bi + h @ wh.T + bh).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            found[t] = h
        return torch.stack([found[t] for t in range(x.shape[1])], 1)

    both = torch.cat([direction("", range(x.shape[1])), direction("_reverse", reversed(range(x.shape[1])))], 2)
    project, *layers = encoder
    k = both @ project.weight.T + project.bias
    for layer in layers:
        attention, d = layer.self_attn, k.shape[-1]
        q, key, v = (k @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1)
        q, key, v = (value.unflatten(-1, (4, d // 4)) for value in (q, key, v))
        weights = (torch.einsum("bthc,bshc->bhts", q, key) / math.sqrt(d // 4)).softmax(-1)
        mixed = torch.einsum("bhts,bshc->bthc", weights, v).flatten(2)
        k = norm(k + mixed @ attention.out_proj.weight.T + attention.out_proj.bias, layer.norm1)
        hidden = (k @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
        assert len(layer.linear1.bias) == 4 * d
        k = norm(k + hidden @ layer.linear2.weight.T + layer.linear2.bias, layer.norm2)
    return k


def norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + layer.eps) * layer.weight + layer.bias


def test_temporal_gating_follows_its_equations():
    module = scrambled(TemporalGating(8, 2, 0.3)).eval()
    maps, audio = [random(2, 5, 8, 3, 3), random(2, 5, 8, 2, 2, seed=5)], random(2, 5, 4, seed=6)
    scaled, sound = module(maps, audio)
    seen = []
    for grid, gate, found in zip(maps, module.gates, scaled, strict=True):
        reduced = (grid.flatten(3).mean(3) @ gate.reduce[0].weight.T + gate.reduce[0].bias).clamp(min=0)
        context = gate.context
        k_a = encoder_by_hand(context.audio_lstm, context.audio_encoder, audio)
        heard = torch.sigmoid(k_a @ context.audio_gate.weight.T + context.audio_gate.bias)
        k_v = encoder_by_hand(context.visual_lstm, context.visual_encoder, reduced)
        seen.append(torch.sigmoid(k_v @ context.visual_gate.weight.T + context.visual_gate.bias))
        torch.testing.assert_close(found, grid * (1 + 0.3 * heard[..., None, None]), atol=1e-11, rtol=1e-10)
    torch.testing.assert_close(sound, audio * (1 + 0.3 * (seen[0] + seen[1]) / 2), atol=1e-11, rtol=1e-10)


def test_recurrence_stays_in_train_mode_for_gradients_in_evaluation():
    module = TemporalGating(8, 1, 0.1).eval()
    assert module.gates[0].context.visual_lstm.training
    assert not module.gates[0].reduce.training
    assert not any(layer.training for layer in module.gates[0].context.visual_encoder)


def residual_by_hand(unit: ResidualUnit, x):
    r = x.clamp(min=0)
    inner = functional.conv2d(r, unit.first.weight, unit.first.bias, padding=1).clamp(min=0)
    return functional.conv2d(inner, unit.second.weight, unit.second.bias, padding=1) + r


def doubled(x, aligned: bool):
    """Bilinear doubling of [n, c, h, w] as two products with interpolation matrices."""

    def matrix(n):
        out = torch.zeros(2 * n, n, dtype=x.dtype)
        for row in range(2 * n):
            place = row * (n - 1) / (2 * n - 1) if aligned else min(max((row + 0.5) / 2 - 0.5, 0), n - 1)
            low = min(int(place), n - 1)
            out[row, low] += 1 - (place - low)
            out[row, min(low + 1, n - 1)] += place - low
        return out

    return torch.einsum("rh,nchw,sw->ncrs", matrix(x.shape[2]), x, matrix(x.shape[3]))


def test_decoder_follows_its_equations():
    module = scrambled(Decoder(8))
    maps = [random(2, 8, s, s, seed=s) for s in (8, 4, 2, 1)]
    x = doubled(residual_by_hand(module.paths[0].unit, maps[3]), True)
    for path, skip in zip(module.paths[1:], (maps[2], maps[1], maps[0]), strict=True):
        x = doubled(residual_by_hand(path.unit, x + residual_by_hand(path.skip, skip)), True)
    x = doubled(functional.conv2d(x, module.reduce.weight, module.reduce.bias, padding=1), False)
    x = functional.conv2d(x, module.refine.weight, module.refine.bias, padding=1).clamp(min=0)
    expected = torch.einsum("nchw,c->nhw", x, module.out.weight[0, :, 0, 0]) + module.out.bias
    found = module(maps)
    assert found.shape == (2, 32, 32)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-9)
    assert module.paths[0].skip is None


def test_necks_follow_their_definition():
    grids = [random(3, s, s, c, seed=s) for s, c in ((6, 3), (3, 5))]
    linear = scrambled(LinearNeck((3, 5), 4))
    for found, grid, layer, size in zip(linear(grids, (7, 3)), grids, linear.project, (7, 3), strict=True):
        plain = torch.einsum("nhwc,dc->ndhw", grid, layer.weight) + layer.bias[:, None, None]
        expected = functional.interpolate(plain, size=(size, size), mode="bicubic", align_corners=False)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    dilated = scrambled(DilatedNeck((3,), 4))
    (found,) = dilated(grids[:1], (6,))
    expected = torch.zeros(3, 4, 6, 6, dtype=torch.float64)
    for rate, layer in zip((3, 6, 12, 18), dilated.stages[0].convolutions, strict=True):
        expected += layer.bias[:, None, None]
        for i, j in [(i, j) for i in range(3) for j in range(3)]:
            for y, x in [(y, x) for y in range(6) for x in range(6)]:
                r, s = y + (i - 1) * rate, x + (j - 1) * rate
                if 0 <= r < 6 and 0 <= s < 6:
                    expected[:, :, y, x] += grids[0][:, r, s] @ layer.weight[:, :, i, j].T
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("source", "target"), [(48, 56), (6, 7), (2, 7), (9, 4)])
def test_resizing_is_bicubic(source, target):
    value = random(2, 3, source, source)
    expected = functional.interpolate(value, size=(target, target), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized(value, target), expected, atol=1e-12, rtol=1e-10)


def test_a_size_that_was_first_asked_for_on_the_meta_device_is_resized_afterwards():
    with torch.device("meta"):
        resized(torch.empty(1, 1, 13, 13, dtype=torch.float64), 17)
    assert float(resized(torch.ones(1, 1, 13, 13, dtype=torch.float64), 17).sum()) == pytest.approx(17 * 17)


def test_audio_visual_match_is_a_divergence_per_frame():
    logits = random(2, 5, 8, 8)
    maps = [random(2, 5, 6, s, s, seed=s).clamp(min=0) for s in (4, 2)]
    aligned = [random(2, 5, 6, seed=9), random(2, 5, 6, seed=10)]
    expected = torch.zeros(2, 5, dtype=torch.float64)
    for b, t in [(b, t) for b in range(2) for t in range(5)]:
        for grid, sound in zip(maps, aligned, strict=True):
            step = 8 // grid.shape[-1]
            pooled = torch.zeros(6, dtype=torch.float64)
            for y, x in [(y, x) for y in range(grid.shape[-1]) for x in range(grid.shape[-1])]:
                cell = logits[b, t, step * y : step * (y + 1), step * x : step * (x + 1)].mean()
                pooled += torch.sigmoid(cell) * grid[b, t, :, y, x] / grid.shape[-1] ** 2
            heard, seen = sound[b, t].softmax(0), pooled.softmax(0)
            expected[b, t] += sum(float(h * (h / s).log()) for h, s in zip(heard, seen, strict=True)) / len(maps)
    found = audio_visual_match(logits, maps, aligned)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    # The published sum over a batch of two clips of five frames is the mean times PUBLISHED_FRAMES.
    assert found.numel() == PUBLISHED_FRAMES
    torch.testing.assert_close(found.mean() * PUBLISHED_FRAMES, expected.sum())


def test_cross_entropy_per_annotated_frame():
    logits, mask = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=3) > 0
    prob = torch.sigmoid(logits)
    expected = -torch.where(mask, prob.log(), (1 - prob).log()).mean((2, 3))
    annotated = torch.tensor([[1, 0, 1], [0, 0, 1]])
    torch.testing.assert_close(frame_bce(logits, mask, annotated), expected * annotated)
    assert frame_bce(logits, mask, annotated * 0).eq(0).all()


@pytest.mark.parametrize("options", [{}, {"setting": "ms3"}, {"head": "avsbench"}, {"mask_size": 32}])
def test_head_gives_logits_of_the_data_sets_size(options):
    settings = SegmentationOptions(width=8, **{"mask_size": 64, **options})
    spec = spec_of((3, 4, 5, 6), (8, 4, 2, 1), 7, class_tokens=1)
    head = SegmentationHead(spec, settings).eval()
    found = features_of(spec, 2)
    outputs = head(found, BATCH)
    assert outputs["logits"].shape == (2, 5, 224, 224)
    assert outputs.keys() == ({"logits", "avm"} if options.get("setting") == "ms3" else {"logits"})
    if "avm" in outputs:
        assert outputs["avm"].shape == (2, 5)
        assert (outputs["avm"] > 0).all()
    # Clips of a batch do not mix in evaluation.
    alone = Features(
        {n: v[1:] for n, v in found.final.items()}, {n: tuple(v[1:] for v in s) for n, s in found.stages.items()}
    )
    for name, value in head(alone, BATCH).items():
        torch.testing.assert_close(value, outputs[name][1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"setting": "ms3"}, {"head": "avsbench"}])
def test_every_parameter_learns_once_batch_norm_has_opened(options):
    torch.manual_seed(0)
    head = SegmentationHead(SMALL, SegmentationOptions(width=8, mask_size=32, **options))
    for layer in head.fusion:
        torch.nn.init.ones_(layer.batch_norm.weight)
    outputs = head(features_of(SMALL, 2), BATCH)
    (sum(value.square().mean() for value in outputs.values())).backward()
    # A shift of what batch norm centres has no effect; neither has a shift of the keys of an attention.
    silent = {n for n, p in head.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12}
    assert {n for n in silent if not n.endswith((".out.bias",))} == set()


def test_match_compares_the_maps_that_the_decoder_has_rectified():
    head = SegmentationHead(SMALL, SegmentationOptions(width=8, mask_size=32, setting="ms3")).eval()
    fused, logits = [], []
    for layer in head.fusion:
        layer.register_forward_hook(lambda module, inputs, output: fused.append(output))
    head.decoder.register_forward_hook(lambda module, inputs, output: logits.append(output.unflatten(0, (2, 5))))
    outputs = head(features_of(SMALL, 2), BATCH)
    aligned = [sound for _, sound in fused]
    expected = audio_visual_match(logits[0], [value.clamp(min=0) for value, _ in fused], aligned)
    torch.testing.assert_close(outputs["avm"], expected)
    plain = audio_visual_match(logits[0], [value for value, _ in fused], aligned)
    assert (outputs["avm"] - plain).abs().max() > 1e-3


def test_last_map_is_the_one_after_the_final_norm():
    head = SegmentationHead(SMALL, SegmentationOptions(width=8, mask_size=32)).eval()
    found = features_of(SMALL, 1)
    before = head(found, BATCH)["logits"]
    *others, last = found.stages["visual"]
    changed = {**found.stages, "visual": (*others, last + 1)}
    torch.testing.assert_close(head(Features(found.final, changed), BATCH)["logits"], before)
    changed = {**found.stages, "visual": (others[0] * 3, *found.stages["visual"][1:])}
    assert (head(Features(found.final, changed), BATCH)["logits"] - before).abs().max() > 1e-4


def test_towers_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match=r"towers\.audio"):
        stage_shapes(FeatureSpec({"visual": TokenShape((1, 1), 4)}, {"visual": ()}))
    with pytest.raises(ConfigError, match="has 1 stage maps; the head needs 4"):
        stage_shapes(FeatureSpec(SMALL.final, {"visual": SMALL.stages["visual"][:1]}))


@pytest.mark.parametrize("options", [{"head": "deeplab"}, {"head": "mmseg:"}, {"width": 20}, {"mask_size": 100}])
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError, match=r"head|multiple"):
        SegmentationOptions(**options)
