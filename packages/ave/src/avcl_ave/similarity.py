"""The text head: a second is what its sight and sound resemble, among the class names and background; nothing is learnt here."""

from __future__ import annotations

from torch import nn

from avcl_core.batch import Batch, Outputs
from avcl_core.features import Features, FeatureSpec, needs_similarity
from avcl_core.heads.similarity import fused


class SimilarityHead(nn.Module):
    """Fuse how much every second resembles the K texts of the task, by sight and by sound; without parameters.

    What is learnt about classes lies in the model: the context of its prompts and its adapters.

    Outputs:
        ``segments`` ``[b, T, K]``: logits 2·visual + 2·audio similarity, float32 at least.

    Raises:
        ConfigError: the model does not compare both modalities with texts.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        needs_similarity(spec, "tasks.ave.head=text")

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs for similarities ``[b, T, K]`` per modality."""
        return {"segments": fused(features)}
