"""A repeated second: what the cache keeps, that it gives the front end's own bits back, and when it may be shared."""

import numpy as np
import pytest
import torch

from avcl_core.errors import ConfigError
from avcl_core.testing.toy_data import RATE
from avcl_core.testing.toy_towers import htsat
from avcl_core.training.inputs import AudioInput, one_thread
from shared_backbones import create
from shared_backbones.hts_at import HtsAt
from shared_backbones.registry import build


@pytest.fixture(scope="module")
def full() -> HtsAt:
    """HTS-AT of the published size, without memory for its weights: the front end has none."""
    with torch.device("meta"):
        tower = build("htsat", "full", {})
    assert tower.info.max_samples // tower.info.sample_rate == 10
    return tower


def sounds(rate: int, seconds: int) -> np.ndarray:
    """A clip of noise, a chirp, a click at the seam, silence, and noise again."""
    rng = np.random.default_rng(0)
    time = np.arange(rate) / rate
    click = np.zeros(rate)
    click[[0, -1]] = 1.0
    kinds = [rng.normal(0, 0.1, rate), np.sin(2e3 * time**2), click, np.zeros(rate)]
    return np.stack([kinds[i % 4] for i in range(seconds)]).astype(np.float32)


def directly(tower, sound: np.ndarray, times: int) -> torch.Tensor:
    with one_thread():
        return tower.frontend(torch.from_numpy(sound).repeat(1, times))


def entries(folder) -> list:
    return sorted(folder.rglob("*.npy"))


@pytest.mark.parametrize("tile", [1, 2, 3, 5, 10, "clip"])
def test_the_published_size_gets_the_bits_of_the_whole_sound(full, tmp_path, monkeypatch, tile):
    sound = sounds(32000, 10)
    made = AudioInput(full, 32000, tile, tmp_path)
    expected = directly(full, sound, 10 if tile == "clip" else tile)
    for digest in ("content", "content", None):
        assert torch.equal(made(sound, digest), expected)
    (entry,) = entries(tmp_path)
    assert np.load(entry).shape == (10, 1, {1: 101, 2: 201}.get(tile, 301), 64)
    assert entry.stat().st_size <= 800_000
    monkeypatch.setattr(AudioInput, "_compute", None)
    assert torch.equal(AudioInput(full, 32000, tile, tmp_path)(sound, "content"), expected), "from the disk alone"


def test_the_tiny_size_gets_the_bits_of_the_whole_sound(tmp_path):
    tower = create("htsat", size="tiny")
    sound = sounds(32000, 5)
    expected = directly(tower, sound, 2)
    for cache in (tmp_path, None):
        assert torch.equal(AudioInput(tower, 32000, 2, cache)(sound, "content"), expected)


@pytest.mark.parametrize("times", [3, 5, 10])
def test_the_framing_is_the_front_end_s_own(times):
    """A tower at 8 kHz with a hop of 160: what it unrolls has the period of its own frames."""
    tower = htsat()
    waves = torch.from_numpy(sounds(RATE, 4))
    stored = tower.logmel(waves.repeat(1, tower.repetitions(RATE, times)))
    assert torch.equal(tower.unroll(stored, RATE, times), tower.logmel(waves.repeat(1, times)))


def test_silence_stays_at_the_floor(full, tmp_path):
    made = AudioInput(full, 32000, 10, tmp_path)(np.zeros((10, 32000), np.float32), "silence")
    assert torch.equal(made, torch.full((10, 1, 1001, 64), -100.0))


def test_repetitions_share_an_entry_exactly_where_they_are_unrolled_from_the_same(full, tmp_path):
    sound = sounds(32000, 5)
    kinds = {tile: AudioInput(full, 32000, tile, tmp_path) for tile in (1, 2, 3, 5, 10, "clip")}
    assert len({kinds[tile].digest(5) for tile in (3, 5, 10, "clip")}) == 1
    assert len({kinds[tile].digest(5) for tile in (1, 2, 3)}) == 3
    assert kinds["clip"].digest(2) == kinds[2].digest(5)
    assert AudioInput(full, 16000, 3, tmp_path).digest(5) != kinds[3].digest(5)
    first = kinds[5](sound, "content")
    stored = entries(tmp_path)
    longer = kinds[10](sound, "content")
    assert entries(tmp_path) == stored
    assert (first.shape[2], longer.shape[2]) == (501, 1001)
    assert torch.equal(longer, directly(full, sound, 10))


def test_sound_at_another_rate_is_resampled_before_it_is_repeated(full, tmp_path):
    sound = sounds(16000, 2)
    made = AudioInput(full, 16000, 10, tmp_path)(sound, "content")
    assert made.shape == (2, 1, 1001, 64)
    assert torch.equal(made[:, :, 100:200], made[:, :, 500:600])


def test_a_clip_that_does_not_fit_is_refused_whatever_is_stored(full, tmp_path):
    with pytest.raises(ConfigError, match=r"tile is clip: 11 seconds; htsat takes 10 at most"):
        AudioInput(full, 32000, "clip", tmp_path)(np.zeros((11, 32000), np.float32), "content")
