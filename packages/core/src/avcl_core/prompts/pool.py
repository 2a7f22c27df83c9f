"""A pool of prefix prompts: per block several entries of key and value rows, chosen per sample by cosine to learned keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from avcl_core.precision import cosines
from avcl_core.walk import Ctx

Query = Literal["mean", "max", "mean_max", "cls"]
Init = Literal["uniform", "zero"]


class PromptPool(nn.Module):
    """Entries of prefix rows for several blocks, selected by a query (L2P, Wang et al., CVPR 2022; PHP, php.md 3.6).

    All blocks share the keys and so the choice, which is made per sample: its frames agree, and other samples of the batch do
    not matter. With one entry there is nothing to choose and, unless it is ``keyed``, no key.

    Args:
        label: first word the tower, e.g. ``visual pool``; names the pool in traces and its pull loss in ``ctx.aux``.
        key_width: width C of the query tokens.
        widths: width of the rows at each block.
        length: rows of an entry, for keys and values each.
        size: entries of the pool.
        top_k: entries that a sample gets, one after the other.
        query: how the embedded tokens of all frames become one query: their mean, maximum, both added, or the class token's mean.
        init, key_init: rows and keys are uniform in (−1, 1), or zero.
        tied: the same rows serve as keys and values.
        pull: weight of ``1 − cos(query, chosen key)``, summed over the chosen ones, which alone trains the keys.
        keyed: whether there are keys; by default where there are several entries. The key of a single entry chooses nothing here: it
            is pulled to the queries, so that it can tell whose they are.

    Raises:
        ValueError: more entries are to be chosen than there are.
    """

    def __init__(
        self,
        label: str,
        key_width: int,
        widths: Sequence[int],
        length: int,
        size: int = 3,
        top_k: int = 1,
        query: Query = "mean",
        init: Init = "uniform",
        key_init: Init = "uniform",
        tied: bool = False,
        pull: float = 0.1,
        keyed: bool | None = None,
    ) -> None:
        super().__init__()
        if top_k > size:
            raise ValueError(f"top_k {top_k} of a pool of {size} entries")
        self.label, self.length, self.top_k, self.pull = label, length, top_k, pull
        self.query: Query = query
        kinds = 1 if tied else 2
        self.rows = nn.ParameterList(nn.Parameter(_draw(init, (kinds, size, length, width))) for width in widths)
        has_keys = size > 1 if keyed is None else keyed
        if size > 1 and not has_keys:
            raise ValueError(f"a pool of {size} entries without keys has nothing to choose by")
        self.keys = nn.Parameter(_draw(key_init, (size, key_width))) if has_keys else None

    def forward(self, own: Tensor, other: Tensor | None, ctx: Ctx) -> Tensor:
        """Return the rows of every block and frame in one tensor, which :func:`split` takes apart.

        Args:
            own: embedded tokens ``[N, L, C]``, ``ctx.frames`` rows to a sample. A model with a query of its own gives it as the
                one token of the one frame of a sample, and gets a row per sample. Where there is neither a choice nor a key to
                pull, only the number of rows is read.
            other: not used.

        Returns:
            ``[N, sum over blocks of 2 · top_k · length · width]``.
        """
        count = len(own) // ctx.frames
        chooses = self.keys is not None and len(self.keys) > 1
        if self.keys is None or not (chooses or (ctx.training and self.pull)):
            index = torch.zeros((count, 1), dtype=torch.long, device=own.device)
        else:
            index = self._choose(own, self.keys, ctx)
        # Axes stay named and apart: kind, sample, entry, row, channel (php.md 8, item 2).
        parts = [rows.expand(2, -1, -1, -1)[:, index].transpose(0, 1).flatten(1) for rows in self.rows]
        return torch.cat(parts, 1).repeat_interleave(ctx.frames, 0)

    def _choose(self, own: Tensor, keys: Tensor, ctx: Ctx) -> Tensor:
        """Indices of the chosen entries ``[b, top_k]``; the pull loss goes into ``ctx.aux``."""
        with torch.no_grad():
            query = reduce(own, ctx.frames, self.query)
        cosine = cosines(query, keys)
        chosen, index = cosine.topk(self.top_k, dim=1)
        if ctx.training and self.pull:
            ctx.aux[f"{self.label} pull"] = self.pull * ctx.mean((1 - chosen).sum(1))
        if ctx.trace is not None and len(keys) > 1:
            share = torch.zeros_like(cosine).scatter(1, index, 1 / self.top_k)
            ctx.trace.put(self.label, "gates", share.repeat_interleave(ctx.frames, 0))
            ctx.trace.keep(self.label, "experts", [f"entry {number}" for number in range(len(keys))])
        return index


def split(flat: Tensor, widths: Sequence[int], rows: int) -> list[tuple[Tensor, Tensor]]:
    """Return key and value rows ``[N, rows, width]`` of every block from what a pool returned; ``rows`` = top_k · length."""
    parts = flat.split([2 * rows * width for width in widths], 1)
    pairs = [part.unflatten(1, (2, rows, width)) for part, width in zip(parts, widths, strict=True)]
    return [(pair[:, 0], pair[:, 1]) for pair in pairs]


def reduce(tokens: Tensor, frames: int, how: Query) -> Tensor:
    """Return one query ``[b, C]`` per sample from the embedded tokens ``[b · frames, L, C]`` of its frames."""
    whole = tokens.unflatten(0, (-1, frames))
    if how == "cls":
        return whole[:, :, 0].mean(1)
    whole = whole.flatten(1, 2)
    if how == "mean":
        return whole.mean(1)
    return whole.amax(1) if how == "max" else whole.amax(1) + whole.mean(1)


def _draw(how: Init, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape) if how == "zero" else torch.empty(shape).uniform_(-1, 1)
