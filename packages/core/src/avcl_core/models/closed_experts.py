"""Anchor experts without a language model: feed-forward copies in the shared frozen towers, and heads with closed lists of answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal, cast

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from avcl_core.batch import Batch, Outputs
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError
from avcl_core.features import Features
from avcl_core.models.anchored import Anchored, AnchoredOptions, AnchorOptions, ExpertOptions, Read
from avcl_core.models.base import Requires
from avcl_core.models.distinct import once
from avcl_core.models.kept import Kept
from avcl_core.moe.anchors import Pooled
from avcl_core.moe.feedforward import Experts, blocks_of
from avcl_core.moe.heads import ExpertHeads, Parts
from avcl_core.precision import unmixed
from avcl_core.stream import Experience
from avcl_core.task import Task
from avcl_core.walk import Ctx
from shared_backbones.tower import Tower


class ClosedExpertOptions(ExpertOptions):
    """What an expert is.

    Attributes:
        head: whose a task's head is: the ``task``'s, of which nothing is an expert's; in the ``fusion`` parts that the head names
            the expert's, and the rest the task's (avqacl_moe.md 3.10); or ``experience``: each expert has a whole one.
    """

    head: Literal["task", "fusion", "experience"] = "task"


class ClosedAnchorOptions(AnchorOptions):
    """How a sample of a hidden experience finds its expert; by default by what is seen and heard."""

    reads: Annotated[tuple[Read, ...], Field(min_length=1)] = ("visual", "audio")


class ClosedExpertsOptions(AnchoredOptions):
    """Configuration of :class:`ClosedExperts`.

    Attributes:
        cache_mib: memory for frozen features that the router and tasks with plain inputs read, in MiB.
    """

    expert: ClosedExpertOptions = ClosedExpertOptions()  # pyright: ignore[reportIncompatibleVariableOverride]
    anchors: ClosedAnchorOptions = ClosedAnchorOptions()  # pyright: ignore[reportIncompatibleVariableOverride]
    cache_mib: NonNegativeInt = 256


class ClosedExperts(Anchored):
    """AVQACL-MoE's experts and anchors over the towers and heads of any task (avqacl_moe.md 3.10, ``closed_vocab``).

    An expert is a copy of the MLP of every even block of all towers, as it is of the language model's there. Heads are those of the task
    that is asked in any case: which expert's features they read is what has to be found. Heads begin untrained, so that a task of
    several experiences shares what it learns in them, unless each expert has its own.
    """

    Config = ClosedExpertsOptions
    options: ClosedExpertsOptions  # pyright: ignore[reportIncompatibleVariableOverride]
    requires = Requires(kinds=("mlp",), task_id=("given", "hidden"))

    def __init__(self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: ClosedExpertsOptions) -> None:
        super().__init__(towers, tasks, options)
        self.kept = Kept(options.cache_mib * 2**20)
        self.expert_heads = nn.ModuleDict()
        expert = options.expert
        for name, tower in self._towers():
            if tower.trainable:
                raise ConfigError(f"towers.{name} learns; experts are copies of what is frozen: freeze the tower")
            for block in blocks_of(expert.layers, sum(tower.info.depths)):
                sub = next(sub for sub in tower.subs if (sub.block, sub.kind) == (block, "mlp"))
                base = tower.mlp(sub)
                if not isinstance(base, nn.Module):
                    raise ConfigError(
                        f"towers.{name}: the MLPs of {tower.info.name} read more than tokens and cannot be copied"
                    )
                self.place(name, f"{block}.mlp", "swap", Experts(base, expert.rank, expert.scale, expert.disk))
        self.anchors = options.anchors.make({name: tower.info.width for name, tower in self._towers()})

    @classmethod
    def remarks(cls, options: Options, tasks: Mapping[str, Task], sizes: Mapping[str, int]) -> tuple[str, ...]:
        """Tell of tasks whose experiences share what they learn."""
        shared = [name for name, task in tasks.items() if len(task.experiences()) > 1]
        if not shared or not isinstance(options, ClosedExpertsOptions) or options.expert.head == "experience":
            return ()
        return (
            f"{', '.join(shared)}: several experiences train one head (model.expert.head={options.expert.head}), which can forget; with "
            "model.expert.head=experience each expert has a head of its own",
        )

    # ------------------------------------------------------------------ growth
    def grow(self, experience: Experience) -> None:
        """Make the expert of an experience first: what is drawn for it does not depend on whether its task's head exists."""
        slot, task, kind = self.slot(experience), self.tasks[experience.task], self.options.expert.head
        for module in self.parts.children():
            cast(Experts, module).grow(slot)
        if kind != "task":
            head = task.head(self.spec(), experience)
            names = getattr(head, "fusion", ())
            if head is not None and (kind == "experience" or names):
                if task.name not in self.expert_heads:
                    self.expert_heads[task.name] = ExpertHeads()
                self._heads(task.name).grow(slot, head if kind == "experience" else Parts(names, head))
        super().grow(experience)

    def make_head(self, task: Task, experience: Experience) -> nn.Module | None:
        """Return the head of a task, where experts have no whole ones."""
        return None if self.options.expert.head == "experience" else super().make_head(task, experience)

    def used(self, slot: str, task: str) -> tuple[str, ...]:
        """Return the owner patterns of what a slot predicts with; of another task, also the expert's whose head reads."""
        found = super().used(slot, task)
        return (*found, f"expert:{self._heads(task).of(slot)}") if task in self.expert_heads else found

    def _heads(self, task: str) -> ExpertHeads:
        return cast(ExpertHeads, self.expert_heads[task])

    # ------------------------------------------------------------------ routing
    def pooled(self, batch: Batch) -> Pooled:
        """Return the mean patch tokens of the plain towers over what is there of a sample's seconds ``[b, D]``."""
        found, present = {}, {}
        for name in self.anchors.widths:
            means, there = self._means(batch, name), batch.present.get(name)
            if there is None:
                found[name] = means.mean(1)
                continue
            seconds = there if there.ndim == 2 else there.unsqueeze(1).expand(means.shape[:2])
            known = means.masked_fill(~seconds.unsqueeze(2), 0).sum(1)
            found[name], present[name] = known / seconds.sum(1, keepdim=True).clamp_min(1), seconds.any(1)
        return Pooled(found, present)

    def _means(self, batch: Batch, name: str) -> Tensor:
        """The mean patch token of every second ``[b, T, D]``, kept by content."""
        tower, walk, value = dict(self._towers())[name], self.plain_walk(name), batch.inputs[name]

        def mean(rows: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad(), unmixed(rows):
                tokens, aux = tower.embed(rows)
                final = walk.walk({name: tokens}, {name: aux}, {}, Ctx()).final[name].squeeze(1)
                return (final[:, tower.info.class_tokens :].mean(1),)

        (found,) = self.kept.parts((name, "mean"), tower, value.flatten(0, 1), mean)
        return found.unflatten(0, value.shape[:2])

    # ------------------------------------------------------------------ the forward call
    def features(self, batch: Batch, ctx: Ctx) -> Features:
        """Return the features ``[b, T, N, C]`` of a batch; samples with the same media that go to one expert share a pass."""
        plain = self.tasks[batch.task].plain
        media = replace(batch, inputs={name: value for name, value in batch.inputs.items() if name not in plain})
        walk = super().features
        found = once(media, ctx, walk) if _agree(batch, ctx) else walk(media, ctx)
        return replace(found, plain=self._plain(batch))

    def read(self, features: Features, batch: Batch, ctx: Ctx) -> Outputs:
        """Return the outputs of the asked task's head, or of what the experts have of it."""
        if batch.task not in self.expert_heads:
            return super().read(features, batch, ctx)
        slots = ctx.slots or self.route(batch)
        common = None if self.options.expert.head == "experience" else self.heads[batch.task]
        return self._heads(batch.task)(features, batch, slots, common)


def _agree(batch: Batch, ctx: Ctx) -> bool:
    """Whether all samples with the same media have one slot."""
    return ctx.slots is None or len({*zip(batch.media, ctx.slots, strict=False)}) == len({*batch.media})
