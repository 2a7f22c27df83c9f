"""DualPrompt: general prompts that all tasks share in early blocks, and an expert prompt of each task behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.models.base import Requires
from avcl_core.models.prefixed import Prefixed, PrefixOptions, of_samples
from avcl_core.ownership import own
from avcl_core.precision import cosines
from avcl_core.prompts.pool import Init, PromptPool, split
from avcl_core.sites import Bank
from avcl_core.task import Task
from avcl_core.walk import Ctx
from shared_backbones.tower import Tower


class DualPromptOptions(PrefixOptions):
    """Configuration of :class:`DualPrompt`; values of php.md, appendix B.

    Attributes:
        general_blocks, general_length: blocks and rows (keys and values each) of the general prompt.
        expert_blocks, expert_length: the same of the expert prompts.
        pull: weight of the distance between the query and the key of the task.
        init, key_init: first values of rows and keys.
    """

    general_blocks: tuple[NonNegativeInt, ...] = (0, 1)
    general_length: PositiveInt = 5
    expert_blocks: tuple[NonNegativeInt, ...] = (2, 3, 4)
    expert_length: PositiveInt = 5
    pull: NonNegativeFloat = 0.1
    init: Init = "uniform"
    key_init: Init = "uniform"

    @model_validator(mode="after")
    def _consistent(self) -> DualPromptOptions:
        both = sorted(set(self.general_blocks) & set(self.expert_blocks))
        if both:
            raise ValueError(
                f"blocks {both} are in general_blocks and in expert_blocks; a block has one kind of prompt"
            )
        if not self.general_blocks and not self.expert_blocks:
            raise ValueError("general_blocks and expert_blocks are both empty; name a block")
        return self


class DualPrompt(Prefixed):
    """Complementary prompting (Wang et al., ECCV 2022) on frozen CLIP and CLAP.

    A task trains its own expert prompt, whose key is pulled to the frozen features of its samples. In a test the given task's prompt
    is used; where the task is hidden, each sample gets that of the key nearest to its features.
    """

    Config = DualPromptOptions
    options: DualPromptOptions  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: DualPromptOptions) -> None:
        super().__init__(towers, tasks, options)
        self.general, self.experts = nn.ModuleDict(), nn.ModuleDict()
        self.widths: dict[str, tuple[list[int], list[int]]] = {}
        o = options
        for name in o.modalities:
            first = self.place_prefixes(name, o.general_blocks, "general_blocks")
            second = self.place_prefixes(name, o.expert_blocks, "expert_blocks")
            self.widths[name] = first, second
            if first:
                pool = PromptPool(f"{name} general", self.joint_width(name), first, o.general_length, 1, init=o.init)
                self.general[name] = own(pool, "shared")
            if second:
                self.experts[name] = Bank(lambda name=name: self._expert(name), "task")

    def _expert(self, name: str) -> PromptPool:
        o = self.options
        return PromptPool(
            f"{name} expert", self.joint_width(name), self.widths[name][1], o.expert_length, 1,
            init=o.init, key_init=o.key_init, pull=o.pull, keyed=True,
        )  # fmt: skip

    @classmethod
    def needs(cls, options: Options) -> Requires:
        """Keys choose where the task is hidden."""
        return replace(cls.requires, task_id=("given", "hidden"))

    def guess(self, batch: Batch) -> tuple[str, ...] | None:
        """Return the slot of the nearest key for every sample, by the cosines of all modalities together."""
        if not self.experts:
            return None
        scores = [cosines(self.query(batch, (name,)), self.keys(name)) for name in self.experts]
        return tuple(self.slots[index] for index in torch.stack(scores).sum(0).argmax(1).tolist())

    def keys(self, name: str) -> Tensor:
        """Return the normalised keys of a modality's expert prompts ``[slots, D]``."""
        bank = self.experts[name]
        assert isinstance(bank, Bank)
        keys = [cast(Tensor, bank.slots[slot].keys) for slot in self.slots]
        return F.normalize(torch.cat(keys).detach(), dim=1)

    def prepare(self, batch: Batch, ctx: Ctx) -> None:
        """Take the general prompt, and the expert prompt of every sample's slot."""
        o = self.options
        for name, widths in self.widths.items():
            samples = of_samples(ctx)
            # Only the pull reads the query: without, one token per sample tells how many there are.
            pulls = ctx.training and o.pull > 0 and bool(widths[1])
            query = self.query(batch, (name,)).unsqueeze(1) if pulls else ctx.embedded[name][:: ctx.frames, :1]
            if widths[0]:
                pairs = split(self.general[name](query, None, samples), widths[0], o.general_length)
                self.hand_over(ctx, name, o.general_blocks, pairs, "general_blocks")
            if widths[1]:
                pairs = split(self.experts[name](query, None, samples), widths[1], o.expert_length)
                self.hand_over(ctx, name, o.expert_blocks, pairs, "expert_blocks")
