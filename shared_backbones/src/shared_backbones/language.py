"""An audio-visual language model: a causal LLaMA whose prompt has places for what is seen and heard, each behind a connector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from shared_backbones.dialogue import PLACES, Dialogue
from shared_backbones.errors import WeightsError
from shared_backbones.tower import Prefix, Sub, Swap, Tower, TowerInfo, refuse, refuse_hiding
from shared_backbones.vocabulary import absent

UNUSED = -1
"""Id of a position that is not there: prompts of a batch have different lengths."""


@dataclass(frozen=True)
class Media:
    """Tokens of one medium for a prompt ``[b, n, C]``, and which of them are there, bool ``[b, n]``."""

    tokens: Tensor
    valid: Tensor


@dataclass
class Cache:
    """Keys and values of the positions so far, per block, and which positions are there, bool ``[B, S]``."""

    valid: Tensor
    rows: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def extended(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append a block's keys and values ``[B, heads, n, d]`` and return all of them."""
        if block in self.rows:
            known = self.rows[block]
            keys, values = torch.cat((known[0], keys), 2), torch.cat((known[1], values), 2)
        self.rows[block] = (keys, values)
        return keys, values


class Frames(nn.Module):
    """Patch tokens of several frames as words of one picture: two layers and GELU, averaged over the frames."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, words), nn.Linear(words, words)

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """``[b, T, P, width]``, averaged with weights ``[b, T]`` → ``[b, P, words]``; the mean follows the GELU, and a linear map
        can follow the mean."""
        return self.leave((F.gelu(self.enter(tokens)) * weights[:, :, None, None]).sum(1))


class Listener(nn.Module):
    """A few queries that read all tokens of a sound (BLIP-2's Q-Former; Li et al., ICML 2023), as words."""

    def __init__(self, config: Blip2QFormerConfig, queries: int, words: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, config.hidden_size))
        self.qformer = Blip2QFormerModel(config)
        self.projector = nn.Linear(config.hidden_size, words)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """``[n, L, width]`` of which ``valid`` ``[n, L]`` are there → ``[n, queries, words]``."""
        queries = self.query_tokens.expand(len(tokens), -1, -1)
        # The library's masks are 1 where attended; a bool tensor of two axes is taken as such.
        found = self.qformer(queries, encoder_hidden_states=tokens, encoder_attention_mask=valid.to(tokens.dtype))
        return self.projector(found.last_hidden_state)


class LanguageNet(nn.Module):
    """The weights: decoder, and a connector per modality."""

    def __init__(self, decoder: LlamaConfig, frames: int, listener: Blip2QFormerConfig, queries: int) -> None:
        super().__init__()
        words = cast(int, decoder.hidden_size)
        self.decoder = LlamaForCausalLM(decoder)
        self.visual = Frames(frames, words)
        self.audio = Listener(listener, queries, words)


