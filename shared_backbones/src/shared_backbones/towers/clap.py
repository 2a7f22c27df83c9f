"""LAION-CLAP (Wu et al., ICASSP 2023): HTS-AT on 48-kHz sound with its HTK front end, and RoBERTa text (php.md 3.3)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import ClapConfig, ClapModel, ClapTextConfig

from shared_backbones.errors import TowerError
from shared_backbones.hts_at import HtsAt, audio_config, fit_windows
from shared_backbones.logmel import LogMelOptions
from shared_backbones.registry import register
from shared_backbones.text import LENGTH, RobertaText
from shared_backbones.vocabulary import STAND_IN, Vocabulary, byte_vocabulary, roberta_vocabulary, stand_in_vocabulary


@register("clap")
def clap(size: str, tokenizer: str | Path | None = None) -> Clap:
    """Full: as the published file without fusion, text with ``tokenizer=``; tiny: 3 stages, 8 kHz, byte-level text."""
    if size == "tiny":
        if tokenizer is not None:
            raise TowerError("tower clap: tokenizer= is for size='full'; size='tiny' reads bytes")
        audio = audio_config(64, 16, 16, (1, 1, 2), (1, 2, 4), 4, 32)
        text = ClapTextConfig(
            vocab_size=259, hidden_size=32, intermediate_size=128, projection_dim=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=LENGTH + 2, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        )  # fmt: skip
        front = LogMelOptions(sample_rate=8000, hop=80, mels=16, scale="htk", n_fft=256, high=4000.0)
        return Clap(size, audio, text, front, byte_vocabulary(start=0, end=2, pad=1))
    audio = audio_config(256, 64, 96, (2, 2, 6, 2), (4, 8, 16, 32), 8, 512)
    # The library's other defaults are RoBERTa-base, but for the epsilon that RoBERTa and so LAION trained with.
    text = ClapTextConfig(projection_dim=512, layer_norm_eps=1e-5)
    front = LogMelOptions(sample_rate=48000, hop=480, mels=64, scale="htk")
    if tokenizer == STAND_IN:
        return Clap(size, audio, text, front, stand_in_vocabulary(0, 2, 1, text.vocab_size))
    return Clap(size, audio, text, front, roberta_vocabulary(tokenizer) if tokenizer is not None else None)


class Clap(HtsAt):
    """HTS-AT whose normalised tokens, averaged, go through CLAP's audio projection to the space of the text."""

    net: ClapModel

    def __init__(
        self, size: str, audio, text: ClapTextConfig, front: LogMelOptions, vocabulary: Vocabulary | None
    ) -> None:
        joint = audio.projection_dim
        config = ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=joint)
        net = ClapModel(config)
        super().__init__("clap", size, net, fit_windows(net.audio_model), front, joint_width=joint)
        self.text = RobertaText("clap", net, vocabulary)

    def project(self, final_tokens: Tensor) -> Tensor:
        return self.net.audio_projection(final_tokens.mean(1))
