"""A toy task without a head of its own: classes are found by comparing every second with their names."""

from __future__ import annotations

import torch
from torch import nn

from avcl_core.batch import Batch, Outputs
from avcl_core.errors import ConfigError
from avcl_core.features import Features, FeatureSpec
from avcl_core.stream import Experience
from avcl_core.testing.toy_tasks import ToyClasses


class Compared(nn.Module):
    """``logits`` ``[b, K]``: similarities added up over modalities, averaged over seconds; nothing to learn."""

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the logits."""
        return {"logits": torch.stack(list(features.similarity.values())).sum(0).mean(1)}


class ToyTexts(ToyClasses):
    """One of four exclusive classes that have names, for models with a text side."""

    texts = ("grey", "red_tint", "green", "blue tint")

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module | None:
        """Return the comparison, which needs a model that makes it."""
        if not spec.similarity:
            raise ConfigError(f"task {self.name} is compared with texts; choose a model with a text side")
        return Compared()
