"""BEATs: golden values, parity with a formulation of its own, padding that cannot be heard, prefix rows, post-norm joins."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from shared_backbones import create
from shared_backbones.beats import bucket, token_padding
from shared_backbones.registry import build
from shared_backbones.towers.beats import FULL, TINY


def buckets_of(*offsets):
    return bucket(torch.tensor(offsets), 320, 800).tolist()


def test_golden_buckets():
    golden = {0: 0, 1: 161, -1: 1, 79: 239, 80: 240, -80: 80, 100: 247, 400: 295, 800: 319, -800: 159}
    assert buckets_of(*golden) == list(golden.values())


def test_buckets_follow_their_formula(direct):
    offsets = range(-1600, 1601)
    assert buckets_of(*offsets) == [direct.bucket(r) for r in offsets]


def test_deepnorm():
    assert (round(FULL.alpha, 5), round(FULL.beta, 5)) == (2.21336, 0.31947)
    assert (TINY.alpha, TINY.beta) == (pytest.approx(2**0.5), 0.5)
    layer = build("beats", "tiny", {}).net.encoder.layers[0]
    xavier = math.sqrt(2 / (64 + 256))
    assert float(layer.fc1.weight.std()) == pytest.approx(0.5 * xavier, rel=0.03)
    ratio = layer.self_attn.v_proj.weight.std() / layer.self_attn.k_proj.weight.std()
    assert float(ratio) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(("seconds", "frames", "tokens"), [(10, 998, 496), (30, 2998, 1496)])
def test_shapes_of_the_full_tower(seconds, frames, tokens):
    tower = build("beats", "full", {}, device="meta")
    features = tower.frontend(torch.zeros(1, seconds * 16000, device="meta"))
    assert features.shape == (1, 1, frames, 128)
    assert tower.encode(torch.zeros(1, seconds * 16000, device="meta")).shape == (1, tokens, 768)
    padding = torch.zeros(1, seconds * 16000, dtype=torch.bool, device="meta")
    assert tower.embed(features, padding=padding)[1]["padding"].shape == (1, tokens)


def features_of(frames, rows=2, seed=1):
    return torch.randn(rows, 1, frames, 128, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def samples_of(frames):
    return 400 + 160 * (frames - 1)


def padding_of(frames, *valid):
    return torch.stack([torch.arange(samples_of(frames)) >= n for n in valid])


def walked(tower, features, padding=None):
    with torch.no_grad():
        tokens, aux = tower.embed(features, padding=padding)
        for sub in tower.subs:
            tokens = tower.join(sub, tokens, tower.run(sub, tokens, aux))
        return tower.final(tokens), aux


@pytest.mark.parametrize(("frames", "padded"), [(16, False), (41, False), (98, False), (98, True), (80, True)])
def test_equals_the_direct_formulation(frames, padded, tiny, direct):
    tower, features = tiny("beats").double(), features_of(frames)
    padding = padding_of(frames, 9000, 5500) if padded else None
    found, _ = walked(tower, features, padding)
    expected = direct.direct_beats(direct.published(tower.net.state_dict()), features, padding)
    assert found.shape == (2, 8 * (frames // 16), 64)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() < 1e-6


def test_tokens_of_padded_samples(direct):
    for samples, valid in ((16000, 9000), (16000, 15999), (48000, 300), (160_000, 97_001), (480_000, 160_000)):
        frames = 1 + (samples - 400) // 160
        mask = torch.arange(samples) >= valid
        tokens = 8 * (frames // 16)
        found = token_padding(mask[None], frames, tokens)[0].tolist()
        assert found == direct.padded_tokens(mask.tolist(), frames, tokens)
        # Of sound at the front it is as many tokens as its share, rounded up twice.
        heard = math.ceil(math.ceil(valid / (samples // frames)) / (frames // tokens))
        assert found == [i >= heard for i in range(tokens)]


def test_padding_cannot_be_heard(tiny):
    """Bit for bit: padded tokens are silent in front of the convolution, and nobody attends to them."""
    tower, features = tiny("beats"), features_of(96).float()
    padding = padding_of(96, 160 * 96, 160 * 48)  # the second ends with a patch: 3 of 6 times, 24 of 48 tokens
    found, aux = walked(tower, features, padding)
    assert aux["padding"].sum(1).tolist() == [0, 24]
    other = features.clone()
    other[1, :, 48:] = 7 * features_of(96, seed=2)[1, :, 48:].float()
    again, _ = walked(tower, other, padding)
    assert torch.equal(again, found)
    plain, without = walked(tower, features)[0], walked(tower, other)[0]
    assert (plain[1, :24] - without[1, :24]).abs().max() > 0.01, "without a mask it is heard"
    assert (plain[0] - found[0]).abs().max() < 1e-5, "a row without padding is as it was"


def test_padded_samples_reach_no_further_than_their_frames(tiny):
    tower = tiny("beats")
    waves = 0.3 * torch.randn(2, 2, 16000, generator=torch.Generator().manual_seed(0))
    # 7,824 samples are 48 of 98 groups of 163; frame 47 ends with sample 7,920.
    padding = (torch.arange(16000) >= 7824).expand(2, -1)
    waves[1, :, :7920] = waves[0, :, :7920]
    one, two = (walked(tower, tower.frontend(wave), padding)[0] for wave in waves)
    assert torch.equal(one, two)


def test_a_clip_is_nearly_the_same_alone_and_padded(tiny):
    """Not quite: the convolution of positions sees silence behind it, and its last tokens share a patch with it."""
    tower = tiny("beats")
    clip = 0.3 * torch.randn(1, 16240, generator=torch.Generator().manual_seed(0))  # 100 frames, 48 tokens
    alone = tower.encode(clip)
    longer = tower.frontend(F.pad(clip, (0, 32000)))
    masked, aux = walked(tower, longer, (torch.arange(48240) >= 16240).unsqueeze(0))
    unmasked, _ = walked(tower, longer)
    assert (~aux["padding"]).sum() == 51
    off = [(found[0, :48] - alone[0]).abs().mean() for found in (masked, unmasked)]
    assert off[0] < 0.2 * off[1]


def test_wrong_paddings_are_refused(tiny):
    tower, features = tiny("beats"), features_of(96).float()
    right = padding_of(96, 9000, 9000)
    for wrong in (right[:, :-1], right[:1], right.float(), F.pad(right, (0, 160)), right[0]):
        with pytest.raises(ValueError, match=r"expected torch\.bool \(2, 15600 to 15759\)"):
            tower.embed(features, padding=wrong)
    for fits in (right, F.pad(right, (0, 159), value=True)):
        tower.embed(features, padding=fits)
    with pytest.raises(ValueError, match=r"rows \[1\] are nothing but padding"):
        tower.embed(features, padding=padding_of(96, 9000, 0))


def test_wrong_inputs_are_refused(tiny):
    tower = tiny("beats")
    assert tower.encode(torch.zeros(1, 2800)).shape == (1, 8, 64)
    for samples, message in ((2799, "expected 2800 or more"), (480_001, r"at most 480000 \(30 s\)")):
        with pytest.raises(ValueError, match=message):
            tower.encode(torch.zeros(1, samples))
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        tower.encode(torch.zeros(16000))
    for shape in ((1, 1, 15, 128), (1, 1, 98, 64), (1, 98, 128)):
        with pytest.raises(ValueError, match=r"\[B, 1, at least 16, 128\]"):
            tower.embed(torch.zeros(shape))


def test_prefix_rows_have_no_place_and_are_always_seen(tiny):
    tower = tiny("beats")
    sub, layer = tower.subs[2], tower.net.encoder.layers[1]
    features = features_of(80).float()
    tokens, aux = tower.embed(features, padding=padding_of(80, 4000, 9000))
    k, v = (torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(s)) for s in (3, 4))
    attn, length = layer.self_attn, tokens.shape[1]
    q = attn.q_proj(tokens).unflatten(2, (4, 16))
    keys = attn.k_proj(torch.cat((k, tokens), 1)).unflatten(2, (4, 16))
    values = attn.v_proj(torch.cat((v, tokens), 1)).unflatten(2, (4, 16))
    out = torch.empty(2, length, 4, 16)
    for b in range(2):
        for h in range(4):
            scores = q[b, :, h] @ keys[b, :, h].T / 4
            z = attn.grep_linear(q[b, :, h]).view(length, 2, 4).sum(2).sigmoid()
            gate = z[:, :1] * (z[:, 1:] * attn.grep_a[0, h, 0, 0] - 1) + 2
            scores[:, 3:] += gate * aux["bias"][h]
            scores[:, 3:][:, aux["padding"][b]] = -math.inf
            out[b, :, h] = scores.softmax(1) @ values[b, :, h]
    expected = attn.out_proj(out.flatten(2))
    torch.testing.assert_close(tower.run(sub, tokens, aux, prefix=(k, v)), expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_remembered_between_inputs(tiny):
    """Neither a length, nor a table that has changed, nor the device of a dry run."""
    tower, short, long = tiny("beats"), features_of(32).float(), features_of(96).float()
    first = walked(tower, short)[0]
    walked(tower, long)
    tower.to("meta").embed(short.to("meta"))
    tower = tiny("beats")
    walked(tower, long.double().float())
    assert torch.equal(walked(tower, short)[0], first)
    table = tower.net.encoder.relative_attention_bias.weight
    with torch.no_grad():
        table[161] += 1  # the key behind the query
    _, aux = walked(tower, short)
    assert torch.equal(aux["bias"][:, 4, 5], table[161])
    assert torch.equal(aux["bias"][:, 5, 4], table[1])
    assert (walked(tower, short)[0] - first).abs().max() > 1e-3


def test_half_precision_stays_near(tiny):
    tower, features = tiny("beats"), features_of(96).float()
    padding = padding_of(96, 15600, 7000)
    expected, aux = walked(tower, features, padding)
    heard = ~aux["padding"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = walked(tower, features, padding)
    pure, _ = walked(tower.to(torch.bfloat16), features.bfloat16(), padding)
    for found in (mixed, pure):
        assert (found[heard].float() - expected[heard]).abs().mean() < 0.02 * expected[heard].abs().mean()


def test_training_reaches_every_weight():
    tower = create("beats", size="tiny", pretrained=False, trainable=True)
    tokens, aux = tower.embed(features_of(96).float())
    for sub in tower.subs:
        tokens = tower.join(sub, tokens, tower.run(sub, tokens, aux))
    tokens[:, :, 0].square().sum().backward()
    assert not [name for name, p in tower.named_parameters() if p.grad is None or not p.grad.any()]


def test_every_option_is_in_the_digest():
    tower = create("beats", size="tiny", pretrained=False)
    assert tower.frontend_options == {
        "kind": "kaldi filter bank", "sample_rate": 16000, "window": 400, "hop": 160, "n_fft": 512, "mels": 128,
        "low": 20.0, "high": 8000.0, "scale": 32768.0, "preemphasis": 0.97, "taper": 0.85, "floor": 1.1920929e-7,
        "mean": 15.41663, "two_std": 13.11164,
    }  # fmt: skip
    # Pinned: caches keyed by it must survive a release that does not touch the front end.
    assert tower.frontend_digest == "0b086ff412dc74072ef1c4df0396231a881b9ebecbf70f8bfb12333a3c26211c"
    silence = (math.log(1.1920929e-7) - 15.41663) / (2 * 6.55582)
    torch.testing.assert_close(tower.frontend(torch.zeros(1, 2800)), torch.full((1, 1, 16, 128), silence))
