"""Supervised AVE read out by class names: every second is compared with 28 names and background (PHP; php.md 3.7, 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from avcl_ave.dataset import EventData
from avcl_ave.similarity import SimilarityHead
from avcl_ave.task import BACKGROUND, EventLocalisation
from avcl_core.batch import Outputs
from avcl_core.features import FeatureSpec
from avcl_core.stream import Experience
from avcl_core.task import Kind

WEIGHT = 5.0
"""Weight of the classification in the loss, beside the model's two contrastive terms (2 and 1.5; php.md 4.1)."""


class TextEventLocalisation(EventLocalisation):
    """The supervised setting for models that compare features with texts.

    Outputs: ``segments`` ``[b, T, C + 1]``, logits per second with background last. Targets, predictions, metrics and test set
    are those of the supervised setting. PHP's published protocol selects no epoch, so nothing here selects on the test split:
    take the last one with ``training.selection: last``.

    Args:
        data: AVE under a protocol.
        width: not used; the head has no layers.
    """

    fields: Mapping[str, Kind] = {"segments": "classes"}
    published_selection: ClassVar[Literal["val", "test"]] = "val"

    def __init__(self, data: EventData, width: int = 256) -> None:
        super().__init__(data, width)
        self.texts = (*self.labels, BACKGROUND)

    def head(self, spec: FeatureSpec, experience: Experience) -> SimilarityHead:
        """Return the head, which has no parameters; ConfigError for a model without a text side."""
        return SimilarityHead(spec)

    def parts(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return per clip the cross-entropy of its seconds' logits, the mean over seconds ``[b]``.

        Labels are exclusive, so this is the soft-target cross-entropy of php.md 4.1 with one-hot targets.
        """
        logits, segments = outputs["segments"], targets["segments"].long()
        return {"segments": functional.cross_entropy(logits.transpose(1, 2), segments, reduction="none").mean(1)}

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return 5 times the mean over clips, which is the mean over segments, of :meth:`parts`.

        The factor relates the task's loss to what the model adds to it; :meth:`nll` is without.
        """
        return {name: WEIGHT * value for name, value in super().loss(outputs, targets).items()}

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return ``segments``, argmax over classes and background, and ``event``, integers.

        The event of a clip is the class that most of its seconds are predicted as. Among equally many, and where every second
        is background, it is the one with the highest mean probability over the clip; of equal ones that of lowest index.
        """
        logits = outputs["segments"]
        segments = logits.argmax(-1)
        counts = functional.one_hot(segments, logits.shape[-1]).sum(1)[:, : self.background]
        probability = logits.softmax(-1).mean(1)[:, : self.background]
        often = counts == counts.amax(1, keepdim=True)
        return {"segments": segments, "event": torch.where(often, probability, -1.0).argmax(-1)}
