"""Temporal gating: what is heard and seen over the seconds of a clip scales the map of each second, and the sound by the sight."""

from __future__ import annotations

from torch import Tensor, nn

HEADS = 4
"""Attention heads of the encoders over time."""


class TimeEncoder(nn.Module):
    """A recurrent layer in both directions, a projection, two post-norm transformer layers over the seconds (tasks.md 1.4).

    There is no positional encoding (the recurrence knows the order) and no final norm.

    Args:
        inputs: width of the input.
        hidden: width of each direction of the recurrence.
        width: width of the output; the feed-forward layers have four times that.
    """

    def __init__(self, inputs: int, hidden: int, width: int) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(inputs, hidden, batch_first=True, bidirectional=True)
        self.project = nn.Linear(2 * hidden, width)
        layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def train(self, mode: bool = True) -> TimeEncoder:
        """Switch the mode of all but the recurrence: it has no dropout, and cuDNN has no gradient of it in eval mode."""
        super().train(mode)
        self.recurrent.train()
        return self

    def forward(self, seconds: Tensor) -> Tensor:
        """Return ``[b, T, width]`` for ``[b, T, inputs]``."""
        return self.layers(self.project(self.recurrent(seconds)[0]))


class TemporalGate(nn.Module):
    """The gates of one scale.

    Args:
        width: channels of the map; the sound has half of them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.2))
        self.visual = TimeEncoder(width, width, width)
        self.audio = TimeEncoder(width // 2, width // 2, width)
        self.visual_gate = nn.Linear(width, 1)
        self.audio_gate = nn.Linear(width, 1)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gates of sight and sound in 0…1, ``[b, T, 1]`` each.

        Args:
            visual: mean of the map ``[b, T, width]``.
            audio: ``[b, T, width / 2]``.
        """
        seen = self.visual_gate(self.visual(self.reduce(visual)))
        heard = self.audio_gate(self.audio(audio))
        return seen.sigmoid(), heard.sigmoid()


class TemporalGating(nn.Module):
    """One :class:`TemporalGate` per scale (tasks.md 3.3).

    Args:
        scales: number of maps.
        strength: γ, by which a gate of 1 raises what it scales.
    """

    def __init__(self, width: int, scales: int, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.gates = nn.ModuleList(TemporalGate(width) for _ in range(scales))

    def forward(self, maps: list[Tensor], audio: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return maps scaled by the gates of the sound, and the sound scaled by the mean gate of the maps.

        Args:
            maps: per scale ``[b, T, width, H, W]``.
            audio: ``[b, T, width / 2]``.
        """
        scaled, seen = [], 0.0
        for grid, gate in zip(maps, self.gates, strict=True):
            visual, heard = gate(grid.mean((3, 4)), audio)
            scaled.append(grid * (1 + self.strength * heard[..., None, None]))
            seen = seen + visual
        return scaled, audio * (1 + self.strength * seen / len(maps))
