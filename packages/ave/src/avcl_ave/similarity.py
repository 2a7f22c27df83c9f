"""The text head: a second is what its sight and sound resemble, among the class names and background; nothing is learnt here."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl_core.batch import Batch, Outputs
from avcl_core.errors import ConfigError
from avcl_core.features import Features, FeatureSpec

WEIGHTS = {"visual": 2.0, "audio": 2.0}
"""Weight of each modality's similarity in the logits (php.md 3.7)."""


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
        lacking = sorted(WEIGHTS.keys() - set(spec.similarity))
        if lacking:
            raise ConfigError(
                f"tasks.ave.head: text needs the similarity of {' and '.join(lacking)} features to texts, which this model "
                "does not have; choose one over CLIP and CLAP (model.name=php, aligned, l2p, dualprompt, coda_prompt, "
                "s_prompts or cross_modal), or tasks.ave.head=cmbs"
            )

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs for similarities ``[b, T, K]`` per modality."""
        parts = [weight * _precise(features.similarity[modality]) for modality, weight in WEIGHTS.items()]
        return {"segments": torch.stack(parts).sum(0)}


def _precise(scores: Tensor) -> Tensor:
    """Return scores in float32 at least: in bfloat16 classes would tie."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
