"""L2P: one pool of prompts for all tasks, from which every sample picks the entries whose keys its content meets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import nn

from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.models.base import Requires
from avcl_core.models.prefixed import Blocks, Prefixed, PrefixOptions, of_samples
from avcl_core.ownership import own
from avcl_core.prompts.pool import Init, PromptPool, split
from avcl_core.task import Task
from avcl_core.walk import Ctx
from shared_backbones.tower import Tower


class L2pOptions(PrefixOptions):
    """Configuration of :class:`L2P`; values of php.md, appendix B.

    Attributes:
        pool_size, top_k: entries of the pool, and how many a sample gets.
        length: rows of an entry, for keys and values each.
        blocks: blocks that get them, from one choice.
        pull: weight of the distance between the query and its keys.
        init, key_init: first values of rows and keys.
    """

    pool_size: PositiveInt = 10
    top_k: PositiveInt = 5
    length: PositiveInt = 5
    blocks: Blocks = (0,)
    pull: NonNegativeFloat = 0.1
    init: Init = "uniform"
    key_init: Init = "uniform"

    @model_validator(mode="after")
    def _consistent(self) -> L2pOptions:
        if self.top_k > self.pool_size:
            raise ValueError(f"top_k {self.top_k} of a pool of {self.pool_size}")
        if self.pool_size == 1:
            self.refuse_changed(("pull", "key_init"), "pool_size: 1, which has no keys")
        return self


class L2P(Prefixed):
    """Learning to prompt (Wang et al., CVPR 2022), as a prefix instead of extra tokens, on frozen CLIP and CLAP.

    The query is the frozen tower's own feature of the sample. The choice is made per sample, never per batch, and knows no task:
    whether the task is given makes no difference to it. Everything but the heads is shared, so all of it can be forgotten.
    """

    Config = L2pOptions
    options: L2pOptions  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: L2pOptions) -> None:
        super().__init__(towers, tasks, options)
        o, self.pools = options, nn.ModuleDict()
        self.widths: dict[str, list[int]] = {}
        for name in o.modalities:
            widths = self.widths[name] = self.place_prefixes(name, o.blocks)
            pool = PromptPool(
                f"{name} pool", self.joint_width(name), widths, o.length, o.pool_size, o.top_k,
                init=o.init, key_init=o.key_init, pull=o.pull,
            )  # fmt: skip
            self.pools[name] = own(pool, "shared")

    @classmethod
    def needs(cls, options: Options) -> Requires:
        """Nothing is chosen by the task."""
        return replace(cls.requires, task_id=("given", "hidden"))

    def prepare(self, batch: Batch, ctx: Ctx) -> None:
        """Choose the entries of every sample."""
        o = self.options
        for name, pool in self.pools.items():
            flat = pool(self.query(batch, (name,)).unsqueeze(1), None, of_samples(ctx))
            self.hand_over(ctx, name, o.blocks, split(flat, self.widths[name], o.top_k * o.length))
