"""Weakly supervised AVE: training knows the clip's class alone, prediction still says what every second holds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from avcl_ave.cmbs import WeakEventHead
from avcl_ave.task import EventLocalisation
from avcl_core.batch import Outputs
from avcl_core.features import FeatureSpec
from avcl_core.stream import Experience
from avcl_core.task import Dataset, Kind


class WeakEventLocalisation(EventLocalisation):
    """AVE in the setting of Tian et al. (ECCV 2018) in which a clip's class is the only label (tasks.md 1.5).

    Outputs: ``segments`` ``[b, T, C + 1]``, logits per second with background last, and ``scores`` ``[b, C]``. Training
    targets: ``event`` ``[b]`` alone; validation and test have ``segments`` ``[b, T]`` too. Predictions as in the supervised
    setting. The test set has a name of its own, so that no table puts the two settings into one column.
    """

    fields: Mapping[str, Kind] = {"segments": "classes", "scores": "classes"}
    column = "ave-weak"

    def dataset(self, split: str) -> Dataset:
        """Return the clips of ``split``; those of ``train`` carry their class alone."""
        return self.data.split(split, spans=split != "train")

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module:
        """Return a :class:`WeakEventHead` over all event classes."""
        return WeakEventHead(spec, len(self.labels), self.width)

    def parts(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return per clip BCE(mean over seconds of softmax(q_t), one-hot class) over C + 1 classes, and CE(av, y)."""
        event = targets["event"].long()
        log_p = clip_log_probabilities(outputs["segments"])
        one_hot = functional.one_hot(event, log_p.shape[-1]).to(log_p.dtype)
        likelihood = one_hot * log_p + (1 - one_hot) * log_others(log_p)
        return {
            "clip": -likelihood.mean(-1),
            "scores": functional.cross_entropy(outputs["scores"], event, reduction="none"),
        }

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return ``segments``, argmax q_t, and ``event``, the event class that is likeliest over the clip; integers."""
        clip = clip_log_probabilities(outputs["segments"])
        return {"segments": outputs["segments"].argmax(-1), "event": clip[:, : self.background].argmax(-1)}


def clip_log_probabilities(segments: Tensor) -> Tensor:
    """Return log p, p = mean over seconds of softmax(q_t): ``[b, T, C]`` → ``[b, C]``."""
    return segments.log_softmax(-1).logsumexp(1) - math.log(segments.shape[1])


def log_others(log_p: Tensor) -> Tensor:
    """Return log(1 − p) ``[b, C]`` as the log of the other classes' sum, which is exact where p is nearly 1."""
    classes = log_p.shape[-1]
    own = torch.eye(classes, dtype=torch.bool, device=log_p.device)
    return log_p[:, None].expand(-1, classes, -1).masked_fill(own, -math.inf).logsumexp(-1)
