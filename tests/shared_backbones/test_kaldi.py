"""The Kaldi filter bank against torchaudio's, and its bank against a formula of its own."""

from __future__ import annotations

import math

import pytest
import torch

from shared_backbones.kaldi import KaldiFbank, KaldiOptions, mel_bank

TIME = torch.arange(48000) / 16000


def noise(samples, scale=0.3):
    return scale * torch.randn(samples, generator=torch.Generator().manual_seed(0))


def reference():
    """torchaudio's module; the encoders themselves do without it."""
    return pytest.importorskip("torchaudio.compliance.kaldi")


def oracle(wave):
    return reference().fbank(wave[None].double() * 32768, num_mel_bins=128, sample_frequency=16000)


WAVES = {
    "noise": noise(48000),
    "quiet noise": noise(48000, 1e-4),
    "silence": torch.zeros(48000),
    "offset": torch.full((48000,), 0.3),
    **{f"{f} Hz": 0.5 * torch.sin(2 * math.pi * f * TIME) for f in (50, 440, 1000, 3333.3, 7900)},
}


@pytest.mark.parametrize("name", WAVES)
def test_equals_torchaudio(name):
    """With torchaudio's bank, which is made in float32, to 1e-5; with our own to the size of its rounding beside a tone."""
    expected = oracle(WAVES[name])
    ours = KaldiFbank()
    found = ours(WAVES[name][None])[0]
    assert found.shape == expected.shape == (298, 128)
    assert found.dtype == torch.float32
    beside = name in ("3333.3 Hz", "7900 Hz")
    assert (found - expected).abs().max() < (2.5e-4 if beside else 1e-4)
    bank = reference().get_mel_banks(128, 512, 16000.0, 20.0, 0.0, 100.0, -500.0, 1.0)
    ours.bank[:256] = (bank[0] if isinstance(bank, tuple) else bank).T
    assert (ours(WAVES[name][None])[0] - expected).abs().max() < 1e-5


def test_bank_follows_its_formula():
    def mel(hz):
        return 1127 * math.log(1 + hz / 700)

    step = (mel(8000) - mel(20)) / 129
    bank = mel_bank(KaldiOptions())
    assert bank.shape == (257, 128)
    for b in range(257):
        for m in range(128):
            rise = (mel(31.25 * b) - mel(20)) / step - m
            weight = max(0.0, min(rise, 2 - rise)) if b < 256 else 0.0
            assert abs(float(bank[b, m]) - weight) < 1e-9


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (559, 1), (560, 2), (160_000, 998), (480_000, 2998)])
def test_only_whole_windows_count(samples, frames):
    assert KaldiFbank()(noise(samples)[None]).shape == (1, frames, 128)
    assert KaldiOptions().frames(samples) == frames


def test_rows_are_alone_and_precision_does_not_matter():
    fbank, waves = KaldiFbank(), noise(3 * 8000).view(3, 8000)
    found = fbank(waves)
    assert torch.equal(found[1:2], fbank(waves[1:2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fbank(waves), found)
    with torch.device("meta"):
        built = KaldiFbank()
    assert torch.equal(built(waves), found)
    assert built(waves.to("meta")).shape == found.shape


def test_wrong_shapes_are_refused():
    for wave in (torch.zeros(400), torch.zeros(1, 399), torch.zeros(1, 1, 400)):
        with pytest.raises(ValueError, match=r"expected \[B, T\] at 16000 Hz with T of 400 or more"):
            KaldiFbank()(wave)
