"""The trunk of CLIP and CLAP with prefixes that are chosen or mixed per sample before the walk: what prompt methods share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field, NonNegativeInt
from torch import Tensor

from avcl_core.errors import ConfigError
from avcl_core.models.aligned import Aligned, AlignedOptions, Modalities
from avcl_core.prompts.sites import FromMemo
from avcl_core.walk import Ctx

Blocks = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


class PrefixOptions(AlignedOptions):
    """Configuration that all models with prefixes have.

    Attributes:
        modalities: towers that get prompts; the methods were published for images.
    """

    modalities: Modalities = ("visual",)


class Prefixed(Aligned):
    """Places prefixes and hands them over; a subclass computes them in :meth:`prepare`, one set per sample."""

    def place_prefixes(self, modality: str, blocks: Sequence[int], option: str = "blocks") -> list[int]:
        """Put a prefix at blocks of a tower and return the width of its rows at each.

        Raises:
            ConfigError: the tower lacks a block, or ``option`` names one twice.
        """
        shapes = self.walks[0].shapes()[modality]
        wrong = [block for block in blocks if f"{block}.attn" not in shapes]
        if wrong:
            raise ConfigError(
                f"model.{option}: {wrong}; the towers have blocks 0 to {len(self.walks[0].steps) // 2 - 1}"
            )
        if len(set(blocks)) != len(blocks):
            raise ConfigError(f"model.{option} names a block twice: {list(blocks)}")
        for block in blocks:
            self.place(modality, f"{block}.attn", "prefix", FromMemo(f"{modality} {option} {block}"))
        return [shapes[f"{block}.attn"].width for block in blocks]

    def hand_over(
        self,
        ctx: Ctx,
        modality: str,
        blocks: Sequence[int],
        pairs: Sequence[tuple[Tensor, Tensor]],
        option: str = "blocks",
    ) -> None:
        """Give key and value rows ``[b, n, width]`` of every block to its site, the same for all frames of a sample."""
        for block, pair in zip(blocks, pairs, strict=True):
            keys, values = (rows.repeat_interleave(ctx.frames, 0) for rows in pair)
            ctx.memo[f"{modality} {option} {block}"] = keys, values


def of_samples(ctx: Ctx) -> Ctx:
    """Return a context per sample instead of per frame; ``memo`` and ``aux`` stay shared."""
    return replace(ctx, slots=None if ctx.slots is None else ctx.slots[:: ctx.frames], frames=1)
