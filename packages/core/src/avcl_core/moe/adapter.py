"""A mixture-of-experts adapter: reads both streams at a site and returns a routed residual for its own stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from avcl_core.moe.align import Align
from avcl_core.moe.experts import Bottlenecks, Cross, Expert, ExpertShape, Uni
from avcl_core.moe.router import Router
from avcl_core.ownership import own as declare
from avcl_core.sites import Bank, SiteModule
from avcl_core.walk import Ctx

Routing = Literal["shared", "task", "uniform"]


@dataclass(frozen=True)
class Mixture:
    """What an adapter computed: aligned other tokens ``[B, N, C]``, expert outputs ``[B, E, N, C]``, router weights
    ``[B, E]`` and their mixture ``[B, N, C]``. ``aligned`` is ``None`` where no cross-modal expert needs it."""

    aligned: Tensor | None
    experts: Tensor
    gates: Tensor
    mixed: Tensor


class MoeAdapter(SiteModule):
    """One MoE adapter (AVMOE, avmoe.md 3.3 to 3.6): cross-modal experts first, then unimodal ones.

    The resampled other modality is shared by all cross-modal experts; every expert always runs, and the router weighs them
    once per frame. Output gates start at zero, so a new adapter adds exactly nothing.

    Args:
        label: name of the site in statistics, ``"<modality> <stage> <pair> <site>"``.
        source: tokens and width of the other stream, (M, D).
        tokens: tokens N of the own stream; its width is that of ``shape``.
        shape: sizes of the experts.
        cross, uni: number of experts of each kind.
        routing: one router, one per task, or equal weights without a router.
        rank: rank of the token map (:class:`Align`).
        owned: whether parts declare owners of their own (shared, router, expert:k); otherwise the caller declares one.

    Raises:
        ValueError: there is no expert, or the sizes do not divide.
    """

    def __init__(
        self,
        label: str,
        source: tuple[int, int],
        tokens: int,
        shape: ExpertShape,
        cross: int,
        uni: int,
        routing: Routing = "shared",
        rank: int | None = None,
        owned: bool = True,
    ) -> None:
        super().__init__()
        if cross + uni < 1:
            raise ValueError("an adapter needs an expert; set cross_experts or uni_experts")
        self.label = label
        self.names = [f"cross {i}" for i in range(cross)] + [f"uni {i}" for i in range(uni)]
        count, width, kind = cross + uni, shape.width, shape.uni_attention
        self.align = Align(source, (tokens, width), rank) if cross or routing != "uniform" else None
        self.router: SiteModule | None = None
        if routing == "shared":
            self.router = Router(width, count)
        elif routing == "task":
            self.router = Bank(lambda: Router(width, count), "task")
        made = [Expert(shape, latents=True) for _ in range(cross)]
        made += [Expert(shape, kind == "latent", kind == "temporal", kind == "dense") for _ in range(uni)]
        self.experts = nn.ModuleList(made)
        self.cross = Cross(made[:cross], shape) if cross else None
        self.uni = Uni(made[cross:], shape) if uni else None
        if owned:
            if self.align is not None:
                declare(self.align, "shared")
            if isinstance(self.router, Router):
                declare(self.router, "router")
            for number, expert in enumerate(made):
                declare(expert, f"expert:{number}")

    def forward(self, own: Tensor, other: Tensor | None, ctx: Ctx) -> Tensor:
        """Return the residual ``[B, N, C]`` of own tokens ``[B, N, C]`` and other tokens ``[B, M, D]``."""
        _, tails, gates, attention = self._parts(own, other, ctx)
        mixed = self._mix(tails, gates)
        if ctx.trace is not None:
            self._tell(ctx, own, mixed, gates, attention)
        return mixed

    def mixture(self, own: Tensor, other: Tensor, ctx: Ctx) -> Mixture:
        """Return every intermediate result, for inspection."""
        aligned, tails, gates, _ = self._parts(own, other, ctx)
        outputs = torch.cat([kind.outputs(normed) for kind, normed in tails], 1)
        return Mixture(aligned, outputs, gates, self._mix(tails, gates))

    def _parts(
        self, own: Tensor, other: Tensor | None, ctx: Ctx
    ) -> tuple[Tensor | None, list[tuple[Bottlenecks, Tensor]], Tensor, Tensor | None]:
        """Return aligned tokens, the kinds of experts with their tails, gates, and the latents' attention."""
        if other is None:
            raise ValueError(f"adapter {self.label} reads two streams; this walk has one")
        aligned = self.align(other) if self.align is not None and self.cross is not None else None
        gates = self._gates(own, other, aligned, ctx)
        tails, attention = [], None
        if self.cross is not None and aligned is not None:
            normed, attention = self.cross.tails(own, aligned, ctx.frames)
            tails.append((self.cross, normed))
        if self.uni is not None:
            tails.append((self.uni, self.uni.tails(own, ctx.frames)))
        return aligned, tails, gates, attention

    def _gates(self, own: Tensor, other: Tensor, aligned: Tensor | None, ctx: Ctx) -> Tensor:
        if self.router is None or self.align is None:
            return own.new_full((len(own), len(self.names)), 1 / len(self.names))
        pooled = self.align.mean(other) if aligned is None else aligned.mean(1)
        logits = self.router(own.mean(1), pooled, ctx)
        assert isinstance(logits, Tensor)
        noise = ctx.memo.get(f"noise {self.label}")
        gates = (logits if noise is None else logits + noise).softmax(-1)
        if ctx.training:
            ctx.memo[f"gates {self.label}"] = gates
        return gates

    def _mix(self, tails: Sequence[tuple[Bottlenecks, Tensor]], gates: Tensor) -> Tensor:
        counts = [normed.shape[1] for _, normed in tails]
        parts = [kind.mix(normed, w) for (kind, normed), w in zip(tails, gates.split(counts, 1), strict=True)]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def _tell(self, ctx: Ctx, own: Tensor, mixed: Tensor, gates: Tensor, attention: Tensor | None) -> None:
        trace = ctx.trace
        assert trace is not None
        trace.put(self.label, "gates", gates)
        trace.put(self.label, "residual", mixed.flatten(1).norm(dim=1) / own.flatten(1).norm(dim=1).clamp(min=1e-12))
        if attention is not None:
            # Unscaled products saturate the softmax: 0 says that a latent reads one token, 1 that it reads all alike.
            entropy = torch.special.entr(attention).sum(-1).mean(-1) / math.log(attention.shape[-1])
            trace.put(self.label, "attention_entropy", entropy)
        trace.keep(self.label, "experts", self.names)
        experts = [expert for expert in self.experts if isinstance(expert, Expert)]
        trace.keep(self.label, "output_gates", torch.stack([expert.output_gate for expert in experts]))
        inner: list[Tensor] = [expert.inner_gate for expert in experts if expert.reads]
        if inner:
            trace.keep(self.label, "inner_gates", torch.stack(inner))
