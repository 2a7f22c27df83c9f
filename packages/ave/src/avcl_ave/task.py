"""The AVE task: for each second, which event is both audible and visible, or background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from avcl_ave.cmbs import EventHead
from avcl_ave.dataset import EventData
from avcl_ave.metrics import class_accuracies, relevance_accuracy, segment_accuracy
from avcl_core.batch import Outputs
from avcl_core.evaluation.examples import Example, Timeline, TimelineRow
from avcl_core.features import FeatureSpec
from avcl_core.stream import Experience
from avcl_core.task import Dataset, Kind, Prediction, Task

BACKGROUND = "background"
"""Name of the class after the last event class, in tables."""


class EventLocalisation(Task):
    """Supervised audio-visual event localisation.

    Outputs: ``relevance`` ``[b, T]``, ``event`` ``[b, C]`` and ``scores`` ``[b, C]``, logits. Targets: ``segments``
    ``[b, T]``, class per second with background = C, and ``event`` ``[b]``, the clip's class. Predictions: ``segments`` and
    ``event``, shaped as the targets.

    Args:
        data: AVE under a protocol.
        width: width of the head, 256 as published.
    """

    name = "ave"
    primary: ClassVar[str] = "accuracy"
    oracles: ClassVar[frozenset[str]] = frozenset({"true class on every second"})
    fields: Mapping[str, Kind] = {"relevance": "labels", "event": "classes", "scores": "classes"}
    column: ClassVar[str] = "ave"
    """Name of the experience, and with it of the test set."""
    published_selection: ClassVar[Literal["val", "test"]] = "test"
    """Split on which `paper` selects the best epoch."""

    def __init__(self, data: EventData, width: int = 256) -> None:
        self.data, self.width = data, width
        self.labels = data.classes
        self.splits_note = data.note

    @property
    def selection(self) -> Literal["val", "test"]:
        """Split on which the best epoch is selected."""
        return self.published_selection if self.data.protocol == "paper" else "val"

    @property
    def background(self) -> int:
        """Class index of background: the number of event classes."""
        return len(self.labels)

    def experiences(self) -> tuple[Experience, ...]:
        """Return the whole task as one experience."""
        train, val, test = (self.data.keys(split) for split in ("train", "val", "test"))
        return (Experience(0, self.column, self.name, train, val, test, self.labels, self.selection),)

    def dataset(self, split: str) -> Dataset:
        """Return the clips of ``split``."""
        return self.data.split(split)

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module:
        """Return the published head over all event classes."""
        return EventHead(spec, len(self.labels), self.width)

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of :meth:`parts` per clip ``[b]``."""
        return torch.stack([*self.parts(outputs, targets).values()]).sum(0)

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the means over clips of :meth:`parts`."""
        return {name: part.mean() for name, part in self.parts(outputs, targets).items()}

    def parts(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return per clip BCE(e, foreground) over its seconds, CE(c, y) and CE(av, y) ``[b]`` each (tasks.md 1.5)."""
        relevance, event = outputs["relevance"], targets["event"].long()
        foreground = (targets["segments"] != self.background).to(relevance.dtype)
        return {
            "relevance": functional.binary_cross_entropy_with_logits(relevance, foreground, reduction="none").mean(1),
            "event": functional.cross_entropy(outputs["event"], event, reduction="none"),
            "scores": functional.cross_entropy(outputs["scores"], event, reduction="none"),
        }

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return ``segments`` (the clip's class where σ(relevance) > 0.5, else background) and ``event``, integers."""
        event = outputs["event"].argmax(-1)
        background = torch.full_like(event, self.background)
        segments = torch.where(outputs["relevance"] > 0, event[:, None], background[:, None])
        return {"segments": segments, "event": event}

    def score(self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction]) -> dict[str, float]:
        """Return ``accuracy``, ``relevance_accuracy``, ``class_accuracy`` and ``accuracy/<class>``, all in percent.

        ``accuracy/<class>`` is the share of that class's true seconds that are predicted as it.

        Raises:
            ValueError: predictions and targets have different keys.
        """
        segments, event = _stack(predictions, targets)
        true_segments, true_event = _stack(targets, targets)
        by_class = class_accuracies(segments, true_segments, [*self.labels, BACKGROUND])
        return {
            "accuracy": 100 * segment_accuracy(segments, true_segments),
            "relevance_accuracy": 100 * relevance_accuracy(segments, true_segments, self.background),
            "class_accuracy": 100 * float((event == true_event).mean()),
            **{f"accuracy/{label}": 100 * value for label, value in by_class.items()},
        }

    def controls(self, train: Mapping[str, Prediction], test: Mapping[str, Prediction]) -> dict[str, dict[str, float]]:
        """Score always background, the most frequent training class on every second, and the true class on every second."""
        counts = np.bincount([int(target["event"]) for target in train.values()], minlength=self.background)
        frequent = int(counts.argmax())

        def everywhere(event: int, segment: int, like: Prediction) -> Prediction:
            return {"segments": np.full_like(like["segments"], segment), "event": np.asarray(event)}

        predictors = {
            "always background": {k: everywhere(frequent, self.background, t) for k, t in test.items()},
            "most frequent class on every second": {k: everywhere(frequent, frequent, t) for k, t in test.items()},
            "true class on every second": {k: everywhere(int(t["event"]), int(t["event"]), t) for k, t in test.items()},
        }
        return {name: self.score(predictions, test) for name, predictions in predictors.items()}

    def table(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """Return test accuracy, accuracy per class, then those of relevance and of the clip's class (tasks.md 1.9)."""
        names = {"accuracy": "test acc"}
        names |= {name: name for name in metrics if name.startswith("accuracy/")}
        names |= {"relevance_accuracy": "event-relevance acc", "class_accuracy": "clip-class acc"}
        return [(label, f"{metrics[name]:.2f}") for name, label in names.items() if name in metrics]

    def examples(
        self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction], dataset: Dataset
    ) -> Sequence[Example]:
        """Return a time line per clip: one row for each event class that is true or predicted in some second."""
        return [
            self._timeline(key, predictions[key]["segments"], target["segments"], int(target["event"]))
            for key, target in targets.items()
        ]

    def groups(self, key: str, target: Prediction) -> tuple[str, ...]:
        """Return the clip's event class."""
        return (self.labels[int(target["event"])],)

    def _timeline(self, key: str, predicted: np.ndarray, true: np.ndarray, event: int) -> Timeline:
        def seconds(segments: np.ndarray, index: int) -> tuple[int, ...]:
            return tuple(int(value == index) for value in segments)

        shown = [index for index in range(self.background) if index in true or index in predicted]
        rows = tuple(TimelineRow(self.labels[i], seconds(true, i), seconds(predicted, i)) for i in shown)
        return Timeline(key, f"{key.split('#')[0]}: {self.labels[event]}", rows)


def _stack(records: Mapping[str, Prediction], targets: Mapping[str, Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """Return segments ``[N, T]`` and events ``[N]`` in key order, after checking that no sample is missing."""
    if records.keys() != targets.keys():
        odd = sorted(records.keys() ^ targets.keys())
        raise ValueError(f"ave: predictions and targets differ in {len(odd)} samples, for example {odd[0]!r}")
    keys = sorted(targets)
    return np.stack([records[k]["segments"] for k in keys]), np.stack([records[k]["event"] for k in keys])
