"""VGGish's parameter-free front end: waveform to log-mel patches of 0.96 s, as AudioSet's features were made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank


@dataclass(frozen=True)
class PatchOptions:
    """Published values (Hershey et al., ICASSP 2017; tasks.md 3.1): window, hop and FFT in samples, frequencies in Hz."""

    sample_rate: int = 16000
    window: int = 400
    hop: int = 160
    n_fft: int = 512
    mels: int = 64
    low: float = 125.0
    high: float = 7500.0
    offset: float = 0.01
    frames: int = 96

    @property
    def samples(self) -> int:
        """The shortest waveform that fills a patch."""
        return self.window + (self.frames - 1) * self.hop


class LogMelPatches(nn.Module):
    """ln(mel magnitude + offset) in patches that do not overlap, in float32 whatever the surrounding precision.

    STFT: periodic Hann window, no padding, magnitude (not power). Mel bank: triangles of unit height in mel space, mel =
    1127·ln(1 + f/700), on the bins' frequencies; the lowest edge lies above 0 Hz, so the DC bin has no weight.
    """

    window: Tensor
    bank: Tensor

    def __init__(self, options: PatchOptions | None = None) -> None:
        super().__init__()
        self.options = o = options or PatchOptions()
        # The bank comes from numpy, so build it on the CPU even where the surrounding device is meta.
        with torch.device("cpu"):
            bank = mel_filter_bank(
                o.n_fft // 2 + 1, o.mels, o.low, o.high, o.sample_rate, mel_scale="kaldi", triangularize_in_mel_space=True
            )  # fmt: skip
            self.register_buffer("bank", torch.from_numpy(np.asarray(bank, dtype=np.float32)), persistent=False)
            self.register_buffer("window", torch.hann_window(o.window), persistent=False)

    def describe(self) -> dict[str, Any]:
        """All options, JSON-like, for the front end's digest."""
        return {"kind": "log-mel patches", **asdict(self.options)}

    def forward(self, wave: Tensor, patches: int = 1) -> Tensor:
        """The first ``patches`` patches of a waveform, [B, T] at ``sample_rate``, values in -1…1, to [B, patches, frames, mels].

        Frames behind the last whole patch are left out. A waveform with fewer patches repeats its last one (as AVSBench's
        published log-mels do, tasks.md 3.1); one that is shorter than a patch is continued with silence (tasks.md 0.3).
        ValueError for another shape or an empty waveform.
        """
        o = self.options
        if wave.ndim != 2 or not wave.shape[1]:
            raise ValueError(
                f"log-mel patches: waveform of shape {tuple(wave.shape)}; expected [B, T] at {o.sample_rate} Hz"
            )
        with torch.autocast(wave.device.type, enabled=False):
            padded = nn.functional.pad(wave.float(), (0, max(0, o.samples - wave.shape[1])))
            whole = 1 + (padded.shape[1] - o.samples) // (o.frames * o.hop)
            used = min(whole, patches)
            framed = padded[:, : o.samples + (used - 1) * o.frames * o.hop].unfold(1, o.window, o.hop)
            magnitude = torch.fft.rfft(framed * self.window.float(), o.n_fft).abs()
            mel = (magnitude @ self.bank.float() + o.offset).log().unflatten(1, (used, o.frames))
            return torch.cat((mel, mel[:, -1:].expand(-1, patches - used, -1, -1)), 1)
