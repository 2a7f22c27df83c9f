"""Uni-MoE-audio's dense language model (avqacl_moe.md 3.1): LLaMA-2 of 7 B words behind a projector for frames and a Q-Former for sound."""

from __future__ import annotations

from pathlib import Path

from transformers import Blip2QFormerConfig, LlamaConfig

from shared_backbones.dialogue import BARE, VICUNA, Dialogue
from shared_backbones.errors import TowerError
from shared_backbones.language import LanguageNet, LanguageTower
from shared_backbones.registry import register
from shared_backbones.tower import TowerInfo
from shared_backbones.vocabulary import STAND_IN, byte_vocabulary, sentencepiece_vocabulary, stand_in_vocabulary

# Decoder: width, blocks, heads, hidden, vocabulary, positions. Media: width of frames' and of sound's tokens. Q-Former: width, blocks,
# heads, hidden, queries.
FULL = ((4096, 32, 32, 11008, 32000, 4096), (1024, 768), (768, 12, 12, 3072, 50))
TINY = ((128, 4, 4, 344, 259, 512), (64, 64), (64, 2, 2, 128, 8))


@register("av_llama")
def av_llama(size: str, tokenizer: str | Path | None = None) -> LanguageTower:
    """Full: 7 B parameters, for the words of LLaMA-2's ``tokenizer=``; tiny: bytes as words, for the tiny towers."""
    decoder, (frames, sound), listener = FULL if size == "full" else TINY
    width, depth, heads, hidden, words, positions = decoder
    qwidth, qdepth, qheads, qhidden, queries = listener
    config = LlamaConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=hidden, vocab_size=words, max_position_embeddings=positions, rms_norm_eps=1e-5,
        hidden_act="silu", rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    qformer = Blip2QFormerConfig(
        hidden_size=qwidth, num_hidden_layers=qdepth, num_attention_heads=qheads, intermediate_size=qhidden,
        encoder_hidden_size=sound, cross_attention_frequency=2,
    )  # fmt: skip
    info = TowerInfo(
        name="av_llama", size=size, variant="uni_moe_audio" if size == "full" else "tiny", modality="language", width=width,
        class_tokens=0, grid=(1, positions), depths=(depth,), heads=(heads,),
    )  # fmt: skip
    return LanguageTower(info, LanguageNet(config, frames, qformer, queries), _dialogue(size, words, tokenizer))


def _dialogue(size: str, words: int, tokenizer: str | Path | None) -> Dialogue | None:
    """The dialogue of a size, or none for the full one without a tokenizer."""
    if size == "tiny":
        if tokenizer is not None:
            raise TowerError("tower av_llama: tokenizer= is for size='full'; size='tiny' reads bytes")
        return Dialogue(BARE, byte_vocabulary(start=1, end=2, pad=0))
    if tokenizer is None:
        return None
    stand_in = tokenizer == STAND_IN
    return Dialogue(VICUNA, stand_in_vocabulary(1, 2, 0, words) if stand_in else sentencepiece_vocabulary(tokenizer))
