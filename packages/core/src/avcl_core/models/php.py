"""PHP: shared adapters between modalities in shallow blocks, generated prompts in mid ones, pools of prompts in deep ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError
from avcl_core.models.aligned import Aligned, AlignedOptions, Modalities, RouterOptions
from avcl_core.models.base import Requires
from avcl_core.models.cross_modal import AdapterOptions, place_cross_modal
from avcl_core.ownership import own
from avcl_core.prompts.generator import DynamicPrompts, as_bias, pooled_map
from avcl_core.prompts.pool import Init, PromptPool, Query, split
from avcl_core.prompts.sites import FromMemo
from avcl_core.sites import Bank
from avcl_core.stream import Experience
from avcl_core.task import Task
from avcl_core.walk import Ctx
from shared_backbones.tower import Tower

Blocks = tuple[NonNegativeInt, ...]
SHARED_PROMPTS = "shared:prompts"
"""Owner of prompts that all tasks share; their learning rate can differ from that of the adapters."""


class ShallowOptions(AdapterOptions):
    """Modality-aggregating adapters (php.md 3.4): one set for all tasks.

    Attributes:
        blocks: blocks behind whose attention and MLP they act; none switches the phase off.
    """

    blocks: Blocks = (0, 1)


class MidOptions(Options):
    """Dynamic generating prompts (3.5): per task, one generator for both modalities.

    Attributes:
        blocks: blocks that get the prompts, each from a generator of its own; none switches the phase off.
        dictionary: rows of the task dictionary.
        rows: generated rows, half of them keys and half values.
        depth: transformer layers of a generator.
    """

    blocks: Blocks = (3, 4)
    dictionary: PositiveInt = 256
    rows: int = Field(default=32, gt=0, multiple_of=2)
    depth: PositiveInt = 3


class DeepOptions(Options):
    """Pools of prefix prompts (3.6): per task and modality.

    Attributes:
        blocks: blocks that get them; none switches the phase off.
        length: rows of an entry, for keys and values each.
        pool_size, top_k, query, init, key_init, same_key_value, pull: see :class:`PromptPool`.
        modalities: towers that have them.
    """

    blocks: Blocks = (5, 6, 7, 8, 9, 10, 11)
    length: PositiveInt = 10
    pool_size: PositiveInt = 3
    top_k: PositiveInt = 1
    query: Query = "mean"
    init: Init = "uniform"
    key_init: Init = "uniform"
    same_key_value: bool = False
    pull: NonNegativeFloat = 0.1
    modalities: Modalities = ("visual", "audio")

    @model_validator(mode="after")
    def _used(self) -> DeepOptions:
        if self.pool_size == 1:
            self.refuse_changed(("pull", "key_init"), "pool_size: 1, which has no keys")
        return self


class PhpOptions(AlignedOptions):
    """Configuration of :class:`Php`.

    Attributes:
        prompts: mid and deep prompts ``per`` task, as published, or one set ``shared`` by all tasks (what plain fine-tuning of the
            same parts is).
        router: what tells the task of a sample where it is hidden: nothing, so that such a stream is refused as by the published
            method, or ``centres`` of the tasks' frozen features, configured by ``centres``.
        task_init: a task's prompts start ``warm`` from the previous task's values, or ``fresh``.
    """

    shallow: ShallowOptions = ShallowOptions()
    mid: MidOptions = MidOptions()
    deep: DeepOptions = DeepOptions()
    prompts: Literal["task", "shared"] = "task"
    task_init: Literal["warm", "fresh"] = "warm"
    router: Literal["none", "centres"] = "none"
    centres: RouterOptions = RouterOptions()

    @model_validator(mode="after")
    def _consistent(self) -> PhpOptions:
        for name in ("shallow", "mid", "deep"):
            blocks = getattr(self, name).blocks
            if len(set(blocks)) != len(blocks):
                raise ValueError(f"{name}.blocks names a block twice: {list(blocks)}")
        if self.router == "centres" and self.prompts == "shared":
            raise ValueError("router: centres chooses among the prompts of tasks; prompts: shared leaves it no choice")
        if self.prompts == "shared":
            self.refuse_changed(("task_init",), "prompts: shared, which no task begins anew")
        if self.router == "none":
            self.refuse_changed(("centres",), "router: none; set router: centres")
        if self.deep.top_k > self.deep.pool_size:
            raise ValueError(f"deep.top_k {self.deep.top_k} of a pool of {self.deep.pool_size}")
        if "audio" in self.deep.modalities and self.deep.query == "cls":
            raise ValueError("deep.query: cls needs a class token, which the audio tower has not; use mean")
        return self


class Php(Aligned):
    """Progressive homeostatic and plastic prompts (Yin et al., ICCV 2025; php.md 3) on frozen CLIP and CLAP.

    What is shared (shallow adapters, CLIP-Adapters) trains on; prompts and heads of a finished task never change again, so
    forgetting can only come from what is shared. A block that is listed as mid and as deep is mid.
    """

    Config = PhpOptions
    options: PhpOptions  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: PhpOptions) -> None:
        super().__init__(towers, tasks, options)
        if options.router == "centres":
            self.make_router(options.centres)
        count = sum(towers["visual"].info.depths)
        for name in ("shallow", "mid", "deep"):
            wrong = [block for block in getattr(options, name).blocks if block >= count]
            if wrong:
                raise ConfigError(f"model.{name}.blocks: {wrong}; the towers have blocks 0 to {count - 1}")
        shapes = self.walks[0].shapes()
        self.width = shapes["visual"]["0.attn"].width
        first = towers["audio"].subs[0]
        self.sound = first.grid, first.width
        try:
            place_cross_modal(self, options.shallow.blocks, options.shallow.sizes(), "shallow")
            self.deep = tuple(block for block in options.deep.blocks if block not in options.mid.blocks)
            self.mid_prompts = self._place_mid(shapes, towers["visual"])
            self.pools = self._place_deep(shapes)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error

    @classmethod
    def needs(cls, options: Options) -> Requires:
        """Prompts of each task's own can only be chosen where the task is known, or by a router."""
        o = options if isinstance(options, PhpOptions) else PhpOptions()
        hidden = o.router == "centres" or o.prompts == "shared"
        return replace(cls.requires, task_id=("given", "hidden")) if hidden else cls.requires

    def _place_mid(self, shapes: Mapping[str, Mapping[str, Any]], visual: Tower) -> nn.Module | None:
        o = self.options.mid
        if not o.blocks:
            return None
        self._check_sound()
        for block in o.blocks:
            shape = shapes["audio"][f"{block}.attn"]
            as_bias(torch.zeros(1, o.rows, self.width), shape.grid, shape.width)
            self.place("visual", f"{block}.attn", "prefix", FromMemo(f"visual {block}"))
            self.place("audio", f"{block}.attn", "input", FromMemo(f"audio {block}"))
        heads = visual.info.heads[0]  # of the stage whose tokens the generators read
        return self._owned(lambda: DynamicPrompts(self.width, heads, len(o.blocks), o.dictionary, o.rows, o.depth))

    def _check_sound(self) -> None:
        """Raise ValueError where sound cannot be pooled for what reads it (geometry, refused before any work)."""
        grid, width = self.sound
        pooled_map(torch.zeros(1, grid[0] * grid[1], width), grid, self.width)

    def _place_deep(self, shapes: Mapping[str, Mapping[str, Any]]) -> nn.ModuleDict:
        o, pools = self.options.deep, nn.ModuleDict()
        self.widths: dict[str, list[int]] = {}
        if self.deep and "audio" in o.modalities:
            self._check_sound()
        for name in o.modalities if self.deep else ():
            widths = self.widths[name] = [shapes[name][f"{block}.attn"].width for block in self.deep]
            pools[name] = self._owned(self._pool(f"{name} pool", widths))
            for block in self.deep:
                self.place(name, f"{block}.attn", "prefix", FromMemo(f"{name} {block}"))
        return pools

    def _pool(self, label: str, widths: list[int]) -> Callable[[], PromptPool]:
        o = self.options.deep
        return lambda: PromptPool(
            label,
            self.width,
            widths,
            o.length,
            o.pool_size,
            o.top_k,
            o.query,
            o.init,
            o.key_init,
            o.same_key_value,
            o.pull,
        )

    def _owned(self, make: Callable[[], nn.Module]) -> nn.Module:
        """A copy per task, or one for all."""
        return Bank(make, "task") if self.options.prompts == "task" else own(make(), SHARED_PROMPTS)

    def active(self, experience: Experience) -> tuple[str, ...]:
        """Return the model's owners; prompts that tasks share learn from every task."""
        everywhere = super().active(experience)
        return (*everywhere, SHARED_PROMPTS) if self.options.prompts == "shared" else everywhere

    def warm_start(self, slot: str) -> str | None:
        """Return the slot that was grown last, whose prompts a new task starts from."""
        return self.slots[-1] if self.options.task_init == "warm" and self.slots else None

    # ------------------------------------------------------------------ the forward call
    def enter(self, batch: Batch, ctx: Ctx) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]], int]:
        """Embed the inputs; prompts are made from CLIP's embedding in front of its first norm (php.md 3.1)."""
        tokens, aux, frames = super().enter(batch, ctx)
        ctx.memo["embedded visual"] = aux["visual"]["raw"]
        return tokens, aux, frames

    def prepare(self, batch: Batch, ctx: Ctx) -> None:
        """Generate and select the prompts of every block."""
        o = self.options
        reads = {"visual": ctx.memo["embedded visual"]}
        if self.mid_prompts is not None or "audio" in self.pools:
            grid, _ = self.sound
            reads["audio"] = pooled_map(ctx.embedded["audio"], grid, self.width)
        if self.mid_prompts is not None:
            seen, heard = self.mid_prompts(reads["visual"], reads["audio"], ctx)
            half = o.mid.rows // 2
            shapes = {sub.block: sub for sub in dict(self._towers())["audio"].subs if sub.kind == "attn"}
            for number, block in enumerate(o.mid.blocks):
                ctx.memo[f"visual {block}"] = seen[:, number, :half], seen[:, number, half:]
                ctx.memo[f"audio {block}"] = as_bias(heard[:, number], shapes[block].grid, shapes[block].width)
        for name, pool in self.pools.items():
            flat = pool(reads[name], None, ctx)
            rows = split(flat, self.widths[name], o.deep.top_k * o.deep.length)
            ctx.memo.update((f"{name} {block}", pair) for block, pair in zip(self.deep, rows, strict=True))
