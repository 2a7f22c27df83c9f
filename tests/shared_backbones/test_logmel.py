"""The audio front end against a formula of its own: numpy FFT, mel scales and triangles written out from their definitions."""

import numpy as np
import pytest
import torch
from transformers import ClapFeatureExtractor

from shared_backbones.logmel import LogMel, LogMelOptions
from shared_backbones.registry import build

HTSAT = LogMelOptions(sample_rate=32000, hop=320, mels=64, scale="slaney")
CLAP = LogMelOptions(sample_rate=48000, hop=480, mels=64, scale="htk")


def to_mel(hz, scale):
    """Slaney: linear below 1 kHz (15 mels there), then 27 log steps per factor 6.4; HTK: 2595·log10(1 + f/700)."""
    if scale == "htk":
        return 2595 * np.log10(1 + hz / 700)
    return np.where(hz < 1000, 3 * hz / 200, 15 + 27 * np.log(np.maximum(hz, 1e-9) / 1000) / np.log(6.4))


def bank(o):
    """Triangles between neighbouring corner frequencies; Slaney's have unit area (2 / width), HTK's unit height."""
    grid = np.linspace(0, 30000, 3_000_001)  # invert the scale by table: 0.01 Hz steps
    mels = to_mel(grid, o.scale)
    corners = np.interp(
        np.linspace(to_mel(np.array(o.low), o.scale), to_mel(np.array(o.high), o.scale), o.mels + 2), mels, grid
    )
    hz = np.arange(o.n_fft // 2 + 1) * o.sample_rate / o.n_fft
    rows = []
    for left, centre, right in zip(corners, corners[1:], corners[2:], strict=False):
        up, down = (hz - left) / (centre - left), (right - hz) / (right - centre)
        rows.append(np.maximum(0, np.minimum(up, down)) * (2 / (right - left) if o.scale == "slaney" else 1))
    return np.stack(rows, 1)


def direct(wave, o):
    padded = np.pad(wave, o.n_fft // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(o.n_fft) / o.n_fft)
    count = 1 + len(wave) // o.hop
    frames = np.stack([padded[i * o.hop : i * o.hop + o.n_fft] * window for i in range(count)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    return 10 * np.log10(np.maximum(power @ bank(o), o.floor))


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples)


@pytest.mark.parametrize("options", [HTSAT, CLAP, LogMelOptions(8000, 80, 16, "htk", n_fft=256, high=4000.0)])
def test_log_mel_equals_the_formula(options):
    wave = noise(options.sample_rate)
    found = LogMel(options)(torch.from_numpy(wave).float()[None])
    assert found.shape == (1, 1, 101, options.mels)
    np.testing.assert_allclose(found[0, 0].numpy(), direct(wave, options), atol=2e-3)


def test_clap_front_end_equals_the_published_extractor():
    extractor = ClapFeatureExtractor(
        feature_size=64,
        sampling_rate=48000,
        hop_length=480,
        fft_window_size=1024,
        frequency_min=50,
        frequency_max=14000,
    )
    wave = noise(48000)
    expected = extractor._np_extract_fbank_features(wave, extractor.mel_filters)
    found = LogMel(CLAP)(torch.from_numpy(wave).float()[None])
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=2e-3)


def test_silence_is_the_floor():
    assert torch.equal(LogMel(HTSAT)(torch.zeros(2, 32000)), torch.full((2, 1, 101, 64), -100.0))


def test_ten_times_louder_is_twenty_decibels():
    wave = torch.from_numpy(noise(32000)).float()[None]
    model = LogMel(HTSAT)
    torch.testing.assert_close(model(10 * wave) - model(wave), torch.full((1, 1, 101, 64), 20.0), atol=1e-3, rtol=0)


def test_a_tone_lies_in_its_band():
    time = torch.arange(32000) / 32000
    for hz, scale in ((440.0, "slaney"), (3000.0, "slaney"), (3000.0, "htk")):
        options = LogMelOptions(32000, 320, 64, scale)
        loudest = int(LogMel(options)(torch.sin(2 * torch.pi * hz * time)[None])[0, 0].mean(0).argmax())
        edges = np.linspace(to_mel(np.array(50.0), scale), to_mel(np.array(14000.0), scale), 66)
        assert edges[loudest] < to_mel(np.array(hz), scale) < edges[loudest + 2]


@pytest.mark.parametrize(("samples", "frames"), [(513, 2), (32000, 101), (160000, 501), (320000, 1001)])
def test_frames_per_length(samples, frames):
    assert LogMel(HTSAT)(torch.zeros(1, samples)).shape == (1, 1, frames, 64)


def test_too_short_is_refused():
    with pytest.raises(ValueError, match="more than 512"):
        LogMel(HTSAT)(torch.zeros(1, 512))


def test_front_end_stays_in_float32_under_autocast():
    wave = torch.from_numpy(noise(32000)).float()[None]
    model = LogMel(HTSAT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(wave), model(wave.clone()))
        mixed = model(wave)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, model(wave))


def test_front_end_has_no_parameters_and_saves_nothing():
    tower = build("htsat", "tiny", {})
    assert not list(tower.logmel.parameters())
    assert not tower.logmel.state_dict()


def test_short_sound_is_stretched_to_the_whole_spectrogram():
    """One second fills the same 256 columns as two and a half: nothing is padded or repeated."""
    tower = build("htsat", "tiny", {})
    flat = torch.linspace(-80, 0, 101)[None, None, :, None].expand(1, 1, 101, 16).contiguous()
    folded = tower.encoder.reshape_mel2img(flat)
    columns = torch.cat([folded[0, 0, 16 * chunk] for chunk in range(4)])
    torch.testing.assert_close(columns, torch.linspace(-80, 0, 256), atol=0.1, rtol=0)


TINY = LogMelOptions(sample_rate=32000, hop=320, mels=16, scale="slaney")
SHORT = LogMelOptions(8000, 80, 16, "htk", n_fft=256, high=4000.0)


@pytest.mark.parametrize("options", [HTSAT, TINY, CLAP, SHORT])
@pytest.mark.parametrize("times", [1, 2, 3, 5, 10])
def test_a_repeated_second_is_unrolled_bit_for_bit(options, times):
    model, rate = LogMel(options), options.sample_rate
    time = torch.arange(rate) / rate
    click = torch.zeros(rate)
    click[[0, 1, -1]] = 1.0
    seconds = torch.stack(
        [
            torch.from_numpy(noise(rate)).float(), 0.5 * torch.sin(2 * torch.pi * 440.5 * time), click, torch.zeros(rate)
        ]
    )  # fmt: skip
    enough = model.repetitions(rate, times)
    assert enough == min(times, 3)
    stored = model(seconds.repeat(1, enough))
    assert stored.shape[2] == 1 + 100 * enough
    whole = model(seconds.repeat(1, times))
    assert torch.equal(model.unroll(stored, rate, times), whole)
    for i in range(len(seconds)):
        assert torch.equal(model.unroll(stored[i : i + 1], rate, times), whole[i : i + 1])
        assert torch.equal(model.unroll(model(seconds[i : i + 1].repeat(1, enough)), rate, times), whole[i : i + 1])
    assert torch.equal(whole[3], torch.full_like(whole[3], -100.0))


@pytest.mark.parametrize("samples", [31999, 320])
def test_a_piece_without_a_period_of_frames_is_repeated_in_full(samples):
    """A hop that does not divide the piece, or a window that reaches over more than the neighbours."""
    model = LogMel(HTSAT)
    piece = torch.from_numpy(noise(samples)).float()[None]
    assert model.repetitions(samples, 5) == 5
    whole = model(piece.repeat(1, 5))
    assert torch.equal(model.unroll(whole, samples, 5), whole)
    period = samples // 320
    three = model(piece.repeat(1, 3))
    naive = torch.cat(
        (three[:, :, :period], three[:, :, period : 2 * period].repeat(1, 1, 3, 1), three[:, :, 2 * period :]), 2
    )
    assert naive.shape != whole.shape or not torch.equal(naive, whole), "the shortcut would be wrong here"


def test_only_what_was_asked_for_is_unrolled():
    model = LogMel(HTSAT)
    with pytest.raises(
        ValueError, match=r"201 frames to unroll; expected 301, those of 32000 samples repeated 3 times"
    ):
        model.unroll(torch.zeros(1, 1, 201, 64), 32000, 10)


@pytest.mark.parametrize(("name", "enough"), [("htsat", 3), ("clap", 3), ("vggish", 7)])
def test_a_tower_asks_its_own_front_end(name, enough):
    tower = build(name, "tiny", {})
    rate = tower.info.sample_rate
    assert tower.repetitions(rate, 7) == enough
    assert (
        tower.unroll(tower.frontend(torch.zeros(1, rate)), rate, 1).shape == tower.frontend(torch.zeros(1, rate)).shape
    )
