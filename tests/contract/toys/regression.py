"""ASAL in small: a trained ResNet, one correlation over current and replayed clips, rank-even samples with key frames."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from avcl_core.batch import concatenate
from avcl_core.features import Features
from avcl_core.methods.base import Method, Update
from avcl_core.models.base import Model, Requires
from avcl_core.models.residual_adapters import ResidualAdapters
from avcl_core.ownership import own
from avcl_core.replay.memory import Exemplar

FRAMES, KEY_FRAMES = 6, 3


class Stretch(nn.Module):
    """Features of key frames ``[b, 3, …]`` to those of a whole clip ``[b, 6, …]``."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(KEY_FRAMES, FRAMES))

    def forward(self, frames):
        return torch.einsum("bk...,kt->bt...", frames, self.weights.softmax(0))


class Regressor(Model):
    requires = Requires(towers=("visual",))

    def __init__(self, towers, tasks, options):
        own(towers["visual"].set_trainable(True), "shared")
        super().__init__(towers, tasks, options)
        self.stretch = own(Stretch(), "shared")


class KeyFrameReplay(Method):
    def __init__(self, model, tasks, options, seed):
        super().__init__(model, tasks, options, seed)
        self.kept = []

    def recall(self, batch_size, generator):
        return [self.kept[i] for i in torch.randperm(len(self.kept), generator=generator)[:3].tolist()]

    def step(self, current, replayed):
        ctx = self.context(current, training=True)
        features = self.model.features(current, ctx)
        rows = self.collective.gather({**self.model.read(features, current, ctx), **current.targets})
        found = [rows]
        for batch in replayed:
            clip = batch.inputs["visual"]
            chosen = clip.gather(
                1, batch.stored["frames"].view(len(batch), -1, 1, 1, 1).expand(-1, -1, *clip.shape[2:])
            )
            old = replace(batch, inputs={"visual": chosen})
            short = self.model.features(old, self.context(old, training=True))
            long = Features({name: self.model.stretch(value) for name, value in short.final.items()}, {})
            found.append({**self.model.read(long, old, ctx), **batch.targets})
        joint = concatenate(found)
        parts = {name: value * current.share for name, value in self.tasks[current.task].loss(joint, joint).items()}
        whole = features.final["visual"].detach()
        chosen = torch.tensor([0, 2, 4])
        parts["adapter"] = 0.1 * functional.mse_loss(self.model.stretch(whole[:, chosen]), whole) * current.share
        yield Update(parts)

    def after(self, experience, data):
        values = {
            key: float(value) for b in data.batches() for key, value in zip(b.keys, b.targets["value"], strict=True)
        }
        order = sorted(values, key=lambda key: (values[key], key))
        chosen = [order[i] for i in torch.linspace(0, len(order) - 1, 3).floor().long().tolist()]
        for batch in data.batches(keys=chosen):
            change = batch.inputs["visual"].diff(dim=1).abs().mean((2, 3, 4))
            frames = (change.topk(KEY_FRAMES, dim=1).indices + 1).sort(1).values
            self.kept += [
                Exemplar(experience.name, key, {"frames": row}) for key, row in zip(batch.keys, frames, strict=True)
            ]

    def state(self):
        return {"kept": [{"experience": e.experience, "key": e.key, "stored": dict(e.stored)} for e in self.kept]}

    def load(self, state):
        self.kept = [Exemplar(**entry) for entry in state["kept"]]


class FrozenRegressor(ResidualAdapters):
    """The same over a frozen tower with adapters: without batch norm, ranks add up to one process."""

    requires = Requires(towers=("visual",))

    def __init__(self, towers, tasks, options):
        super().__init__(towers, tasks, options)
        self.stretch = own(Stretch(), "shared")
