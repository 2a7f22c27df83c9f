"""Synthesised sounds: sixteen sound sources played with eight gestures, with variation inside every combination."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RATE = 32000
_TABLE = 4096
_FFT = 131072  # a power of two above twice the longest recording: other lengths are many times slower

Contour = np.ndarray
"""One value per sample, float64 [n]."""


def _table(amplitudes: np.ndarray) -> np.ndarray:
    """One period of the harmonic series with these amplitudes (fundamental first)."""
    spectrum = np.zeros(_TABLE // 2 + 1, dtype=complex)
    spectrum[1 : len(amplitudes) + 1] = -0.5j * _TABLE * np.asarray(amplitudes)
    return np.fft.irfft(spectrum, _TABLE)


def _play(table: np.ndarray, cycles: Contour) -> np.ndarray:
    """Read a wave table at a phase counted in cycles."""
    phase = cycles - np.floor(cycles)  # the same as cycles % 1, several times faster
    return table[(phase * _TABLE).astype(np.int64)]


def _cycles(frequency: Contour) -> Contour:
    return np.cumsum(frequency) / RATE


def _noise(n: int, bandwidth: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise below ``bandwidth`` Hz with unit variance, n <= 65536."""
    spectrum = np.fft.rfft(rng.standard_normal(_FFT // 2))
    spectrum[np.fft.rfftfreq(_FFT // 2, 1 / RATE) > bandwidth] = 0
    noise = np.fft.irfft(spectrum)[:n]
    return noise / noise.std()


def _harmonic(amplitudes: Callable[[np.ndarray], np.ndarray], top: float = 12000.0) -> Callable:
    def play(f: Contour, rng: np.random.Generator) -> np.ndarray:
        orders = np.arange(1, max(2, int(top / f.max()) + 1))
        tilt = rng.uniform(0.85, 1.15)
        return _play(_table(amplitudes(orders) ** tilt), _cycles(f) + rng.random())

    return play


def _partials(ratios: list[float], levels: list[float]) -> Callable:
    def play(f: Contour, rng: np.random.Generator) -> np.ndarray:
        cycles, sine = _cycles(f), _table(np.ones(1))
        return sum(
            (level * rng.uniform(0.7, 1.3) * _play(sine, cycles * ratio * rng.uniform(0.995, 1.005) + rng.random())
             for ratio, level in zip(ratios, levels, strict=True)),
            np.zeros(len(f)),
        )  # fmt: skip

    return play


def _band(bandwidth: float, flutter: tuple[float, float] | None = None) -> Callable:
    """Noise around the pitch contour, optionally fluttering at a rate in Hz."""

    def play(f: Contour, rng: np.random.Generator) -> np.ndarray:
        sound = _noise(len(f), bandwidth, rng) * np.sin(2 * np.pi * _cycles(f))
        if flutter:
            time = np.arange(len(f)) / RATE
            sound *= np.clip(np.sin(2 * np.pi * rng.uniform(*flutter) * time + rng.uniform(0, 6)), 0, 1)
        return sound

    return play


def _drone(f: Contour, rng: np.random.Generator) -> np.ndarray:
    table, cycles = _table(1.0 / np.arange(1, 13) ** 1.3), _cycles(f)
    return (
        _play(table, cycles) + _play(table, cycles * (1.5 + rng.normal(0, 0.004))) + 0.7 * _play(table, cycles * 1.011)
    )


def _growl(f: Contour, rng: np.random.Generator) -> np.ndarray:
    rough = 0.6 + 0.4 * _noise(len(f), 40.0, rng)
    return _play(_table(1.0 / np.arange(1, 60) ** 0.8), _cycles(f)) * rough


def _whistle(f: Contour, rng: np.random.Generator) -> np.ndarray:
    breath = rng.uniform(0.1, 0.25) * _noise(len(f), 700.0, rng) * np.sin(2 * np.pi * _cycles(f * 1.1))
    return _play(_table(np.array([1.0, 0.06])), _cycles(f)) + breath


def _squeak(f: Contour, rng: np.random.Generator) -> np.ndarray:
    cycles = _cycles(f)
    return np.sin(2 * np.pi * cycles + rng.uniform(2.0, 3.2) * np.sin(2 * np.pi * cycles * 1.41))


def _tick(f: Contour, rng: np.random.Generator) -> np.ndarray:
    cycles = _cycles(f / 100.0)  # the contour is the resonance; clicks come a hundred times slower
    impulses = np.diff(np.floor(cycles + rng.random()), prepend=0.0).clip(0, 1)
    time = np.arange(int(0.03 * RATE)) / RATE
    click = np.exp(-time / rng.uniform(0.004, 0.008)) * np.sin(2 * np.pi * float(f.mean()) * time)
    return np.fft.irfft(np.fft.rfft(impulses, _FFT) * np.fft.rfft(click, _FFT))[: len(f)] * 4


def _pluck(f: Contour, rng: np.random.Generator) -> np.ndarray:
    cycles = _cycles(f)
    age = (np.arange(len(f)) / RATE + rng.uniform(0, 0.2)) % rng.uniform(0.24, 0.32)
    bright, dark = _table(np.arange(1, 25) ** -0.6), _table(np.array([1.0, 0.3]))
    return _play(bright, cycles) * np.exp(-age / 0.04) + _play(dark, cycles) * np.exp(-age / 0.15)


def _voice(f: Contour, rng: np.random.Generator) -> np.ndarray:
    orders = np.arange(1, int(5000 / f.max()) + 1)
    pitch = float(f.mean()) * orders
    formants = [(rng.uniform(650, 800), 90.0), (rng.uniform(1050, 1250), 120.0), (2700.0, 200.0)]
    envelope = sum(
        (np.exp(-0.5 * ((pitch - centre) / width) ** 2) for centre, width in formants), np.full(len(pitch), 0.03)
    )
    return _play(_table(envelope), _cycles(f))


SOURCES: dict[str, tuple[float, float, Callable]] = {
    "hum": (95, 135, _harmonic(lambda k: np.where(k < 4, 1.0 / k**1.4, 0.0))),
    "chime": (520, 680, _partials([1, 2.76, 5.40, 8.93], [1, 0.6, 0.4, 0.2])),
    "buzz": (150, 205, _harmonic(lambda k: 1.0 / k)),
    "hiss": (5200, 6400, _band(1600)),
    "reed": (270, 360, _harmonic(lambda k: np.where(k % 2 == 1, 1.0 / k, 0.02))),
    "tick": (1900, 2600, _tick),
    "whistle": (1500, 2000, _whistle),
    "growl": (60, 82, _growl),
    "pluck": (210, 290, _pluck),
    "rasp": (1500, 2100, _band(500, (55, 75))),
    "horn": (185, 245, _harmonic(lambda k: np.exp(-0.5 * ((k - 5) / 3.0) ** 2))),
    "glass": (1350, 1800, _partials([1, 1.51, 2.32, 4.25], [1, 0.3, 0.6, 0.4])),
    "drone": (100, 140, _drone),
    "squeak": (820, 1080, _squeak),
    "rumble": (140, 200, _band(90)),
    "voice": (120, 200, _voice),
}
"""Name -> lowest and highest pitch in Hz, and the player of a pitch contour."""


def _gesture(name: str, n: int, rng: np.random.Generator) -> tuple[Contour, Contour]:
    """Pitch factor and loudness over time for one gesture, each [n]; every gesture comes round at least twice a second."""
    time = np.arange(n) / RATE + rng.uniform(0, 1)
    flat = np.ones(n)
    if name == "pulse":
        return flat, 1 / (1 + np.exp(-12 * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * time)))
    if name == "trill":
        return 2 ** (rng.uniform(1.6, 2.4) / 12 * np.sign(np.sin(2 * np.pi * rng.uniform(6.5, 9) * time))), flat
    if name == "rise":
        return 2 ** (((time * rng.uniform(2.0, 2.7)) % 1) * rng.uniform(0.8, 1.1) - 0.5), flat
    if name == "fall":
        return 2 ** (0.5 - ((time * rng.uniform(2.0, 2.7)) % 1) * rng.uniform(0.8, 1.1)), flat
    if name == "swell":
        return flat, 0.5 - 0.48 * np.cos(2 * np.pi * rng.uniform(2.0, 2.6) * time)
    if name == "stutter":
        slots = int(n / RATE * rng.uniform(11, 14)) + 1
        gate = np.repeat(rng.permutation(np.arange(slots) % 2), n // slots + 1)[:n].astype(float)
        smooth = np.ones(240) / 240
        return flat, np.convolve(gate, smooth, mode="same")
    if name == "strike":
        return flat, np.exp(-((time * rng.uniform(2.4, 3.0)) % 1) * rng.uniform(4.0, 5.5))
    return 1 + 0.006 * np.sin(2 * np.pi * rng.uniform(4, 6) * time), flat


GESTURES = ("steady", "pulse", "trill", "rise", "fall", "swell", "stutter", "strike")


def synthesise(source: str, gesture: str, rng: np.random.Generator) -> np.ndarray:
    """One recording at 32 kHz, float32 [n] with a peak of 0.9 and a length between 1.3 and 1.7 s."""
    n = int(rng.uniform(1.3, 1.7) * RATE)
    low, high, player = SOURCES[source]
    pitch, loudness = _gesture(gesture, n, rng)
    wave = player(rng.uniform(low, high) * pitch, rng) * loudness
    wave = wave + rng.uniform(0.005, 0.02) * wave.std() * rng.standard_normal(n)
    return (0.9 * wave / np.abs(wave).max()).astype(np.float32)
