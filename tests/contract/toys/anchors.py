"""The anchor experts in small: whole MLPs of a frozen language model are swapped per sample, routed by feature means."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache

from avcl_core.methods.base import Method
from avcl_core.models.base import Model, Requires
from avcl_core.ownership import own
from avcl_core.sites import Bank, SiteModule
from avcl_core.walk import Ctx, DualStream


class Expert(SiteModule):
    """A trainable copy of the MLP that it replaces."""

    def __init__(self, base):
        super().__init__()
        self.mlp = copy.deepcopy(base).requires_grad_(True)

    def forward(self, own, other, ctx):
        return self.mlp(own)


class Anchor(nn.Module):
    """Mean media feature of one experience; ``count`` is 0 until it is known."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("count", torch.zeros(()))


class AnchorExperts(Model):
    requires = Requires(towers=("visual", "text"), task_id=("given", "hidden"))

    def make_walks(self):
        towers = dict(self._towers())
        return tuple(DualStream.solo(name, towers[name]) for name in ("visual", "text"))

    def __init__(self, towers, tasks, options):
        super().__init__(towers, tasks, options)
        self.media_walk, self.text_walk = self.walks
        self.width = towers["visual"].info.width
        self.aligner = nn.Linear(self.width, towers["text"].info.width).requires_grad_(False)
        self.anchors = own(nn.ModuleDict(), "router")
        for sub in towers["text"].subs[1::4]:
            base = towers["text"].mlp(sub)
            self.place("text", f"{sub.block}.mlp", "swap", Bank(lambda base=base: Expert(base), "expert"))

    def grow(self, experience):
        super().grow(experience)
        if experience.name not in self.anchors:
            self.anchors[experience.name] = Anchor(self.width)

    def make_head(self, task, experience):
        return None  # the language model's own head reads out

    def media(self, batch):
        """Mean frozen media feature ``[b, C]``."""
        frames = batch.inputs["visual"]
        tokens, aux = self.towers["visual"].embed(frames.flatten(0, 1))
        found = self.media_walk.walk({"visual": tokens}, {"visual": aux}, {}, Ctx())
        return found.final["visual"].mean((1, 2)).unflatten(0, frames.shape[:2]).mean(1)

    def route(self, batch):
        if batch.experience is not None:
            return super().route(batch)
        known = [name for name, anchor in self.anchors.items() if anchor.count > 0]
        means = functional.normalize(torch.stack([self.anchors[name].mean for name in known]), dim=1)
        nearest = (functional.normalize(self.media(batch), dim=1) @ means.T).argmax(1)
        return tuple(known[i] for i in nearest.tolist())

    def hidden(self, embedded, ctx, cache=None):
        tokens, aux = self.towers["text"].embed(embedded, cache)
        found = self.text_walk.walk({"text": tokens}, {"text": aux}, self.sites, ctx)
        return self.towers["text"].vocabulary(found.final["text"].squeeze(1))

    def prompt(self, batch):
        return torch.cat(
            [self.aligner(self.media(batch))[:, None], self.towers["text"].words(batch.inputs["question"])], 1
        )

    def forward(self, batch, ctx):
        if not batch.targets:
            return self.answer(batch, ctx)
        prompt = self.prompt(batch)
        given = self.towers["text"].words(batch.targets["ids"][:, :-1].clamp_min(0))
        return {"logits": self.hidden(torch.cat([prompt, given], 1), ctx)[:, prompt.shape[1] - 1 :]}

    def answer(self, batch, ctx):
        inputs, cache, logits = self.prompt(batch), DynamicCache(), []
        for _ in range(2):
            logits.append(self.hidden(inputs, ctx, cache)[:, -1])
            inputs = self.towers["text"].words(logits[-1].argmax(-1))[:, None]
        return {"logits": torch.stack(logits, 1), "ids": torch.stack(logits, 1).argmax(-1)}


class AnchorMethod(Method):
    """Only the experience's own expert learns; its anchor, a mean of frozen features, is known before."""

    def active(self, experience):
        return (f"expert:{experience.name}",)

    def before(self, experience, data):
        with torch.no_grad():
            found = torch.cat([self.model.media(batch) for batch in data.batches()])
            self.model.anchors[experience.name].mean.copy_(found.mean(0))
            self.model.anchors[experience.name].count.fill_(len(found))
