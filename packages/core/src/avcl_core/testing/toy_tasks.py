"""Five toy tasks, one for each kind of output, that train in seconds: what contract tests run models and methods on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from avcl_core.batch import Outputs
from avcl_core.features import FeatureSpec
from avcl_core.stream import Experience
from avcl_core.task import Dataset, Kind, Prediction, Task
from avcl_core.testing.toy_data import CLASSES, RATE, Shape, ToyDataset, latent, unit
from avcl_core.testing.toy_heads import ClipHead, MaskHead, ScoreHead, TokenHead

IGNORED = -100
"""Target of an answer position that is not supervised."""
_Predictions = Mapping[str, Prediction]


class ToyTask(Task):
    """What the toy tasks share: samples by key, and experiences that differ in brightness.

    Args:
        name: name of the task; experiences are ``<name>0``, ``<name>1``, …
        experiences: how many.
        shape: size of the samples.
        samples: numbers of training, validation and test samples of each experience.
    """

    primary = "score"
    audio_rate = RATE
    fields: Mapping[str, Kind] = {"logits": "classes"}
    question = False

    def __init__(
        self, name: str, experiences: int = 1, shape: Shape | None = None, samples: tuple[int, int, int] = (6, 3, 4)
    ) -> None:
        self.name, self.count, self.shape, self.samples = name, experiences, shape or Shape(), samples

    def experiences(self) -> tuple[Experience, ...]:
        """Return the experiences."""
        return tuple(self._experience(index, f"{self.name}{index}") for index in range(self.count))

    def _experience(self, index: int, name: str) -> Experience:
        train, val, test = (
            tuple(f"{name}-{split}{i}" for i in range(count))
            for split, count in zip(("train", "val", "test"), self.samples, strict=True)
        )
        return Experience(index, name, self.name, train, val, test)

    def dataset(self, split: str) -> Dataset:
        """Return the samples, the same for every split: keys tell them apart."""
        return ToyDataset(self.shape, self.target, self.question)

    def target(self, key: str) -> Mapping[str, np.ndarray]:
        """Return the targets of a sample."""
        return {"class": np.array(latent(key), dtype=np.int64)}

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module | None:
        """Return a head for exclusive classes."""
        return ClipHead(spec, CLASSES)

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return cross-entropies ``[b]``."""
        return functional.cross_entropy(outputs["logits"], targets["class"], reduction="none")

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return the class."""
        return {"class": outputs["logits"].argmax(-1)}

    def score(self, predictions: _Predictions, targets: _Predictions) -> dict[str, float]:
        """Return the percentage of equal entries."""
        name = next(iter(next(iter(targets.values()))))
        right = [np.mean(predictions[key][name] == targets[key][name]) for key in sorted(targets)]
        return {"score": 100 * float(np.mean(right))}

    def controls(self, train: _Predictions, test: _Predictions) -> dict[str, dict[str, float]]:
        """Score the first training sample's targets as the answer to everything."""
        constant = train[min(train)]
        return {"constant": self.score(dict.fromkeys(test, constant), test)}


class ToyClasses(ToyTask):
    """One of four exclusive classes."""

    def groups(self, key: str, target: Prediction) -> tuple[str, ...]:
        """Return the class."""
        return (f"class {int(target['class'])}",)


class ToyLabels(ToyTask):
    """Independent labels per frame; the loss is a mean over frames."""

    fields: Mapping[str, Kind] = {"logits": "labels"}

    def target(self, key: str) -> Mapping[str, np.ndarray]:
        """Return labels ``[T, CLASSES]``: the class, and the next one in odd frames."""
        labels = np.zeros((self.shape.frames, CLASSES), dtype=np.float32)
        labels[:, latent(key)] = 1
        labels[1::2, (latent(key) + 1) % CLASSES] = 1
        return {"labels": labels}

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module:
        """Return a head per frame."""
        return ClipHead(spec, CLASSES, per_frame=True)

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return mean binary cross-entropies ``[b]``."""
        each = functional.binary_cross_entropy_with_logits(outputs["logits"], targets["labels"], reduction="none")
        return each.mean((1, 2))

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return labels as 0 and 1."""
        return {"labels": (outputs["logits"] > 0).float()}


