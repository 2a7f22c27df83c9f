"""The text side of a tower: strings to the space that its images or sounds share, open to learned context in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import ClapModel, CLIPModel

from shared_backbones.errors import WeightsError
from shared_backbones.vocabulary import Vocabulary, absent

LENGTH = 77  # of CLIP by construction, of CLAP as its authors pad


class TextEncoder:
    """Frozen like its tower; its weights belong to the tower's ``net``, so this object registers none.

    Learned context tokens (CoOp, PHP) go through ``token_embeddings``, replace rows, and ``forward_embeddings``.
    """

    def __init__(
        self, tower: str, vocabulary: Vocabulary | None, expected: str, words: nn.Embedding, width: int
    ) -> None:
        if vocabulary is not None and vocabulary.size != words.num_embeddings:
            raise WeightsError(
                f"tower {tower}: tokenizer has {vocabulary.size} tokens, the text encoder {words.num_embeddings}; "
                f"expected {expected}"
            )
        self.vocabulary = vocabulary
        self.joint_width = width
        self._tower, self._expected, self._words = tower, expected, words

    @property
    def width(self) -> int:
        """Channels of the token embeddings."""
        return self._words.embedding_dim

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Ids [B, 77] on the CPU, whatever the tower's device: start, text, end, padding.

        TowerError without a vocabulary, ValueError for a text that is too long.
        """
        if self.vocabulary is None:
            raise absent(self._tower, self._expected)
        v = self.vocabulary
        ids = torch.full((len(texts), LENGTH), v.pad, device="cpu")
        for row, text in enumerate(texts):
            tokens = [v.start, *v.encode(text), v.end]
            if len(tokens) > LENGTH:
                raise ValueError(
                    f"{self._tower} text: {len(tokens)} tokens, at most {LENGTH} with start and end: {text!r}"
                )
            ids[row, : len(tokens)] = torch.tensor(tokens, device="cpu")
        return ids

    def token_embeddings(self, ids: Tensor) -> Tensor:
        """Rows of the vocabulary [B, L, width], without positions."""
        return self._words(ids.to(self._words.weight.device))

    @property
    def scale(self) -> Tensor:
        """Factor on cosines that makes them logits: the exponential of the learned (now frozen) logit scale."""
        raise NotImplementedError

    def forward_embeddings(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        """Embeddings [B, L, width] in the places of ids [B, L] to the joint space [B, D_joint], not normalised; L ≤ 77.

        Differentiable with respect to the embeddings; ids, on any device, tell where a text ends and what is padding.
        """
        raise NotImplementedError

    def crop(self, ids: Tensor) -> Tensor:
        """Ids without the columns that are behind the end of every text: less work, the same result."""
        if self.vocabulary is None:
            raise absent(self._tower, self._expected)
        ends = (ids == self.vocabulary.end).int().argmax(1)
        return ids[:, : int(ends.max()) + 1]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts to the joint space [B, D_joint], not normalised; without gradients."""
        ids = self.crop(self.tokenize(texts))
        with torch.no_grad():
            return self.forward_embeddings(self.token_embeddings(ids), ids)


class ClipText(TextEncoder):
    """CLIP's causal text transformer, read at the end-of-text token (Radford et al., 2021, section 2.4)."""

    def __init__(self, tower: str, net: CLIPModel, vocabulary: Vocabulary | None) -> None:
        super().__init__(
            tower, vocabulary, "bpe_simple_vocab_16e6.txt.gz or a folder with vocab.json and merges.txt",
            net.text_model.embeddings.token_embedding, cast(int, net.projection_dim),
        )  # fmt: skip
        self._net = net

    @property
    def scale(self) -> Tensor:
        return self._net.logit_scale.exp()

    def forward_embeddings(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        if self.vocabulary is None:
            raise absent(self._tower, self._expected)
        model: Any = self._net.text_model
        hidden = model.embeddings(inputs_embeds=embeddings)
        hidden = model.encoder(inputs_embeds=hidden, attention_mask=None, is_causal=True).last_hidden_state
        ends = (ids.to(hidden.device) == self.vocabulary.end).int().argmax(1)
        hidden = model.final_layer_norm(hidden[torch.arange(len(ids), device=hidden.device), ends])
        return self._net.text_projection(hidden)


class RobertaText(TextEncoder):
    """CLAP's RoBERTa, read by its pooler on the first token (Wu et al., ICASSP 2023), then CLAP's text projection."""

    def __init__(self, tower: str, net: ClapModel, vocabulary: Vocabulary | None) -> None:
        super().__init__(
            tower, vocabulary, "a folder with RoBERTa's vocab.json and merges.txt",
            net.text_model.embeddings.word_embeddings, cast(int, net.projection_dim),
        )  # fmt: skip
        self._net = net

    @property
    def scale(self) -> Tensor:
        return self._net.logit_scale_a.exp()

    def forward_embeddings(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        model: Any = self._net.text_model
        pad = cast(int, self._words.padding_idx)
        keep = ids.to(embeddings.device) != pad
        # RoBERTa counts positions from padding + 1 and leaves padding tokens at the padding's own position.
        positions = keep.cumsum(1) * keep + pad
        # Additive and of four axes, so that the library need not look at its values: tensors without any have shapes only.
        mask = torch.zeros_like(keep, dtype=embeddings.dtype).masked_fill(~keep, torch.finfo(embeddings.dtype).min)
        pooled = model(
            inputs_embeds=embeddings, attention_mask=mask[:, None, None], position_ids=positions
        ).pooler_output
        return self._net.text_projection(pooled)
