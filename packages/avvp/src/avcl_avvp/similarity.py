"""The heads that read a video out by class names, from how much every second resembles them; nothing is learnt here (PHP)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from avcl_core.batch import Batch, Outputs
from avcl_core.features import Features, FeatureSpec, needs_similarity
from avcl_core.heads.similarity import fused
from avcl_core.precision import precise


class ParsingReadout(nn.Module):
    """Events of every second and modality: those that it resembles more than background (php.md 3.7), without parameters.

    With similarities ℓ_m[s, c] of second s of modality m to class c, background last: z_m = ℓ_m[·, c] − ℓ_m[·, background],
    P_m = σ(z_m), p_m = Σ_s softmax_s(z_m)[s]·P_m[s], p = 1 − (1 − p_a)(1 − p_v).

    Outputs:
        ``clip``, ``clip_audio``, ``clip_visual`` ``[b, C]``: logits of p, p_a and p_v, computed from logarithms, so that they
        stay exact where a probability is nearly 0 or 1.
        ``audio``, ``visual`` ``[b, T, C]``: the probabilities P_a and P_v per second.

    Raises:
        ConfigError: the model does not compare both modalities with texts.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        needs_similarity(spec, "tasks.avvp.head=text")

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs for similarities ``[b, T, C + 1]`` per modality."""
        outputs: Outputs = {}
        present, absent = {}, {}
        for name in ("audio", "visual"):
            similarity = precise(features.similarity[name])
            scores = similarity[..., :-1] - similarity[..., -1:]
            weights = scores.log_softmax(1)
            present[name] = (weights + functional.logsigmoid(scores)).logsumexp(1)
            absent[name] = (weights + functional.logsigmoid(-scores)).logsumexp(1)
            outputs[f"clip_{name}"] = present[name] - absent[name]
            outputs[name] = scores.sigmoid()
        # 1 − (1 − p_a)(1 − p_v) = p_a + (1 − p_a) p_v
        either = torch.logaddexp(present["audio"], absent["audio"] + present["visual"])
        outputs["clip"] = either - (absent["audio"] + absent["visual"])
        return outputs


class VideoReadout(nn.Module):
    """The class of a whole video, as PHP's paper judges it (php.md 2.2, 4.1), without parameters.

    Outputs:
        ``logits`` ``[b, C]``: the mean over seconds of 2·visual + 2·audio similarity to the C classes; there is no background.

    Raises:
        ConfigError: the model does not compare both modalities with texts.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        needs_similarity(spec, "tasks.avvp.head=text")

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs for similarities ``[b, T, C]`` per modality."""
        return {"logits": fused(features).mean(1)}
