"""AVMOE in small: soft mixtures of cross-modal adapters at every paired half-block of Swin-V2 and HTS-AT in lock-step."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from avcl_core.models.base import Model
from avcl_core.ownership import own
from avcl_core.sites import SiteModule
from avcl_core.walk import DualStream


class CrossAdapter(nn.Module):
    """A few latent tokens gather from the other modality, and own tokens read them; closed gate at first."""

    def __init__(self, width):
        super().__init__()
        self.latent = nn.Parameter(torch.randn(3, width) * 0.1)
        self.gate = nn.Parameter(torch.zeros(1))
        self.map = nn.Linear(width, width)

    def forward(self, own_tokens, other):
        latent = self.latent + (self.latent @ other.transpose(1, 2)).softmax(-1) @ other
        return self.gate * self.map((own_tokens @ latent.transpose(1, 2)).softmax(-1) @ latent)


class Mixture(SiteModule):
    """Experts, router and the projection of the other modality, each with an owner of its own."""

    reads = "entry"

    def __init__(self, shape, other_shape, label, experts=2):
        super().__init__()
        self.label = label
        self.project = own(nn.Linear(other_shape.width, shape.width), "shared")
        self.router = own(nn.Linear(2 * shape.width, experts), "router")
        self.experts = nn.ModuleList(own(CrossAdapter(shape.width), f"expert:{k}") for k in range(experts))

    def forward(self, own, other, ctx):
        other = self.project(other)
        weights = self.router(torch.cat([own.mean(1), other.mean(1)], -1)).softmax(-1)
        if ctx.training:
            load = ctx.gather({"weights": weights})["weights"].mean(0)  # a function of the whole batch
            ctx.aux["balance"] = ctx.aux.get("balance", torch.zeros(())) - 0.04 * load.log().mean()
        added = sum(weights[:, k, None, None] * expert(own, other) for k, expert in enumerate(self.experts))
        if ctx.trace is not None:
            assert not ctx.training
            ctx.trace.put(self.label, "gates", weights)
            ctx.trace.put(self.label, "residual", added.flatten(1).norm(dim=1) / own.flatten(1).norm(dim=1))
            ctx.trace.keep(self.label, "gate", torch.cat([expert.gate for expert in self.experts]))
        return added


class CrossExperts(Model):
    def coupled(self, task):
        return True

    def make_walks(self):
        return (DualStream.lockstep(dict(self._towers()), [(0, 0), (3, 2)]),)

    def __init__(self, towers, tasks, options):
        super().__init__(towers, tasks, options)
        (walk,) = self.walks
        shapes = walk.shapes()
        for step in walk.steps:
            if len(step.advance) == 2:
                visual, audio = shapes["visual"][step.name], shapes["audio"][step.name]
                place = step.name.replace(".", " ")
                self.place("visual", step.name, "add", Mixture(visual, audio, f"visual {place}"))
                self.place("audio", step.name, "add", Mixture(audio, visual, f"audio {place}"))

    def active(self, experience):
        return (*super().active(experience), "expert:*")  # all experts serve all tasks


class NoisyExperts(CrossExperts):
    """The same with noise in training, which must be the same after a resume."""

    def read(self, features, batch, ctx):
        outputs = super().read(features, batch, ctx)
        return {name: functional.dropout(value, 0.2, ctx.training) for name, value in outputs.items()}
