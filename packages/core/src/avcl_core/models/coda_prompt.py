"""CODA-Prompt: prompts that are sums over components; each task adds components and leaves those of earlier tasks alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt
from torch import nn

from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError
from avcl_core.models.base import Requires
from avcl_core.models.prefixed import Blocks, Prefixed, PrefixOptions
from avcl_core.ownership import own
from avcl_core.prompts.components import Components, mix, orthogonalise, orthogonality
from avcl_core.stream import Experience
from avcl_core.task import Task
from avcl_core.walk import Ctx
from shared_backbones.tower import Tower

if TYPE_CHECKING:
    from avcl_core.methods.base import Data


class CodaPromptOptions(PrefixOptions):
    """Configuration of :class:`CodaPrompt`; values of php.md, appendix B.

    Attributes:
        components: of the whole stream; every experience gets an equal part, what remains is not made.
        length: rows of a prompt; as published, the first half are keys and the second values.
        blocks: blocks that get prompts, each from components of its own.
        orthogonality: weight of the penalty on components that are not orthonormal.
    """

    components: PositiveInt = 100
    length: Annotated[int, Field(gt=0, multiple_of=2)] = 8
    blocks: Blocks = (0, 1, 2, 3, 4)
    orthogonality: Annotated[float, Field(ge=0, le=0.1)] = 0.1


class CodaPrompt(Prefixed):
    """Continual decomposed attention-based prompting (Smith et al., CVPR 2023) on frozen CLIP and CLAP.

    A task trains its own components; the sum runs over the components of all tasks so far, whichever task is asked. A given
    task id therefore chooses head and class texts and nothing else, and predictions of earlier tasks change when a later one adds
    components, although no tensor of theirs does. Both are as published.
    """

    Config = CodaPromptOptions
    options: CodaPromptOptions  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: CodaPromptOptions) -> None:
        super().__init__(towers, tasks, options)
        count = max(1, sum(len(task.experiences()) for task in tasks.values()))
        self.each = options.components // count
        if not self.each:
            raise ConfigError(
                f"model.components: {options.components} for {count} experiences; each needs at least one"
            )
        self.widths = {name: self.place_prefixes(name, options.blocks) for name in options.modalities}
        self.sets = nn.ModuleDict({name: nn.ModuleDict() for name in options.modalities})

    @classmethod
    def needs(cls, options: Options) -> Requires:
        """Nothing is chosen by the task."""
        return replace(cls.requires, task_id=("given", "hidden"))

    def grow(self, experience: Experience) -> None:
        """Add the components of the experience."""
        super().grow(experience)
        slot = self.slot(experience)
        for name, widths in self.widths.items():
            known = self.sets[name]
            assert isinstance(known, nn.ModuleDict)
            if slot in known:
                continue
            try:
                made = Components(self.each, self.options.length, widths, self.joint_width(name))
            except ValueError as error:
                raise ConfigError(f"model.components: {error}") from error
            known[slot] = own(made, f"task:{slot}")

    def calibrate(self, experience: Experience, data: Data, hidden: bool) -> None:
        """Make the new components orthogonal to those that earlier tasks have learnt (Gram-Schmidt, as published)."""
        super().calibrate(experience, data, hidden)
        slot = self.slot(experience)
        for name in self.widths:
            before = self._sets(name, until=slot)
            try:
                orthogonalise(self._sets(name)[len(before)], before)
            except ValueError as error:
                raise ConfigError(f"model.components: {error}") from error

    def prepare(self, batch: Batch, ctx: Ctx) -> None:
        """Mix every sample's prompts; the penalty goes into ``ctx.aux`` of what is learnt now."""
        o, half = self.options, self.options.length // 2
        for name in self.widths:
            sets, query = self._sets(name), self.query(batch, (name,))
            pairs = []
            for number, block in enumerate(o.blocks):
                prompts, weights = mix(sets, query, number)
                pairs.append((prompts[:, :half], prompts[:, half:]))
                if ctx.trace is not None:
                    shares = weights.abs().unflatten(1, (len(sets), -1)).sum(2)
                    ctx.trace.put(f"{name} {block} components", "gates", shares / shares.sum(1, keepdim=True))
                    ctx.trace.keep(f"{name} {block} components", "experts", self.slots)
            self.hand_over(ctx, name, o.blocks, pairs)
            if ctx.training and o.orthogonality and self._teaches(name, batch):
                ctx.aux[f"{name} orthogonality"] = o.orthogonality * orthogonality(sets)

    def _teaches(self, name: str, batch: Batch) -> bool:
        """Whether the components of the batch's experience learn now: the penalty is on parameters, so that replayed samples of
        finished experiences would only add it again."""
        known = self.sets[name]
        assert isinstance(known, nn.ModuleDict)
        return batch.experience is None or any(p.requires_grad for p in known[batch.experience].parameters())

    def _sets(self, name: str, until: str | None = None) -> list[Components]:
        """Components of a modality in order of growth, before those of ``until``."""
        slots = self.slots if until is None else self.slots[: self.slots.index(until)]
        known = self.sets[name]
        assert isinstance(known, nn.ModuleDict)
        return [found for slot in slots if isinstance(found := known[slot], Components)]
