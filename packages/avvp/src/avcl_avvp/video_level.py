"""AVVP as PHP's paper judges it: one decision per video, right where it is the lowest index among the labels (php.md 6.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor
from torch.nn import functional

from avcl_avvp.items import VideoItems, video_of
from avcl_avvp.similarity import VideoReadout
from avcl_avvp.text import WEIGHT
from avcl_core.batch import Outputs
from avcl_core.evaluation.examples import Answer
from avcl_core.features import FeatureSpec
from avcl_core.stream import Experience
from avcl_core.task import Dataset, Kind, Prediction, Task


class VideoClassification(Task):
    """The classification of LLP's videos that PHP's paper reports in place of parsing.

    Outputs: ``logits`` ``[b, C]``. Targets: ``labels`` float32 ``[b, C]``, the multi-hot vector of the video. Predictions:
    ``event``, the class of the largest logit.

    The score counts an item as right where argmax of the logits equals argmax of the multi-hot vector, which is the lowest of
    the true indices; a video counts once per label. Both favour class 0, Speech: saying it always scores 63.01 on LLP's test
    items. The test set has a name of its own, so that no table puts this beside parsing.

    Args:
        data: LLP's items.
    """

    name = "avvp"
    primary: ClassVar[str] = "video_accuracy"
    fields: Mapping[str, Kind] = {"logits": "classes"}
    column: ClassVar[str] = "avvp-video"
    """Name of the experience, and with it of the test set."""

    def __init__(self, data: VideoItems) -> None:
        self.data = data
        self.labels = data.classes
        self.texts = data.classes
        self.splits_note = data.note

    def experiences(self) -> tuple[Experience, ...]:
        """Return the whole task as one experience; the paper selects no epoch, so nothing here selects on the test split."""
        train, val, test = (self.data.keys(split) for split in ("train", "val", "test"))
        return (Experience(0, self.column, self.name, train, val, test, self.labels),)

    def dataset(self, split: str) -> Dataset:
        """Return the items of ``split``."""
        return self.data.split(split)

    def head(self, spec: FeatureSpec, experience: Experience) -> VideoReadout:
        """Return the head, which has no parameters; ConfigError for a model without a text side."""
        return VideoReadout(spec)

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return −Σ_c y_c log softmax(logits)_c per item ``[b]``, with a target y whose sum is the number of labels."""
        logits = outputs["logits"]
        return functional.cross_entropy(logits, targets["labels"].to(logits.dtype), reduction="none")

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return 5 times the mean of :meth:`nll` over items; the factor is that of parsing."""
        return {"video": WEIGHT * self.nll(outputs, targets).mean()}

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return ``event``, argmax of the logits, the lowest index where several are largest."""
        return {"event": outputs["logits"].argmax(-1)}

    def score(self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction]) -> dict[str, float]:
        """Return three accuracies in percent.

        ``video_accuracy``: the paper's, over items. ``video_accuracy_once``: the same with every video counted once.
        ``video_hit``: over videos, the share in which the predicted class is any of the labels.

        Raises:
            ValueError: predictions and targets have different keys, or a video has no label.
        """
        if predictions.keys() != targets.keys():
            odd = sorted(predictions.keys() ^ targets.keys())
            raise ValueError(f"avvp: predictions and targets differ in {len(odd)} items, for example {odd[0]!r}")
        keys = sorted(targets)
        labels = np.stack([targets[key]["labels"] for key in keys])
        if not (labels > 0).any(1).all():
            raise ValueError(f"avvp: {keys[int((labels > 0).any(1).argmin())]!r} has no label")
        events = np.array([int(predictions[key]["event"]) for key in keys])
        right, hit = events == labels.argmax(1), labels[np.arange(len(keys)), events] > 0
        # Every video weighs 1: its items, which may be fewer than its labels where a part of a split is scored, share it.
        _, video, items = np.unique([video_of(key) for key in keys], return_inverse=True, return_counts=True)
        once = 1 / items[video]
        return {
            "video_accuracy": 100 * float(right.mean()),
            "video_accuracy_once": 100 * float(np.average(right, weights=once)),
            "video_hit": 100 * float(np.average(hit, weights=once)),
        }

    def controls(self, train: Mapping[str, Prediction], test: Mapping[str, Prediction]) -> dict[str, dict[str, float]]:
        """Score class 0, which the metric favours, and the target that is most frequent among training items."""
        wanted = [int(np.asarray(target["labels"]).argmax()) for target in train.values()]
        frequent = int(np.bincount(wanted, minlength=len(self.labels)).argmax())
        predictors = {
            f"always {self.labels[0]} (class 0)": 0,
            f"always {self.labels[frequent]} (most frequent target)": frequent,
        }
        return {
            name: self.score({key: {"event": np.array(event)} for key in test}, test)
            for name, event in predictors.items()
        }

    def table(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """Return the paper's accuracy under its true name, then what it is on videos."""
        names = {
            "video_accuracy": "Video accuracy, items (lowest label)",
            "video_accuracy_once": "Video accuracy, videos (lowest label)",
            "video_hit": "Video accuracy, videos (any label)",
        }
        return [(label, f"{metrics[name]:.2f}") for name, label in names.items()]

    def examples(
        self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction], dataset: Dataset
    ) -> Sequence[Answer]:
        """Return every item's labels with the predicted class."""
        return [
            Answer(
                key,
                f"video {video_of(key)}",
                "Which event is in this video?",
                ", ".join(self.groups(key, targets[key])),
                self.labels[int(prediction["event"])],
                "video level",
            )
            for key, prediction in predictions.items()
        ]

    def groups(self, key: str, target: Prediction) -> tuple[str, ...]:
        """Return the labels of the video."""
        return tuple(label for label, value in zip(self.labels, target["labels"], strict=True) if value)
