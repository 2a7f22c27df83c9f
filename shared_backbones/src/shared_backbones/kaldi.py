"""Kaldi's filter bank without parameters: waveform to natural-log mel energies, computed in float64."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class KaldiOptions:
    """Values that BEATs was trained with (avqacl_moe.md 3.7): window, hop and FFT in samples, frequencies in Hz.

    ``scale``: what turns samples in -1…1 into Kaldi's 16-bit range; ``taper``: exponent of the Hann window ("Povey");
    ``floor``: smallest energy of a band.
    """

    sample_rate: int = 16000
    window: int = 400
    hop: int = 160
    n_fft: int = 512
    mels: int = 128
    low: float = 20.0
    high: float = 8000.0
    scale: float = 32768.0
    preemphasis: float = 0.97
    taper: float = 0.85
    floor: float = 1.1920929e-7

    def frames(self, samples: int) -> int:
        """Frames of a waveform: only whole windows, nothing is padded."""
        return max(0, 1 + (samples - self.window) // self.hop)


class KaldiFbank:
    """Per frame: mean removed, pre-emphasis, symmetric Hann to the power ``taper``, power spectrum, mel bank, logarithm.

    In float64, since the energy of an empty band is what rounding leaves and its logarithm shows it: in float32 this bank and
    torchaudio's differ by 0.0002 on noise and by 13 beside a tone. No dither and no energy term.

    ``window`` and ``bank`` are no buffers: a module that is moved to half precision would round them.
    """

    def __init__(self, options: KaldiOptions | None = None) -> None:
        self.options = o = options or KaldiOptions()
        # On the CPU even where the surrounding device is meta.
        with torch.device("cpu"):
            self.window = torch.hann_window(o.window, periodic=False, dtype=torch.float64).pow(o.taper)
            self.bank = mel_bank(o)

    def describe(self) -> dict[str, Any]:
        """All options, JSON-like, for the front end's digest."""
        return {"kind": "kaldi filter bank", **asdict(self.options)}

    def __call__(self, wave: Tensor) -> Tensor:
        """[B, T] at ``sample_rate``, values in -1…1, to float32 [B, 1 + (T - window) // hop, mels]. ValueError for another shape or
        less than a window."""
        o = self.options
        if wave.ndim != 2 or wave.shape[1] < o.window:
            raise ValueError(
                f"kaldi filter bank: waveform of shape {tuple(wave.shape)}; expected [B, T] at {o.sample_rate} Hz with "
                f"T of {o.window} or more, one window"
            )
        # Autocast leaves float64 alone.
        frames = (wave.double() * o.scale).unfold(1, o.window, o.hop)
        frames = frames - frames.mean(-1, keepdim=True)
        # The first sample of a frame has itself as predecessor.
        before = torch.cat((frames[..., :1], frames[..., :-1]), -1)
        spectrum = torch.fft.rfft((frames - o.preemphasis * before) * self.window.to(wave.device), o.n_fft)
        energy = (spectrum.real.square() + spectrum.imag.square()) @ self.bank.to(wave.device)
        return energy.clamp(min=o.floor).log().float()


def mel_bank(o: KaldiOptions) -> Tensor:
    """Weight of each bin of the spectrum in each band, float64 [n_fft // 2 + 1, mels].

    Triangles of unit height between neighbouring edges, all measured in mel = 1127·ln(1 + f/700). The highest edge is the
    Nyquist frequency, so that bin has no weight. At 128 bands the lowest are narrower than the distance of two bins, and some
    of them hold none.
    """

    def mel(hz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hz / 700)

    low, high = mel(torch.tensor([o.low, o.high], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, o.mels + 2, dtype=torch.float64)
    at = mel(torch.arange(o.n_fft // 2 + 1, dtype=torch.float64) * o.sample_rate / o.n_fft).unsqueeze(1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    return torch.minimum((at - left) / (centre - left), (right - at) / (right - centre)).clamp(min=0)
