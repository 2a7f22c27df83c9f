"""HTS-AT on 32-kHz sound with the Slaney front end of its authors (avmoe.md 5.1): AudioSet features without a text side."""

from __future__ import annotations

from transformers import ClapAudioModel

from shared_backbones.hts_at import HtsAt, audio_config, fit_windows
from shared_backbones.logmel import LogMelOptions
from shared_backbones.registry import register


@register("htsat")
def htsat(size: str) -> HtsAt:
    """Full: 64 mels, 256×256 spectrogram, widths 96…768, up to 10 s; tiny: 16 mels, 64×64, widths 16…128, up to 2.5 s."""
    if size == "tiny":
        config = audio_config(64, 16, 16, (2, 2, 2, 2), (1, 2, 4, 8), 4, 32)
    else:
        config = audio_config(256, 64, 96, (2, 2, 6, 2), (4, 8, 16, 32), 8, 512)
    net = fit_windows(ClapAudioModel(config))
    front = LogMelOptions(sample_rate=32000, hop=320, mels=config.num_mel_bins, scale="slaney")
    return HtsAt("htsat", size, net, net, front)
