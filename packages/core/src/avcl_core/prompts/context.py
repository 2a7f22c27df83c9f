"""Class prompts with learned context: a few free vectors stand before each class name in a frozen text encoder (CoOp)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avcl_core.errors import ConfigError
from shared_backbones.text import LENGTH, TextEncoder

PLACEHOLDER = 0  # any id but that of the end; its embedding is replaced


class LearnedContext(nn.Module):
    """Context vectors ``[n, width]``, the same for all classes and inputs (Zhou et al., IJCV 2022; php.md 3.7)."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(0.02 * torch.randn(tokens, width))


class ClassPrompts:
    """The prompts ``[start] v₁ … v_n <class name> . [end]`` of some classes, cut behind the longest end of text.

    Args:
        text: the frozen text encoder.
        names: class names; ``_`` is read as a blank.
        tokens: number of context vectors n.

    Raises:
        ConfigError: a prompt is longer than the encoder reads.
    """

    def __init__(self, text: TextEncoder, names: Sequence[str], tokens: int) -> None:
        self.text = text
        ids = text.crop(text.tokenize([f"{spoken(name)}." for name in names]))
        if ids.shape[1] + tokens > LENGTH:
            raise ConfigError(
                f"model.context.tokens: {tokens} context vectors and the longest class name need {ids.shape[1] + tokens} "
                f"tokens; the text encoder reads {LENGTH}"
            )
        self.ids = torch.cat([ids[:, :1], ids.new_full((len(ids), tokens), PLACEHOLDER), ids[:, 1:]], 1)
        self._placed: dict[torch.device, Tensor] = {}

    def encode(self, context: Tensor) -> Tensor:
        """Return text features ``[K, D_joint]``, not normalised, with gradient to the context ``[n, width]``."""
        ids = self.ids_on(context.device)
        words = self.text.token_embeddings(ids)
        inner = context.to(words.dtype).expand(len(words), -1, -1)
        prompts = torch.cat([words[:, :1], inner, words[:, 1 + inner.shape[1] :]], 1)
        return self.text.forward_embeddings(prompts, ids)

    def ids_on(self, device: torch.device) -> Tensor:
        """Return the ids on a device, copied to it once: a copy from pageable memory makes the host wait for the device."""
        if device not in self._placed:
            self._placed[device] = self.ids.to(device)
        return self._placed[device]


def spoken(name: str) -> str:
    """Return a class name as it stands in a sentence."""
    return name.replace("_", " ")
