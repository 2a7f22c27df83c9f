"""Heads of the toy tasks, one for each kind of output, over the features of any towers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from avcl_core.batch import Batch, Outputs
from avcl_core.features import Features, FeatureSpec
from avcl_core.testing.toy_data import WORDS


class Pool(nn.Module):
    """Final tokens of all towers, averaged per frame and joined, through one linear layer: ``[b, T, outputs]``."""

    def __init__(self, spec: FeatureSpec, outputs: int) -> None:
        super().__init__()
        self.towers = list(spec.final)
        self.linear = nn.Linear(sum(shape.width for shape in spec.final.values()), outputs)

    def forward(self, features: Features) -> Tensor:
        """Return ``[b, T, outputs]``."""
        return self.linear(torch.cat([features.final[name].mean(2) for name in self.towers], -1))


class ClipHead(nn.Module):
    """``logits`` ``[b, n]`` averaged over frames, or ``[b, T, n]`` per frame."""

    def __init__(self, spec: FeatureSpec, outputs: int, per_frame: bool = False) -> None:
        super().__init__()
        self.pool, self.per_frame = Pool(spec, outputs), per_frame

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the logits."""
        found = self.pool(features)
        return {"logits": found if self.per_frame else found.mean(1)}


class ScoreHead(nn.Module):
    """One value per clip ``[b]``, for any number of frames."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.pool = Pool(spec, 1)

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the scores."""
        return {"score": self.pool(features).squeeze(-1).mean(1)}


class MaskHead(nn.Module):
    """Dense logits ``[b, T, side, side]`` from every visual stage, with batch-norm statistics that training moves."""

    def __init__(self, spec: FeatureSpec, side: int) -> None:
        super().__init__()
        self.side, self.shapes = side, spec.stages["visual"]
        self.lateral = nn.ModuleList(nn.Linear(shape.width, 6) for shape in self.shapes)
        self.norm = nn.BatchNorm2d(6)
        self.out = nn.Conv2d(6, 1, 1)

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the logits."""
        stages = features.stages["visual"]
        total = torch.zeros(())
        for layer, shape, tokens in zip(self.lateral, self.shapes, stages, strict=True):
            maps = layer(tokens[:, :, shape.class_tokens :]).flatten(0, 1).transpose(1, 2).unflatten(2, shape.grid)
            total = total + functional.interpolate(maps, size=(self.side, self.side))
        return {"mask": self.out(self.norm(total)).unflatten(0, stages[0].shape[:2]).squeeze(2)}


class TokenHead(nn.Module):
    """Answer logits ``[b, 2, WORDS]`` from pooled features and the question's words."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.pool = Pool(spec, 2 * WORDS)
        self.words = nn.Embedding(WORDS, 2 * WORDS)

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the logits."""
        found = self.pool(features).mean(1) + self.words(batch.inputs["question"]).mean(1)
        return {"logits": found.unflatten(1, (2, WORDS))}
