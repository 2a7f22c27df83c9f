"""The walk runs one tower, or two in lock-step, sublayer by sublayer, with trainable modules at named sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from avcl_core.features import Features, FeatureSpec, TokenShape
from shared_backbones.tower import Sub, Tower

if TYPE_CHECKING:
    from avcl_core.trace import Trace

Place = Literal["input", "prefix", "swap", "add"]
Site = tuple[str, str, Place]
"""(tower, step name, place)."""


@dataclass
class Ctx:
    """One forward call; the only carrier of routing, never stored on a module.

    Attributes:
        slots: which copy of a task- or expert-owned module runs, one host string per row; ``None`` without slots.
        frames: consecutive rows of the walk that belong to one sample.
        counts: how many samples of the batch each sample of this pass stands for; ``None``: one each.
        training: whether regularisers may add to ``aux``.
        embedded: tower → tokens before the first step.
        memo: shared within the call: generated prompts, queries.
        aux: name → loss term that a model adds to the task's loss.
        generator: random numbers of this call, where a module needs its own.
        gather: joins rows of all ranks, with gradients; a regulariser that is no mean over rows (load balance, contrast)
            is computed on what it returns.
        trace: takes what modules tell about themselves; ``None`` when nobody listens. It may not change a result.
        without: places at which no module acts: what a model does without its prompts or its adapters, a control.
        recompute: keep only the tokens between steps and compute the rest again in the backward pass (activation
            checkpointing). A module may then run twice, so it adds to ``memo`` and ``aux`` under a name of its own.
    """

    slots: tuple[str, ...] | None = None
    frames: int = 1
    counts: tuple[int, ...] | None = None
    training: bool = False
    embedded: dict[str, Tensor] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)
    aux: dict[str, Tensor] = field(default_factory=dict)
    generator: torch.Generator | None = None
    gather: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    trace: Trace | None = None
    without: frozenset[Place] = frozenset()
    recompute: bool = False

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the batch's samples of a value per sample of this pass ``[b]``: what a term in ``aux`` must be."""
        if self.counts is None:
            return values.mean()
        weights = torch.tensor(self.counts, dtype=values.dtype, device=values.device)
        return (values * weights).sum() / weights.sum()

    def per_frame(self, frames: int) -> Ctx:
        """Return a context whose slots are repeated for each of ``frames`` frames; ``memo`` and ``aux`` stay shared."""
        slots = None if self.slots is None else tuple(slot for slot in self.slots for _ in range(frames))
        return replace(self, slots=slots, frames=frames)


@dataclass(frozen=True)
class Step:
    """Sublayers, per tower, that run between two exchanges of the streams."""

    name: str
    advance: Mapping[str, tuple[Sub, ...]]


