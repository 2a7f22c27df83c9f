"""AVMOE: two frozen hierarchical towers walked in lock-step, with mixtures of audio-visual adapters around their sublayers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from avcl_core.augment import spec_augment, stripe_widths
from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError
from avcl_core.features import Features
from avcl_core.models.base import Model, Requires
from avcl_core.models.kept import Kept
from avcl_core.moe.adapter import MoeAdapter, Routing
from avcl_core.moe.experts import ExpertShape, UniAttention
from avcl_core.moe.router import balance
from avcl_core.seeding import torch_generator
from avcl_core.sites import Bank, SiteModule
from avcl_core.stream import Experience
from avcl_core.task import Task
from avcl_core.walk import Ctx, DualStream
from shared_backbones.tower import Tower

Probability = Annotated[float, Field(ge=0, lt=1)]


class AvMoeOptions(Options):
    """Configuration of :class:`AvMoe`; the names and defaults are those of avmoe.md 3.8, column ``avmoe``.

    Attributes:
        cross_experts, uni_experts: experts of each kind in every adapter.
        skip: above 1, stages whose index from 1 is a multiple of it have no adapters.
        reduction, groups, latents: sizes of an expert (:class:`ExpertShape`).
        bottleneck_norm: batch norm in the bottleneck, over the tokens of one clip. A blank image's tokens do not vary, so of a
            modality that is missing in training it makes amplified rounding errors.
        uni_attention: what a unimodal expert does first: nothing, latent tokens, or attention over the frames of a clip.
        uni_activation: non-linearity in a unimodal bottleneck.
        router: one for all tasks, one per task, or none: equal weights for all experts (a control).
        router_noise: standard deviation of the noise on router logits in training.
        balance_weight: weight of the load-balancing loss, summed over adapters.
        adapters: one set for all tasks, or a whole set per task.
        specaug: SpecAugment in training.
        modality_dropout: probability that a training sample lacks one of its two modalities.
        mixer_rank: rank of the token maps; ``null``: dense. Not the paper's model.
        recompute: activation checkpointing per half block.
        audio_placement: ``after_block`` adds audio residuals after the whole audio block, as the released code does.
        imported: the run was imported from the authors' format, which alone may use ``dense`` and ``after_block``.
        cache_mib: memory for features of frames that the plain tower reads, in MiB.
    """

    cross_experts: NonNegativeInt = 1
    uni_experts: NonNegativeInt = 1
    skip: PositiveInt = 2
    reduction: PositiveInt = 8
    groups: PositiveInt = 2
    latents: PositiveInt = 32
    bottleneck_norm: Literal["none", "batch"] = "none"
    uni_attention: UniAttention = "latent"
    uni_activation: Literal["none", "relu"] = "none"
    router: Routing = "shared"
    router_noise: NonNegativeFloat = 0.0
    balance_weight: NonNegativeFloat = 0.0
    adapters: Literal["shared", "task"] = "shared"
    specaug: bool = True
    modality_dropout: Probability = 0.0
    mixer_rank: PositiveInt | None = None
    recompute: bool = False
    audio_placement: Literal["sublayers", "after_block"] = "sublayers"
    imported: bool = False
    cache_mib: NonNegativeInt = 256

    @model_validator(mode="after")
    def _consistent(self) -> AvMoeOptions:
        if self.cross_experts + self.uni_experts < 1:
            raise ValueError("cross_experts and uni_experts are both 0; set one of them")
        if not self.imported and (self.uni_attention == "dense" or self.audio_placement == "after_block"):
            raise ValueError(
                "uni_attention: dense and audio_placement: after_block exist for imported checkpoints only; "
                "use latent and sublayers"
            )
        if self.cross_experts + self.uni_experts == 1 and self.router != "uniform" and not self.imported:
            raise ValueError(
                "one expert leaves a router nothing to weigh, so it would never learn; set router: uniform"
            )
        if self.router == "uniform" and (self.router_noise or self.balance_weight):
            raise ValueError("router: uniform has no logits; leave router_noise and balance_weight at 0")
        if self.adapters == "task" and self.router == "task":
            raise ValueError("adapters: task holds a router per task already; leave router at shared")
        return self


def paired_blocks(visual: Tower, audio: Tower) -> list[tuple[int, int, int]]:
    """Return (stage, visual block, audio block) of every pair (avmoe.md 3.1).

    Per stage the visual tower has k blocks for each audio block; audio block j meets visual block k(j+1)−1.

    Raises:
        ConfigError: the towers differ in stages, or a stage's depth is no multiple.
    """
    depths = visual.info.depths, audio.info.depths
    if len(depths[0]) != len(depths[1]) or any(v % a for v, a in zip(*depths, strict=True)):
        raise ConfigError(
            f"towers {visual.info.name} and {audio.info.name} have {depths[0]} and {depths[1]} blocks per stage; AVMOE pairs "
            "blocks where each visual depth is a multiple of the audio depth"
        )
    pairs, first = [], (0, 0)
    for stage, (deep, shallow) in enumerate(zip(*depths, strict=True)):
        every = deep // shallow
        pairs += [(stage, first[0] + every * (j + 1) - 1, first[1] + j) for j in range(shallow)]
        first = first[0] + deep, first[1] + shallow
    return pairs


class AvMoe(Model):
    """Mixture of audio-visual adapters (Cheng et al., NeurIPS 2024; avmoe.md 3) on frozen towers, one head per task.

    Every pair of blocks has four adapters: per modality one around attention and one around the MLP. Both streams of a site
    are read as they enter the sublayers. HTS-AT's final norm is not applied.
    """

    Config = AvMoeOptions
    requires = Requires(
        towers=("visual", "audio"), kinds=("attn", "mlp"), modalities=("visual", "audio"), task_id=("given", "hidden")
    )
    options: AvMoeOptions

    def __init__(self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: AvMoeOptions) -> None:
        super().__init__(towers, tasks, options)
        self.kept = Kept(options.cache_mib * 2**20)
        self.labels: list[str] = []
        walk = self.walks[0]
        shapes = walk.shapes()
        for pair, (stage, *_) in enumerate(self.pairs):
            if options.skip > 1 and (stage + 1) % options.skip == 0:
                continue
            for site in ("attn", "mlp"):
                for modality, other in (("audio", "visual"), ("visual", "audio")):
                    # Where the audio block runs whole, no audio sublayer is left for the second step.
                    step = f"{pair}.{site}"
                    mine = shapes[modality].get(step, shapes[modality][f"{pair}.attn"])
                    theirs = shapes[other].get(step, shapes[other][f"{pair}.attn"])
                    label = f"{modality} {stage} {pair} {site}"
                    source = theirs.tokens, theirs.width
                    self.place(modality, step, "add", self._adapter(label, source, mine.tokens, mine.width))
                    self.labels.append(label)

    @classmethod
    def needs(cls, options: Options) -> Requires:
        """Adapters or routers of each task's own can only be chosen where the task is known."""
        own = isinstance(options, AvMoeOptions) and "task" in (options.adapters, options.router)
        return replace(cls.requires, task_id=("given",)) if own else cls.requires

    def make_walks(self) -> tuple[DualStream, ...]:
        """Walk both towers in lock-step."""
        towers = dict(self._towers())
        visual, audio = towers["visual"], towers["audio"]
        self.pairs = paired_blocks(visual, audio)
        second = "whole" if self.options.audio_placement == "after_block" else "split"
        blocks = [pair[1:] for pair in self.pairs]
        ordered = {"visual": visual, "audio": audio}
        return (DualStream.lockstep(ordered, blocks, second, unnormed=("audio",)),)

    def _adapter(self, label: str, source: tuple[int, int], tokens: int, width: int) -> SiteModule:
        o = self.options
        try:
            shape = ExpertShape(
                width, o.reduction, o.groups, o.latents, o.bottleneck_norm == "batch", o.uni_attention,
                o.uni_activation == "relu",
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(f"model.reduction, model.groups: {error}") from error

        def make(owned: bool) -> MoeAdapter:
            return MoeAdapter(
                label, source, tokens, shape, o.cross_experts, o.uni_experts, o.router, o.mixer_rank, owned
            )

        return Bank(lambda: make(False), "task") if o.adapters == "task" else make(True)

    def active(self, experience: Experience) -> tuple[str, ...]:
        """All experts serve all experiences."""
        return (*super().active(experience), "expert:*")

    # ------------------------------------------------------------------ the forward call
    def features(self, batch: Batch, ctx: Ctx) -> Features:
        """Return the features of a batch; the load-balancing loss goes into ``ctx.aux``."""
        ctx = replace(ctx, recompute=self.options.recompute)
        if ctx.training and self.options.modality_dropout:
            batch = replace(batch, present=self._dropped(batch))
        found = super().features(batch, ctx)
        if ctx.training and self.options.balance_weight and self.labels:
            terms = [balance(ctx.memo[f"gates {label}"].unflatten(0, (len(batch), -1))) for label in self.labels]
            ctx.aux["balance"] = self.options.balance_weight * torch.stack(terms).sum(0).mean()
        return found

    def embed(self, tower: Tower, value: Tensor, batch: Batch, ctx: Ctx) -> tuple[Tensor, dict[str, Any]]:
        """Embed a tower's input; log-mels of training samples are masked after their batch norm."""
        if not (self.options.specaug and ctx.training and batch.seeds and tower.info.modality == "audio"):
            return super().embed(tower, value, batch, ctx)
        frames, mels = value.shape[-2:]
        widths = stripe_widths(tower.info.spectrogram or (frames, mels))
        drawn = [torch_generator(seed, "specaug") for seed in batch.seeds]
        # A sound that is missing is silence, as in evaluation, without stripes.
        hears = batch.present.get("audio")
        hide = [spec_augment(value.shape[1], frames, mels, generator, widths) for generator in drawn]
        hidden = torch.stack(hide).to(value.device)
        if hears is not None:
            hidden &= hears.reshape(len(batch), -1, 1, 1)
        return tower.embed(value.flatten(0, 1), hide=hidden.flatten(0, 1))

    def prepare(self, batch: Batch, ctx: Ctx) -> None:
        """Draw the router noise of every sample and site."""
        if not (self.options.router_noise and ctx.training and batch.seeds):
            return
        experts = self.options.cross_experts + self.options.uni_experts
        shape = len(self.labels), ctx.frames, experts
        drawn = [torch.randn(shape, generator=torch_generator(seed, "router noise")) for seed in batch.seeds]
        noise = self.options.router_noise * torch.stack(drawn, 1).flatten(1, 2)
        device = ctx.embedded["visual"].device
        ctx.memo.update(zip((f"noise {label}" for label in self.labels), noise.to(device), strict=True))

    def _dropped(self, batch: Batch) -> dict[str, Tensor]:
        """Deny some samples one of their modalities; one that lacks something already keeps the rest."""
        device = next(iter(batch.inputs.values())).device
        whole = torch.ones(len(batch), dtype=torch.bool)
        for known in batch.present.values():
            whole &= known.reshape(len(batch), -1).all(1).cpu()
        present = {name: torch.ones(len(batch), dtype=torch.bool) for name in ("visual", "audio")}
        for row, seed in enumerate(batch.seeds):
            drop, which = torch.rand(2, generator=torch_generator(seed, "modality dropout")).tolist()
            if whole[row] and drop < self.options.modality_dropout:
                present["visual" if which < 0.5 else "audio"][row] = False
        for name, known in batch.present.items():
            mask = present[name].to(known.device)
            present[name] = known & (mask if known.ndim == 1 else mask.unsqueeze(1))
        return {name: mask.to(device) for name, mask in present.items()}
