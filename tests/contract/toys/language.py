"""A tiny LLaMA as a tower: token embeddings in, hidden states out, with rotary tables and a key-value cache in ``aux``."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from avcl_core.testing.toy_data import WORDS
from shared_backbones import Sub, Tower, TowerInfo

WIDTH = 16


class Language(Tower):
    def __init__(self, seed=0):
        config = LlamaConfig(
            vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=2, attn_implementation="sdpa", tie_word_embeddings=False,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = LlamaForCausalLM(config)
        subs = tuple(Sub(kind, 0, block, (1, 1), WIDTH) for block in range(3) for kind in ("attn", "mlp"))
        info = TowerInfo("llama", "tiny", "toy", "visual", WIDTH, 0, (1, 1), (3,), heads=(2,))
        super().__init__(info, net, subs)

    def embed(self, features, cache=None):
        past = cache.get_seq_length() if cache is not None else 0
        position = torch.arange(past, past + features.shape[1])[None]
        return features, {"rotary": self.net.model.rotary_emb(features, position), "cache": cache}

    def run(self, sub, tokens, aux, prefix=None, swap=None):
        layer = self.net.model.layers[sub.block]
        if sub.kind == "mlp":
            return (swap or layer.mlp)(layer.post_attention_layernorm(tokens))
        return layer.self_attn(
            hidden_states=layer.input_layernorm(tokens), position_embeddings=aux["rotary"], attention_mask=None,
            past_key_values=aux["cache"],
        )[0]  # fmt: skip

    def mlp(self, sub):
        return self.net.model.layers[sub.block].mlp

    def final(self, tokens):
        return self.net.model.norm(tokens)

    def words(self, ids):
        return self.net.model.embed_tokens(ids)

    def vocabulary(self, hidden):
        return self.net.lm_head(hidden)
