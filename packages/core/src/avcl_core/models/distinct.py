"""Samples of a batch with the same media share one pass through the towers: questions about one video, for instance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from avcl_core.batch import Batch
from avcl_core.features import Features
from avcl_core.walk import Ctx


def once(batch: Batch, ctx: Ctx, compute: Callable[[Batch, Ctx], Features]) -> Features:
    """Return ``compute(batch, ctx)``, with every sight and sound of the batch computed once (``Batch.media``).

    For models that draw nothing per sample. What they add to ``ctx.aux`` is then a mean over the different media. Inputs of a task
    that are not media (a question) must not matter to ``compute``.
    """
    found = batch.distinct()
    if found is None:
        return compute(batch, ctx)
    rows, back = found
    slots = None if ctx.slots is None else tuple(ctx.slots[row] for row in rows)
    trace = None if ctx.trace is None else ctx.trace.spread(back)
    features = compute(batch.select(rows), replace(ctx, slots=slots, trace=trace))
    if ctx.trace is not None and trace is not None:
        ctx.trace.frames = trace.frames

    def spread(value: Tensor) -> Tensor:
        return value[torch.tensor(back, device=value.device)]

    return Features(
        {name: spread(value) for name, value in features.final.items()},
        {name: tuple(spread(value) for value in maps) for name, maps in features.stages.items()},
        {name: spread(value) for name, value in features.plain.items()},
        {name: spread(value) for name, value in features.similarity.items()},
    )
