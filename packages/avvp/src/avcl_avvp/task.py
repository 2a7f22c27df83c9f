"""The AVVP task: parse a video into audible, visible and audio-visual events, learning from video-level labels only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from avcl_avvp.dataset import ParsingData
from avcl_avvp.metrics import parsing_f_scores
from avcl_avvp.mgn import GroupingHead
from avcl_avvp.mmil import PoolingHead
from avcl_avvp.motion import MOTION
from avcl_avvp.video_metrics import video_scores
from avcl_core.batch import Outputs
from avcl_core.evaluation.examples import Example, Timeline, TimelineRow
from avcl_core.features import FeatureSpec
from avcl_core.precision import precise
from avcl_core.stream import Experience
from avcl_core.task import Dataset, Kind, Prediction, Task

MODALITIES = ("audio", "visual")
"""The two modalities in which events are parsed."""
HEADS = {"mgn": GroupingHead, "mmil": PoolingHead}
"""Heads with layers of their own."""
THRESHOLD = 0.5
LARGEST = math.log((1 - 1e-7) / 1e-7)
"""Logits of videos are clamped to ± this in the loss: probabilities to [1e-7, 1 − 1e-7]."""
VISUAL_SMOOTHING = 0.1
"""A video label says less about what is seen: its visual target is (1 − s)·y + s/2 (Tian et al., ECCV 2020)."""
_BLOCK = {
    "audio": "Audio Event Detection {}-level F1",
    "visual": "Visual Event Detection {}-level F1",
    "av": "Audio-Visual Event Detection {}-level F1",
    "type_av": "{}-level Type@Avg. F1",
    "event_av": "{}-level Event@Avg. F1",
}
_VIDEO = {
    "video_map": "Video mAP",
    "video_f1_micro": "Video F1, micro",
    "video_f1_macro": "Video F1, macro",
    "video_hit": "Video accuracy (any label)",
    "video_accuracy": "Video accuracy, items (lowest label)",
}


class VideoParsing(Task):
    """Weakly supervised audio-visual video parsing.

    Outputs: ``clip``, ``clip_audio``, ``clip_visual`` ``[b, C]``, logits per video; ``audio``, ``visual`` ``[b, T, C]``, values
    per second that stand for probabilities but may exceed 1 (:class:`GroupingHead`), hence no logits; from heads with class
    tokens also their class logits ``class_audio``, ``class_visual`` ``[b, C, C]``, which are the same for every sample and so
    are none of the ``fields`` that distillation and dark replay keep per sample. Targets: ``labels`` ``[b, C]`` (weak, all that
    training has) and, for validation and test, the dense ``audio`` and ``visual`` ``[b, C, T]`` and ``listed`` ``[b]``, the number
    of labels in the file. Predictions: ``audio`` and ``visual`` ``[b, C, T]``, 0 or 1, and ``clip`` ``[b, C]``, the logit of p.

    Args:
        data: LLP under a protocol.
        head: name of the head: one of :data:`HEADS`, unless a subclass has a head of its own.
        width: width of the head, 128 as published.
    """

    name = "avvp"
    primary: ClassVar[str] = "segment_type_av"
    oracles: ClassVar[frozenset[str]] = frozenset({"true weak labels on every second"})
    fields: Mapping[str, Kind] = {
        "clip": "labels",
        "clip_audio": "labels",
        "clip_visual": "labels",
        "audio": "value",
        "visual": "value",
    }

    def __init__(self, data: ParsingData, head: str = "mgn", width: int = 128) -> None:
        self.data, self.head_name, self.width = data, head, width
        self.labels = data.classes
        self.needs = (MOTION,) if data.motion else ()
        self.splits_note = data.note

    def experiences(self) -> tuple[Experience, ...]:
        """Return the whole task as one experience, selected on validation in both protocols."""
        train, val, test = (self.data.keys(split) for split in ("train", "val", "test"))
        return (Experience(0, self.name, self.name, train, val, test, self.labels),)

    def dataset(self, split: str) -> Dataset:
        """Return the videos of ``split``; only validation and test carry dense targets."""
        return self.data.split(split)

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module:
        """Return the chosen head over all classes."""
        return HEADS[self.head_name](spec, len(self.labels), self.width, self.data.motion)

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of :meth:`parts` per video ``[b]``."""
        return torch.stack([*self.parts(outputs, targets).values()]).sum(0)

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the means over videos of :meth:`parts`."""
        return {name: part.mean() for name, part in self.parts(outputs, targets).items()}

    def units(self, targets: Mapping[str, Tensor]) -> int:
        """Return the number of videos."""
        return len(targets["labels"])

    def parts(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parts of the loss per video, ``[b]`` each (tasks.md 2.5).

        BCE(p, y), BCE(p_audio, y) and BCE(p_visual, 0.9y + 0.05), means over classes, with probabilities clamped to
        [1e-7, 1 − 1e-7]; and, from heads with class tokens, the cross-entropy of the audio and the visual tokens' logits with
        their own class, means over tokens, equal for all videos.
        """
        weak = targets["labels"].to(outputs["clip"].dtype)
        smooth = (1 - VISUAL_SMOOTHING) * weak + VISUAL_SMOOTHING / 2
        pairs = {"video": ("clip", weak), "audio": ("clip_audio", weak), "visual": ("clip_visual", smooth)}
        parts = {}
        for part, (name, target) in pairs.items():
            logits = outputs[name].clamp(-LARGEST, LARGEST)
            parts[part] = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        for name in MODALITIES:
            if f"class_{name}" in outputs:
                logits = outputs[f"class_{name}"]
                own = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
                parts[f"{name}_tokens"] = functional.cross_entropy(logits.transpose(1, 2), own, reduction="none").mean(
                    1
                )
        return parts

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return per modality [P_m ≥ 0.5] ∧ [p ≥ 0.5] as uint8 ``[b, C, T]`` (tasks.md 2.6), and ``clip`` ``[b, C]``.

        ``clip`` is the logit of p: probabilities of several classes may round to 1, and which is the largest would be lost.
        """
        clip = precise(outputs["clip"])
        in_video = clip[:, :, None] >= 0
        marks = {name: ((outputs[name].transpose(1, 2) >= THRESHOLD) & in_video).byte() for name in MODALITIES}
        return {**marks, "clip": clip}

    def score(self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction]) -> dict[str, float]:
        """Return the ten F-scores of :func:`parsing_f_scores` and the scores of whole videos of :func:`video_scores`, in percent.

        Raises:
            ValueError: predictions and targets have different keys, or the targets have no dense labels.
        """
        if predictions.keys() != targets.keys():
            odd = sorted(predictions.keys() ^ targets.keys())
            raise ValueError(f"avvp: predictions and targets differ in {len(odd)} samples, for example {odd[0]!r}")
        keys = sorted(targets)
        weak = [key for key in keys if not set(MODALITIES) <= targets[key].keys()]
        if weak:
            raise ValueError(f"avvp: {weak[0]!r} has no dense labels; score validation or test, not training videos")
        stacked = [
            np.stack([side[key][name] for key in keys]) for side in (predictions, targets) for name in MODALITIES
        ]
        clip, labels, listed = (
            np.stack([side[key][name] for key in keys])
            for side, name in ((predictions, "clip"), (targets, "labels"), (targets, "listed"))
        )
        return {**parsing_f_scores(*stacked), **video_scores(clip, labels, listed)}

    def controls(self, train: Mapping[str, Prediction], test: Mapping[str, Prediction]) -> dict[str, dict[str, float]]:
        """Score nothing, the most frequent training class in audio alone, and the weak labels on every second."""
        frequent = int(np.sum([target["labels"] for target in train.values()], axis=0).argmax())

        def blank(like: Prediction) -> Prediction:
            marks = {name: np.zeros_like(like[name]) for name in MODALITIES}
            return {**marks, "clip": np.full(len(self.labels), -1.0)}

        def always(like: Prediction) -> Prediction:
            prediction = blank(like)
            prediction["audio"][frequent] = prediction["clip"][frequent] = 1
            return prediction

        def everywhere(like: Prediction) -> Prediction:
            spread = np.repeat(np.asarray(like["labels"])[:, None], like["audio"].shape[1], axis=1)
            return {**dict.fromkeys(MODALITIES, spread), "clip": np.where(like["labels"], 1.0, -1.0)}

        predictors = {
            "nothing": blank,
            f"always {self.labels[frequent]} in audio, nothing in vision": always,
            "true weak labels on every second": everywhere,
        }
        return {
            name: self.score({key: predict(target) for key, target in test.items()}, test)
            for name, predict in predictors.items()
        }

    def table(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """Return the ten rows that the community prints, one decimal (tasks.md 2.10), then the scores of whole videos."""
        parsing = [
            (label.format(level.capitalize()), f"{metrics[f'{level}_{name}']:.1f}")
            for level in ("segment", "event")
            for name, label in _BLOCK.items()
        ]
        return parsing + [(label, f"{metrics[name]:.1f}") for name, label in _VIDEO.items()]

    def examples(
        self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction], dataset: Dataset
    ) -> Sequence[Example]:
        """Return a time line per video: a row for each event that is true or predicted, as heard and as seen."""
        return [self._timeline(key, predictions[key], target) for key, target in targets.items()]

    def groups(self, key: str, target: Prediction) -> tuple[str, ...]:
        """Return the classes that the weak label names."""
        return tuple(label for label, value in zip(self.labels, target["labels"], strict=True) if value)

    def _timeline(self, key: str, predicted: Prediction, true: Prediction) -> Timeline:
        rows = []
        for index, label in enumerate(self.labels):
            for name, how in zip(MODALITIES, ("heard", "seen"), strict=True):
                truth, found = (tuple(int(value) for value in side[name][index]) for side in (true, predicted))
                if any(truth) or any(found):
                    rows.append(TimelineRow(f"{label} ({how})", truth, found))
        present = ", ".join(label for label, value in zip(self.labels, true["labels"], strict=True) if value)
        return Timeline(key, f"{key}: {present}", tuple(rows))