class ToyMasks(ToyTask):
    """A dense mask per frame; only the first frame is supervised."""

    fields: Mapping[str, Kind] = {"mask": "mask"}
    side = 8

    def target(self, key: str) -> Mapping[str, np.ndarray]:
        """Return masks ``[T, side, side]``: a half or a quarter of the frame."""
        mask = np.zeros((self.shape.frames, self.side, self.side), dtype=np.float32)
        mask[:, : self.side // 2, : self.side // (1 + latent(key) % 2)] = 1
        return {"mask": mask}

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module:
        """Return a head over the stage maps."""
        return MaskHead(spec, self.side)

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the first frame's mean binary cross-entropies ``[b]``."""
        first = outputs["mask"][:, 0], targets["mask"][:, 0]
        return functional.binary_cross_entropy_with_logits(*first, reduction="none").mean((1, 2))

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return binary masks."""
        return {"mask": (outputs["mask"] > 0).float()}


class ToyValues(ToyTask):
    """A real value per clip, learnt with a correlation over the whole batch."""

    fields: Mapping[str, Kind] = {"score": "value"}
    coupled = True
    ideal = 1.0

    def target(self, key: str) -> Mapping[str, np.ndarray]:
        """Return the value: the class with a small deviation."""
        deviation = unit(key)
        return {"value": np.array(latent(key) + 0.5 * deviation, dtype=np.float32)}

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module:
        """Return a regressor."""
        return ScoreHead(spec)

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return half the squared errors ``[b]``: a Gaussian of variance one."""
        return (outputs["score"] - targets["value"]).square() / 2

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the squared error and one minus the linear correlation of the batch."""

        def standard(value: Tensor) -> Tensor:
            return (value - value.mean()) / value.std(unbiased=False).clamp_min(1e-3)

        error = (outputs["score"] - targets["value"]).square().mean()
        return {"error": 0.1 * error, "plcc": 1 - (standard(outputs["score"]) * standard(targets["value"])).mean()}

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return the value."""
        return {"value": outputs["score"]}

    def score(self, predictions: _Predictions, targets: _Predictions) -> dict[str, float]:
        """Return the rank correlation; 0 where predictions are constant."""

        def ranks(values: list[float]) -> np.ndarray:
            return np.array([np.mean([(v > w) + 0.5 * (v == w) for w in values]) for v in values])

        keys = sorted(targets)
        one, two = (ranks([float(part[key]["value"]) for key in keys]) for part in (predictions, targets))
        spread = one.std() * two.std()
        return {"score": float(((one - one.mean()) * (two - two.mean())).mean() / spread) if spread > 0 else 0.0}


class ToyAnswers(ToyTask):
    """A generated answer of one or two tokens to a question; the loss is a mean over supervised tokens."""

    fields: Mapping[str, Kind] = {"logits": "tokens"}
    question = True
    needs = ("question",)

    def target(self, key: str) -> Mapping[str, np.ndarray]:
        """Return token ids ``[2]``; every other class has a short answer, whose second position is not supervised."""
        kind = latent(key)
        return {"ids": np.array([3 + kind, 2 if kind % 2 else IGNORED], dtype=np.int64)}

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module:
        """Return a head over pooled features, for models that do not generate."""
        return TokenHead(spec)

    def units(self, targets: Mapping[str, Tensor]) -> int:
        """Return the number of supervised tokens."""
        return int((targets["ids"] != IGNORED).sum())

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the summed cross-entropy of the supervised tokens ``[b]``."""
        logits = outputs["logits"].transpose(1, 2)
        return functional.cross_entropy(logits, targets["ids"], ignore_index=IGNORED, reduction="none").sum(1)

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean over supervised tokens."""
        return {"nll": self.nll(outputs, targets).sum() / self.units(targets)}

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return token ids, generated or the most likely ones."""
        return {"ids": outputs["ids"] if "ids" in outputs else outputs["logits"].argmax(-1)}

    def score(self, predictions: _Predictions, targets: _Predictions) -> dict[str, float]:
        """Return the percentage of answers whose supervised tokens are all right."""
        right = [
            np.all((predictions[key]["ids"] == target["ids"]) | (target["ids"] == IGNORED))
            for key, target in sorted(targets.items())
        ]
        return {"score": 100 * float(np.mean(right))}


TOY_TASKS: Mapping[str, type[ToyTask]] = {
    "classes": ToyClasses,
    "labels": ToyLabels,
    "mask": ToyMasks,
    "value": ToyValues,
    "tokens": ToyAnswers,
}
"""Output kind → the toy task that has it."""


def toy_task(kind: Kind, experiences: int = 1, **options) -> ToyTask:
    """Return the toy task of an output kind, named after it; ``options`` as in :class:`ToyTask`."""
    return TOY_TASKS[kind](kind, experiences, **options)
