"""The parameter-free audio front end: waveform to log-mel in decibels, in float32 whatever the surrounding precision."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank


@dataclass(frozen=True)
class LogMelOptions:
    """STFT (Hann, centred, reflect padding, power) and mel bank; ``hop`` and ``n_fft`` in samples, frequencies in Hz.

    ``scale`` slaney: librosa's default bank (Slaney scale, area-normalised triangles); htk: torchaudio's default bank (HTK
    scale, unit-height triangles).
    """

    sample_rate: int
    hop: int
    mels: int
    scale: Literal["slaney", "htk"]
    n_fft: int = 1024
    low: float = 50.0
    high: float = 14000.0
    floor: float = 1e-10


class LogMel(nn.Module):
    """10·log10(max(mel power, floor)) of a waveform (avmoe.md 5.1, php.md 3.3)."""

    window: Tensor
    bank: Tensor

    def __init__(self, options: LogMelOptions) -> None:
        super().__init__()
        self.options = options
        # The bank comes from numpy, so build it on the CPU even where the surrounding device is meta.
        with torch.device("cpu"):
            bank = mel_filter_bank(
                options.n_fft // 2 + 1, options.mels, options.low, options.high, options.sample_rate,
                norm="slaney" if options.scale == "slaney" else None, mel_scale=options.scale,
            )  # fmt: skip
            self.register_buffer("bank", torch.from_numpy(np.asarray(bank, dtype=np.float32)), persistent=False)
            self.register_buffer("window", torch.hann_window(options.n_fft), persistent=False)

    def describe(self) -> dict[str, Any]:
        """All options, JSON-like, for the front end's digest."""
        return {"kind": "log-mel", **asdict(self.options)}

    def repetitions(self, samples: int, times: int) -> int:
        """How many repetitions of ``samples`` samples hold every frame of ``times`` of them (avmoe.md 3.9, item 2).

        Three, where the hop divides the piece: the first, which begins with the reflection, any one between two others, and the
        last, which ends with it; a window must not reach over more than its neighbours.
        """
        o = self.options
        periodic = samples % o.hop == 0 and samples >= o.n_fft // 2
        return min(times, 3) if periodic else times

    def unroll(self, mel: Tensor, samples: int, times: int) -> Tensor:
        """Log-mel of ``repetitions(samples, times)`` repetitions to that of ``times``, [B, 1, frames, mels], bit for bit.
        ValueError when ``mel`` has another number of frames."""
        given = self.repetitions(samples, times)
        expected = 1 + given * samples // self.options.hop
        if mel.shape[2] != expected:
            raise ValueError(
                f"log-mel: {mel.shape[2]} frames to unroll; expected {expected}, those of {samples} samples repeated {given} times"
            )
        if given == times:
            return mel
        period = samples // self.options.hop
        first, middle, last = mel[:, :, :period], mel[:, :, period : 2 * period], mel[:, :, 2 * period :]
        return torch.cat((first, middle.repeat(1, 1, times - 2, 1), last), 2)

    def forward(self, wave: Tensor) -> Tensor:
        """[B, T] at ``sample_rate``, values in −1…1, to [B, 1, 1 + T // hop, mels] in dB. ValueError when shorter than
        half a window (nothing to reflect)."""
        o = self.options
        if wave.ndim != 2:
            raise ValueError(f"log-mel: waveform of shape {tuple(wave.shape)}; expected [B, T] at {o.sample_rate} Hz")
        if wave.shape[1] <= o.n_fft // 2:
            raise ValueError(
                f"log-mel: {wave.shape[1]} samples; expected more than {o.n_fft // 2}, half an STFT window"
            )
        with torch.autocast(wave.device.type, enabled=False):
            spectrum = torch.stft(
                wave.float(),
                o.n_fft,
                o.hop,
                window=self.window.float(),
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()
            mel = power.transpose(1, 2) @ self.bank.float()
            return 10 * mel.clamp(min=o.floor).log10().unsqueeze(1)