@dataclass(frozen=True)
class DualStream:
    """Towers with the steps in which they advance.

    Build with :meth:`solo` or :meth:`lockstep`. Every sublayer of every tower is in exactly one step, in order.

    Attributes:
        unnormed: towers whose final norm is left out: their final tokens are those of the last stage.
    """

    towers: Mapping[str, Tower]
    steps: tuple[Step, ...]
    unnormed: tuple[str, ...] = ()

    @classmethod
    def solo(cls, name: str, tower: Tower, unnormed: Sequence[str] = ()) -> DualStream:
        """Walk one tower; steps are ``<block>.attn``, ``<block>.mlp``, ``<stage>.stage``; a merge joins the next step."""
        return cls({name: tower}, tuple(_steps_of(name, tower)), tuple(unnormed))

    @classmethod
    def lockstep(
        cls,
        towers: Mapping[str, Tower],
        pairs: Sequence[tuple[int, int]],
        second_block: Literal["split", "whole"] = "split",
        unnormed: Sequence[str] = (),
    ) -> DualStream:
        """Walk two towers together.

        Args:
            towers: two towers by name; blocks of the first and the second are paired.
            pairs: ``(first block, second block)``, strictly ascending in both; blocks between pairs run alone.
            second_block: ``split`` exchanges after the second tower's attention as well, ``whole`` runs its block
                completely before the first exchange of the pair (PHP, section 3.2).
            unnormed: towers whose final norm is left out.

        Steps of pair p are ``<p>.attn`` and ``<p>.mlp``; blocks that run alone have steps ``<tower><block>.<kind>``.

        Raises:
            ValueError: not two towers, one without attention, or pairs that are not ascending or name a block that does
                not exist.
        """
        if len(towers) != 2:
            raise ValueError(f"lockstep pairs two towers, got {sorted(towers)}")
        (first, one), (second, two) = towers.items()
        for name, tower in towers.items():
            if any(sub.kind == "stage" for sub in tower.subs):
                raise ValueError(
                    f"lockstep pairs attention blocks; {name} ({tower.info.name}) has convolutional stages"
                )
        counts = {name: _blocks(tower) for name, tower in towers.items()}
        previous = (-1, -1)
        for pair in pairs:
            if pair[0] <= previous[0] or pair[1] <= previous[1]:
                raise ValueError(f"pairs must ascend strictly in both towers: {previous} then {pair}")
            previous = pair
        if previous[0] >= counts[first] or previous[1] >= counts[second]:
            raise ValueError(f"pair {previous} names a block that does not exist: {counts}")
        steps: list[Step] = []
        done = {first: 0, second: 0}

        def alone(name: str, tower: Tower, until: int) -> None:
            for block in range(done[name], until):
                for kind, subs in _halves(tower, block):
                    steps.append(Step(f"{name}{block}.{kind}", {name: subs}))
            done[name] = until + 1

        for index, (block_one, block_two) in enumerate(pairs):
            alone(first, one, block_one)
            alone(second, two, block_two)
            halves_one, halves_two = dict(_halves(one, block_one)), dict(_halves(two, block_two))
            if second_block == "whole":
                halves_two = {"attn": halves_two["attn"] + halves_two["mlp"], "mlp": ()}
            for kind in ("attn", "mlp"):
                steps.append(Step(f"{index}.{kind}", {first: halves_one[kind], second: halves_two[kind]}))
        alone(first, one, counts[first])
        alone(second, two, counts[second])
        return cls(dict(towers), tuple(steps), tuple(unnormed))

    def shapes(self) -> dict[str, dict[str, TokenShape]]:
        """Return, per tower, the token shape after each step that advances it."""
        return {
            name: {step.name: _shape(tower, step.advance[name][-1]) for step in self.steps if step.advance.get(name)}
            for name, tower in self.towers.items()
        }

    def spec(self) -> FeatureSpec:
        """Return the shapes of the features that :meth:`walk` gives."""
        final, stages = {}, {}
        for name, tower in self.towers.items():
            last_of_stage = {sub.stage: sub for sub in tower.subs if sub.kind != "merge"}
            stages[name] = tuple(_shape(tower, last_of_stage[stage]) for stage in sorted(last_of_stage))
            final[name] = stages[name][-1]
        return FeatureSpec(final, stages)

    def walk(
        self,
        tokens: Mapping[str, Tensor],
        aux: Mapping[str, Mapping[str, Any]],
        sites: Mapping[Site, Sequence[Any]],
        ctx: Ctx,
    ) -> Features:
        """Run all steps from embedded tokens.

        Args:
            tokens: tower → ``[B, N, C]`` as ``Tower.embed`` returns them; rows of all towers correspond.
            aux: tower → what ``Tower.embed`` returned beside them.
            sites: (tower, step, place) → modules called with ``(own, other, ctx)``.
            ctx: the call's context, already per row of ``tokens``.

        Returns:
            Features with ``[B, 1, N, C]`` maps (the caller restores clips and frames). With no site, the walk equals
            the plain encoder bit for bit.
        """
        state = dict(tokens)
        stages: dict[str, list[Tensor]] = {name: [] for name in state}
        for step in self.steps:
            for name, subs in step.advance.items():
                if subs and (subs[0].kind == "merge" or (subs[0].kind == "stage" and subs[0].stage > 0)):
                    stages[name].append(state[name])
            if ctx.recompute and torch.is_grad_enabled():
                state = checkpoint(self._advance, step, state, aux, sites, ctx, use_reentrant=False)
            else:
                state = self._advance(step, state, aux, sites, ctx)
        final = {}
        for name, tower in self.towers.items():
            stages[name].append(state[name])
            final[name] = state[name] if name in self.unnormed else tower.final(state[name])
        return Features(
            {name: value[:, None] for name, value in final.items()},
            {name: tuple(value[:, None] for value in values) for name, values in stages.items()},
        )

    def _advance(self, step: Step, state: Mapping[str, Tensor], aux, sites, ctx: Ctx) -> dict[str, Tensor]:
        """Return the tokens of all towers after a step."""
        state = dict(state)

        def at(name: str, place: Place) -> Sequence[Any]:
            return () if place in ctx.without else sites.get((name, step.name, place), ())

        def residuals(reads: str) -> Iterator[tuple[str, Tensor]]:
            seen = dict(state)
            for name in seen:
                for module in at(name, "add"):
                    if module.reads == reads:
                        yield name, module(seen[name], self._other(name, seen), ctx)

        for name, subs in step.advance.items():
            for sub in subs:
                if sub.kind == "merge":
                    tower = self.towers[name]
                    state[name] = tower.join(sub, state[name], tower.run(sub, state[name], aux[name]))
            for module in at(name, "input"):
                state[name] = state[name] + module(state[name], self._other(name, state), ctx)
        added = list(residuals("entry"))
        for name, subs in step.advance.items():
            for sub in subs:
                if sub.kind != "merge":
                    state[name] = self._sublayer(name, sub, state[name], aux[name], at, ctx)
        added += residuals("exit")
        for name, residual in added:
            state[name] = state[name] + residual
        return state

    def _sublayer(self, name: str, sub: Sub, tokens: Tensor, aux, at, ctx: Ctx) -> Tensor:
        tower = self.towers[name]
        if sub.kind == "stage":
            return tower.join(sub, tokens, tower.run(sub, tokens, aux))
        if sub.kind == "attn":
            rows = [module(tokens, None, ctx) for module in at(name, "prefix")]
            prefix = (torch.cat([r[0] for r in rows], 1), torch.cat([r[1] for r in rows], 1)) if rows else None
            return tower.join(sub, tokens, tower.run(sub, tokens, aux, prefix=prefix))
        modules = at(name, "swap")
        if len(modules) > 1:
            raise ValueError(f"{name}, block {sub.block}: one module at most can replace an MLP, got {len(modules)}")
        swap = (lambda hidden: modules[0](hidden, None, ctx)) if modules else None
        return tower.join(sub, tokens, tower.run(sub, tokens, aux, swap=swap))

    def _other(self, name: str, state: Mapping[str, Tensor]) -> Tensor | None:
        for other, tokens in state.items():
            if other != name:
                return tokens
        return None


def _blocks(tower: Tower) -> int:
    return 1 + max(sub.block for sub in tower.subs)


def _halves(tower: Tower, block: int) -> list[tuple[str, tuple[Sub, ...]]]:
    """The attention half (with a merge that precedes it) and the MLP half of a block, or its one stage."""
    subs = [sub for sub in tower.subs if sub.block == block]
    if subs[-1].kind == "stage":
        return [("stage", tuple(subs))]
    return [
        ("attn", tuple(sub for sub in subs if sub.kind in ("merge", "attn"))),
        ("mlp", tuple(sub for sub in subs if sub.kind == "mlp")),
    ]


def _steps_of(name: str, tower: Tower) -> list[Step]:
    return [
        Step(f"{block}.{kind}", {name: subs}) for block in range(_blocks(tower)) for kind, subs in _halves(tower, block)
    ]


def _shape(tower: Tower, sub: Sub) -> TokenShape:
    return TokenShape(sub.grid, sub.width, tower.info.class_tokens)
