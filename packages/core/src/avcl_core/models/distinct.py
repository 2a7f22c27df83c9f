"""Samples of a batch with the same media share one pass through the towers: questions about one video, for instance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from avcl_core.batch import Batch
from avcl_core.features import Distinct, Features
from avcl_core.walk import Ctx


def once(batch: Batch, ctx: Ctx, compute: Callable[[Batch, Ctx], Features]) -> Features:
    """Return ``compute(batch, ctx)``, with every sight and sound of the batch computed once (``Batch.media``).

    For models that draw nothing per sample. Terms that they add to ``ctx.aux`` stay means over samples if they are made with
    :meth:`Ctx.mean`. Inputs of a task that are not media (a question) must not matter to ``compute``.
    """
    found = batch.distinct()
    if found is None:
        return compute(batch, ctx)
    rows, back = found
    counts = Counter(back)
    small = replace(
        ctx,
        slots=None if ctx.slots is None else tuple(ctx.slots[row] for row in rows),
        trace=None if ctx.trace is None else ctx.trace.spread(back),
        counts=tuple(counts[number] for number in range(len(rows))),
    )
    features = compute(batch.select(rows), small)
    if ctx.trace is not None and small.trace is not None:
        ctx.trace.frames = small.trace.frames
    index = torch.tensor(back, device=next(iter(features.final.values())).device)
    return Features(
        {name: value[index] for name, value in features.final.items()},
        {name: _Maps(maps, index) for name, maps in features.stages.items()},
        {name: value[index] for name, value in features.plain.items()},
        {name: value[index] for name, value in features.similarity.items()},
        Distinct(features, index),
    )


class _Maps(Sequence[Tensor]):
    """Stage maps for all samples, made when one is asked for: heads read few of them, and the first ones are large."""

    def __init__(self, maps: Sequence[Tensor], rows: Tensor) -> None:
        self.maps, self.rows = maps, rows

    def __len__(self) -> int:
        return len(self.maps)

    @overload
    def __getitem__(self, at: int) -> Tensor: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Tensor, ...]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return tuple(value[self.rows] for value in self.maps[at])
        return self.maps[at][self.rows]
