"""Temporal attention over the seconds of a clip: each modality is read in time, attends to the other and is gated by it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

HEADS = 4
"""Attention heads of every layer."""
LAYERS = 2
"""Layers of each encoder."""
INPUT_DROPOUT = 0.2
"""Dropout of the visual input."""
DROPOUT = 0.1
"""Dropout inside encoder and decoder layers."""
GATE = 0.1
"""Weight of the other modality's gate."""


class BiLSTM(nn.LSTM):
    """One bidirectional layer over time, ``[b, T, inputs]`` → ``[b, T, 2 hidden]``, always in train mode.

    It has no dropout, so both modes compute the same; cuDNN refuses a backward pass in eval mode, which Fisher information
    and other passes over a model in eval mode need.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, batch_first=True, bidirectional=True)

    def train(self, mode: bool = True) -> BiLSTM:
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
    """BiLSTM, encoder and gate per modality: steps 2 and 3 and the gates of tasks.md 1.4.

    Args:
        visual, audio: widths of the two inputs.
        width: width of the codes; a multiple of :data:`HEADS`.
    """

    def __init__(self, visual: int, audio: int, width: int = 256) -> None:
        super().__init__()
        self.visual_lstm = BiLSTM(visual, width)
        self.audio_lstm = BiLSTM(audio, width // 2)
        self.visual_encoder = encoder(2 * width, width)
        self.audio_encoder = encoder(width, width)
        self.visual_gate = nn.Linear(width, 1)
        self.audio_gate = nn.Linear(width, 1)

    def forward(self, visual: Tensor, audio: Tensor) -> Context:
        """Return states, codes and gates for ``[b, T, visual]`` and ``[b, T, audio]``."""
        visual, audio = self.visual_lstm(visual)[0], self.audio_lstm(audio)[0]
        k_v, k_a = self.visual_encoder(visual), self.audio_encoder(audio)
        return Context(visual, audio, k_v, k_a, self.visual_gate(k_v).sigmoid(), self.audio_gate(k_a).sigmoid())


class CrossDecoder(nn.Module):
    """``Dec``: a query attends to the other modality's code and to itself; post-norm, no self-attention.

    Args:
        inputs: width of the query before its projection.
        width: width of the code and of the output.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(inputs, width)
        self.attention = nn.MultiheadAttention(width, HEADS, DROPOUT, batch_first=True)
        self.attended = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(4 * width, width)
        )
        self.fed = nn.LayerNorm(width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, query: Tensor, code: Tensor) -> Tensor:
        """Return ``[b, T, width]`` for the query ``[b, T, inputs]`` and the code ``[b, T, width]``."""
        query = self.query(query)
        memory = torch.cat([code, query], dim=1)
        query = self.attended(query + self.dropout(self.attention(query, memory, memory, need_weights=False)[0]))
        return self.fed(query + self.dropout(self.feed_forward(query)))


class TemporalAttention(nn.Module):
    """Temporal attention of the AVE head: two modalities in, two of one width out (tasks.md 1.4, steps 1 to 5).

    At the published width 256 the visual input is projected to 512, the audio input to 128, feed-forward layers have 1024
    units. Another ``width`` scales all of them.

    Args:
        visual, audio: widths of the two inputs.
        width: width of the outputs; a multiple of :data:`HEADS`.
    """

    def __init__(self, visual: int, audio: int, width: int = 256) -> None:
        super().__init__()
        self.visual_input = nn.Sequential(nn.Linear(visual, 2 * width), nn.ReLU(), nn.Dropout(INPUT_DROPOUT))
        self.audio_input = nn.Linear(audio, width // 2)
        self.context = TemporalContext(2 * width, width // 2, width)
        self.visual_decoder = CrossDecoder(2 * width, width)
        self.audio_decoder = CrossDecoder(width, width)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Return visual and audio ``[b, T, width]`` for ``[b, T, visual]`` and ``[b, T, audio]``."""
        context = self.context(self.visual_input(visual), self.audio_input(audio))
        visual = self.visual_decoder(context.visual, context.audio_code)
        audio = self.audio_decoder(context.audio, context.visual_code)
        return visual * (1 + GATE * context.audio_gate), audio * (1 + GATE * context.visual_gate)
