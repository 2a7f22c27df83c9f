"""S-Prompts: a prompt of each task's own, and centres of its frozen features that recognise its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic import PositiveInt
from torch import nn

from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.models.aligned import RouterOptions
from avcl_core.models.base import Requires
from avcl_core.models.prefixed import Blocks, Prefixed, PrefixOptions, of_samples
from avcl_core.prompts.pool import Init, PromptPool, split
from avcl_core.sites import Bank
from avcl_core.task import Task
from avcl_core.walk import Ctx
from shared_backbones.tower import Tower


class SPromptsOptions(PrefixOptions):
    """Configuration of :class:`SPrompts`; values of php.md, appendix B.

    Attributes:
        length: rows of a task's prompt, for keys and values each.
        blocks: blocks that get one, each rows of its own.
        init: first values of rows.
        router: centres; as published, of images alone.
    """

    length: PositiveInt = 10
    blocks: Blocks = (0,)
    init: Init = "uniform"
    router: RouterOptions = RouterOptions(reads=("visual",))


class SPrompts(Prefixed):
    """Independent prompts per task (Wang et al., NeurIPS 2022) on frozen CLIP and CLAP.

    Where the task is hidden, the nearest centre picks the prompt of every sample. Where it is given, centres choose nothing
    and none are computed: then nothing but CLIP-Adapters is shared, and nothing else can be forgotten.
    """

    Config = SPromptsOptions
    options: SPromptsOptions  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: SPromptsOptions) -> None:
        super().__init__(towers, tasks, options)
        self.make_router(options.router)
        self.widths = {name: self.place_prefixes(name, options.blocks) for name in options.modalities}
        self.prefixes = nn.ModuleDict(
            {name: Bank(lambda name=name: self._prompt(name), "task") for name in options.modalities}
        )

    def _prompt(self, name: str) -> PromptPool:
        o = self.options
        return PromptPool(f"{name} prompt", self.joint_width(name), self.widths[name], o.length, 1, init=o.init)

    @classmethod
    def needs(cls, options: Options) -> Requires:
        """Centres choose where the task is hidden."""
        return replace(cls.requires, task_id=("given", "hidden"))

    def prepare(self, batch: Batch, ctx: Ctx) -> None:
        """Take the prompt of every sample's slot."""
        for name, bank in self.prefixes.items():
            # One token per sample tells how many there are; a single entry has no key that would read it.
            tokens = ctx.embedded[name][:: ctx.frames, :1]
            flat = bank(tokens, None, of_samples(ctx))
            self.hand_over(ctx, name, self.options.blocks, split(flat, self.widths[name], self.options.length))
