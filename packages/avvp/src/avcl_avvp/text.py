"""Video parsing read out by class names: every second is compared with 25 names and background (PHP; php.md 3.7, 4.1)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from avcl_avvp.dataset import ParsingData
from avcl_avvp.similarity import ParsingReadout
from avcl_avvp.task import VideoParsing
from avcl_core.batch import Outputs
from avcl_core.features import FeatureSpec
from avcl_core.stream import Experience

BACKGROUND = "background"
"""Name of the text after the class names: what a second resembles in which nothing happens."""
WEIGHT = 5.0
"""Weight of the task's loss beside the model's two contrastive terms (2 and 1.5; php.md 4.1)."""


class TextVideoParsing(VideoParsing):
    """Video parsing for models that compare features with texts; outputs, targets, predictions and metrics are the same.

    Args:
        data: LLP under a protocol, without motion features.
    """

    def __init__(self, data: ParsingData) -> None:
        super().__init__(data, "text")
        self.texts = (*self.labels, BACKGROUND)

    def head(self, spec: FeatureSpec, experience: Experience) -> ParsingReadout:
        """Return the head, which has no parameters; ConfigError for a model without a text side."""
        return ParsingReadout(spec)

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return 5 times the means over videos of :meth:`parts`.

        The factor relates the task's loss to what the model adds to it; :meth:`nll` is without.
        """
        return {name: WEIGHT * value for name, value in super().loss(outputs, targets).items()}
