"""Temporal attention over the seconds of a clip: each modality is read in time, attends to the other and is gated by it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl_core.heads.temporal import DROPOUT, HEADS, TemporalContext

INPUT_DROPOUT = 0.2
"""Dropout of the visual input."""
GATE = 0.1
"""Weight of the other modality's gate."""


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
