"""A toy task whose answers are words: what models with a language tower are tried on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from avcl_core.batch import Outputs
from avcl_core.features import FeatureSpec
from avcl_core.seeding import derive
from avcl_core.stream import Experience
from avcl_core.task import Dataset, Kind, Prediction
from avcl_core.testing.toy_data import ToyDataset, latent
from avcl_core.testing.toy_tasks import ToyTask
from avcl_core.texts import IGNORED, text_array, text_of

ANSWERS = ("cat", "a dog", "two", "no")
FORMS = ("What is it?", "How many are there?", "Where, please, is it to be found?")
"""How the questions of each experience are asked."""


class TalkData(ToyDataset):
    """Toy samples with a question as text; nothing is drawn."""

    drawn = frozenset[str]()

    def inputs(self, key: str, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
        """Return frames, sound and the question of the key's experience."""
        form = FORMS[int(key.split("-")[0][-1]) % len(FORMS)]
        return {**super().inputs(key, None), "question": text_array(f"<video>\n<audio>\n{form}", 80)}


class ToyTalks(ToyTask):
    """Answers in words, which depend on the class and on the experience; each experience asks in its own form."""

    modalities: ClassVar[tuple[str, ...]] = ("visual", "audio", "language")
    needs = ("question",)
    fields: Mapping[str, Kind] = {"answer": "tokens"}

    def dataset(self, split: str) -> Dataset:
        """Return the samples."""
        return TalkData(self.shape, self.target, False)

    def target(self, key: str) -> Mapping[str, np.ndarray]:
        """Return the answer as text."""
        return {"language": text_array(ANSWERS[(latent(key) + derive("answer", key.split("-")[0])) % 4], 8)}

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module | None:
        """Return nothing: a language model answers."""
        return None

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the summed cross-entropy of each answer's words ``[b]``."""
        logits = outputs["answer"].transpose(1, 2)
        return functional.cross_entropy(logits, targets["language"], ignore_index=IGNORED, reduction="none").sum(1)

    def units(self, targets: Mapping[str, Tensor]) -> int:
        """Return the number of supervised words."""
        return int((targets["language"] != IGNORED).sum())

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return the generated text."""
        return {"text": outputs["text"]}

    def score(self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction]) -> dict[str, float]:
        """Return the percentage of equal texts."""
        right = [text_of(predictions[key]["text"]) == text_of(targets[key]["language"]) for key in targets]
        return {"score": 100 * sum(right) / len(right)}

    def controls(self, train: Mapping[str, Prediction], test: Mapping[str, Prediction]) -> dict[str, dict[str, float]]:
        """Score the first training sample's answer to everything."""
        constant = {"text": train[min(train)]["language"]}
        return {"constant": self.score(dict.fromkeys(test, constant), test)}
