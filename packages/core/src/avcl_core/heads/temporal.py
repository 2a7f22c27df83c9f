"""The context of a clip's seconds: each modality is read in both directions, encoded, and says by a gate how much it matters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

HEADS = 4
"""Attention heads of every layer."""
LAYERS = 2
"""Layers of each encoder."""
DROPOUT = 0.1
"""Dropout inside the layers."""


class Lstm(nn.LSTM):
    """One recurrent layer over time, batch first, always in train mode.

    It has no dropout, so both modes compute the same; cuDNN refuses a backward pass in eval mode, which Fisher information
    and other passes over a model in eval mode need.
    """

    def __init__(self, inputs: int, hidden: int, bidirectional: bool = False) -> None:
        super().__init__(inputs, hidden, batch_first=True, bidirectional=bidirectional)

    def train(self, mode: bool = True) -> Lstm:
        """Stay in train mode."""
        super().train()
        return self


def encoder(inputs: int, width: int) -> nn.Sequential:
    """Return ``Enc``: a projection to ``width``, then post-norm transformer layers without a final norm."""
    layers = [
        nn.TransformerEncoderLayer(width, HEADS, 4 * width, DROPOUT, batch_first=True, norm_first=False)
        for _ in range(LAYERS)
    ]
    return nn.Sequential(nn.Linear(inputs, width), *layers)


@dataclass(frozen=True)
class Context:
    """What the seconds of a clip say in their order.

    Attributes:
        visual, audio: states of the LSTMs, ``[b, T, 2 width]`` and ``[b, T, width]``.
        visual_code, audio_code: k_v and k_a, ``[b, T, width]``.
        visual_gate, audio_gate: g_v and g_a in (0, 1), ``[b, T, 1]``.
    """

    visual: Tensor
    audio: Tensor
    visual_code: Tensor
    audio_code: Tensor
    visual_gate: Tensor
    audio_gate: Tensor


class TemporalContext(nn.Module):
    """Recurrent layer, encoder and gate per modality (tasks.md 1.4 steps 2, 3 and the gates of 5; 3.3 temporal gating).

    Args:
        visual, audio: widths of the two inputs.
        width: width of the codes; a multiple of :data:`HEADS`.
    """

    def __init__(self, visual: int, audio: int, width: int = 256) -> None:
        super().__init__()
        self.visual_lstm = Lstm(visual, width, bidirectional=True)
        self.audio_lstm = Lstm(audio, width // 2, bidirectional=True)
        self.visual_encoder = encoder(2 * width, width)
        self.audio_encoder = encoder(width, width)
        self.visual_gate = nn.Linear(width, 1)
        self.audio_gate = nn.Linear(width, 1)

    def forward(self, visual: Tensor, audio: Tensor) -> Context:
        """Return states, codes and gates for ``[b, T, visual]`` and ``[b, T, audio]``."""
        visual, audio = self.visual_lstm(visual)[0], self.audio_lstm(audio)[0]
        k_v, k_a = self.visual_encoder(visual), self.audio_encoder(audio)
        return Context(visual, audio, k_v, k_a, self.visual_gate(k_v).sigmoid(), self.audio_gate(k_a).sigmoid())
