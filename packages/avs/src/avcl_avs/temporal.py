"""Temporal gating: what is heard and seen over the seconds of a clip scales the map of each second, and the sound by the sight."""

from __future__ import annotations

from torch import Tensor, nn

from avcl_core.heads.temporal import TemporalContext


class TemporalGate(nn.Module):
    """The gates of one scale.

    Args:
        width: channels of the map; the sound has half of them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.2))
        self.context = TemporalContext(width, width // 2, width)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gates of sight and sound in 0…1, ``[b, T, 1]`` each.

        Args:
            visual: mean of the map ``[b, T, width]``.
            audio: ``[b, T, width / 2]``.
        """
        context = self.context(self.reduce(visual), audio)
        return context.visual_gate, context.audio_gate


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