class LanguageTower(Tower):
    """LLaMA block by block, pre-norm, causal; ``encode`` takes ids ``[B, L]`` in which :data:`UNUSED` positions are not there.

    Prompts with media go through :meth:`splice` and :meth:`enter`; generation keeps a :class:`Cache`.
    """

    net: LanguageNet

    def __init__(self, info: TowerInfo, net: LanguageNet, dialogue: Dialogue | None) -> None:
        subs = (Sub(kind, 0, block, info.grid, info.width) for block in range(info.depths[0]) for kind in _KINDS)
        super().__init__(info, net, tuple(subs))
        words = cast(int, net.decoder.config.vocab_size)
        if dialogue is not None and dialogue.vocabulary.size != words:
            raise WeightsError(
                f"tower {info.name}: tokenizer has {dialogue.vocabulary.size} tokens, the language model {words}; "
                "expected tokenizer.model of LLaMA-2"
            )
        self._dialogue = dialogue

    @property
    def dialogue(self) -> Dialogue:
        """Texts as ids. TowerError without a vocabulary."""
        if self._dialogue is None:
            raise absent(self.info.name, "tokenizer.model of LLaMA-2, or the folder that has it")
        return self._dialogue

    # ------------------------------------------------------------------ what goes in
    def frontend(self, x: Tensor) -> Tensor:
        """Ids ``[B, L]`` as they are. ValueError for another shape or an id that is no word."""
        words = cast(int, self.net.decoder.config.vocab_size)
        if x.ndim != 2 or x.is_floating_point():
            raise ValueError(f"{self.info.name}: {x.dtype} of shape {tuple(x.shape)}; expected integer ids [B, L]")
        odd = x[(x < UNUSED) | (x >= words)]
        if len(odd):
            raise ValueError(
                f"{self.info.name}: id {int(odd[0])}; expected words 0 to {words - 1}, or {UNUSED} for none"
            )
        return x

    def words(self, ids: Tensor) -> Tensor:
        """Rows of the vocabulary ``[…, width]`` for ids ``[…]``, all of them words."""
        return self.net.decoder.get_input_embeddings()(ids)

    def connect(self, modality: Literal["visual", "audio"], tokens: Tensor, valid: Tensor | None = None) -> Media:
        """Tokens of a media tower as words of a prompt.

        Args:
            tokens: visual ``[b, T, P, D]``, patch tokens of T frames, which are averaged; audio ``[b, n, L, D]``, tokens of n
                pieces of sound, whose words follow each other.
            valid: what is there: frames ``[b, T]``, tokens of sound ``[b, n, L]``; by default all. A clip without frames and a piece
                without sound have no words.
        """
        if modality == "visual":
            there = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if valid is None else valid
            share = there.to(tokens.dtype)
            found = self.net.visual(tokens, share / share.sum(1, keepdim=True).clamp_min(1))
            return Media(found, there.any(1, keepdim=True).expand(found.shape[:2]))
        there = torch.ones(tokens.shape[:3], dtype=torch.bool, device=tokens.device) if valid is None else valid
        pieces = there.any(-1)
        flat = there.flatten(0, 1)
        # A piece that is not there is read whole, so that no softmax is empty, and left out of the prompt.
        found = self.net.audio(
            tokens.flatten(0, 1), torch.where(pieces.flatten()[:, None], flat, torch.ones_like(flat))
        )
        queries = found.shape[1]
        return Media(found.unflatten(0, pieces.shape).flatten(1, 2), pieces.repeat_interleave(queries, 1))

    def splice(self, ids: Tensor, media: Mapping[str, Media], side: Literal["left", "right"]) -> tuple[Tensor, Tensor]:
        """Words and media of prompts as rows ``[B, N, width]``, and which are there, bool ``[B, N]``.

        Args:
            ids: ``[B, L]`` with :data:`PLACES` where media go and :data:`UNUSED` where nothing is.
            side: where shorter prompts are filled up.

        Raises:
            ValueError: a prompt has a place for a medium that is not given.
        """
        rows = [self._row(row, index, media) for index, row in enumerate(ids)]
        longest = max(len(row) for row in rows)
        filled, valid = [], []
        for row in rows:
            gap = longest - len(row)
            pad = (0, 0, gap, 0) if side == "left" else (0, 0, 0, gap)
            filled.append(F.pad(row, pad))
            valid.append(F.pad(torch.ones(len(row), dtype=torch.bool, device=row.device), pad[2:]))
        return torch.stack(filled), torch.stack(valid)

    def _row(self, ids: Tensor, index: int, media: Mapping[str, Media]) -> Tensor:
        """One prompt's rows ``[n, width]``."""
        names = {number: name for name, number in PLACES.items()}
        present = ids[ids != UNUSED]
        parts, start = [], 0
        for at in (present < 0).nonzero().flatten().tolist():
            name = names.get(int(present[at]))
            if name is None or name not in media:
                given = ", ".join(media) or "none"
                raise ValueError(f"a prompt has id {int(present[at])}, the place of {name}; media given: {given}")
            found = media[name]
            parts += [self.words(present[start:at]), found.tokens[index][found.valid[index]]]
            start = at + 1
        parts.append(self.words(present[start:]))
        return torch.cat(parts)

    def embed(self, features: Tensor, hide: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        refuse_hiding(self.info.name, hide)
        there = features != UNUSED
        return self.enter(self.words(features.clamp_min(0)), there)

    def enter(self, rows: Tensor, valid: Tensor, cache: Cache | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Tokens before the first block, and what blocks need: positions, what may be attended to, the cache.

        Args:
            rows: ``[B, N, width]``.
            valid: which are there, bool ``[B, N]``; positions count those alone, so it does not matter where the gaps are.
            cache: of the positions before these; it takes these in.
        """
        before = 0
        if cache is not None:
            before = cache.valid.shape[1]
            cache.valid = torch.cat((cache.valid, valid), 1)
        known = valid if cache is None else cache.valid
        positions = (known.cumsum(1) - 1).clamp_min(0)[:, before:]
        decoder = self.net.decoder.model
        cos, sin = decoder.rotary_emb(rows, positions)
        at = torch.arange(known.shape[1], device=rows.device)
        queries = at[before:].unsqueeze(1)
        # A position that is not there attends to itself, so that its softmax is not empty; nobody reads it.
        mask = ((at <= queries) & known.unsqueeze(1)) | (at == queries)
        return rows, {"turn": (cos, sin), "mask": mask.unsqueeze(1), "cache": cache}

    # ------------------------------------------------------------------ the walk
    def run(
        self, sub: Sub, tokens: Tensor, aux: dict[str, Any], prefix: Prefix | None = None, swap: Swap | None = None
    ) -> Tensor:
        refuse(sub, self.info.name, prefix, swap)
        layer = self._layer(sub)
        if sub.kind == "mlp":
            return (swap or self.mlp(sub))(layer.post_attention_layernorm(tokens))
        attn, normed, mask = layer.self_attn, layer.input_layernorm(tokens), aux["mask"]

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)

        queries, keys = apply_rotary_pos_emb(split(attn.q_proj(normed)), split(attn.k_proj(normed)), *aux["turn"])
        values = split(attn.v_proj(normed))
        if aux["cache"] is not None:
            keys, values = aux["cache"].extended(sub.block, keys, values)
        if prefix is not None:
            # Rows of a prefix have no position: they are not turned, and everybody sees them.
            more_keys, more_values = split(attn.k_proj(prefix[0])), split(attn.v_proj(prefix[1]))
            keys, values = torch.cat((more_keys, keys), 2), torch.cat((more_values, values), 2)
            mask = F.pad(mask, (more_keys.shape[2], 0), value=True)
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return attn.o_proj(out.transpose(1, 2).flatten(2))

    def mlp(self, sub: Sub) -> Swap:
        return self._layer(sub).mlp

    def _layer(self, sub: Sub) -> LlamaDecoderLayer:
        return cast(LlamaDecoderLayer, self.net.decoder.model.layers[sub.block])

    def final(self, tokens: Tensor) -> Tensor:
        return self.net.decoder.model.norm(tokens)

    def logits(self, final: Tensor) -> Tensor:
        """Scores of the next word ``[…, vocabulary]`` for final tokens ``[…, width]``."""
        return self.net.decoder.lm_head(final)


_KINDS: Sequence[Literal["attn", "mlp"]] = ("attn", "mlp")


def padded(ids: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return prompts of different lengths as ids ``[B, L]``, :data:`UNUSED` behind the shorter ones."""
    longest = max(len(row) for row in ids)
    return torch.tensor([[*row, *[UNUSED] * (longest - len(row))] for row in ids], device=device)


def generate(
    tower: LanguageTower,
    texts: Sequence[str],
    media: Mapping[str, Media],
    longest: int,
    walk: Callable[[Tensor, Tensor, Cache], Tensor],
) -> list[str]:
    """Return answers to prompts, the most likely word at each step (greedy decoding), until the end or ``longest`` words.

    Args:
        texts: of the human, one per row of ``media``.
        walk: rows ``[B, N, width]``, which are there ``[B, N]`` and the cache → final tokens ``[B, N, width]``; it may run modules at sites.
    """
    device = next(tower.parameters()).device
    rows, valid = tower.splice(padded([tower.dialogue.prompt(text) for text in texts], device), media, "left")
    cache = Cache(torch.zeros(len(texts), 0, dtype=torch.bool, device=device))
    end, ended = tower.dialogue.vocabulary.end, torch.zeros(len(texts), dtype=torch.bool, device=device)
    words: list[Tensor] = []
    while len(words) < longest:
        word = tower.logits(walk(rows, valid, cache)[:, -1]).argmax(-1).masked_fill(ended, end)
        words.append(word)
        ended = ended | (word == end)
        if bool(ended.all()):
            break
        rows, valid = tower.words(word).unsqueeze(1), torch.ones_like(ended).unsqueeze(1)
    return [tower.dialogue.read(ids) for ids in torch.stack(words, 1).tolist()]


def plain_walk(tower: LanguageTower, rows: Tensor, valid: Tensor, cache: Cache | None) -> Tensor:
    """Return the final tokens of the tower alone ``[B, N, width]``, with gradients where it learns."""
    tokens, aux = tower.enter(rows, valid, cache)
    for sub in tower.subs:
        tokens = tower.join(sub, tokens, tower.run(sub, tokens, aux))
    return tower.final(tokens)
