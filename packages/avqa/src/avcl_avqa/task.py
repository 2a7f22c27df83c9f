"""The AVQA task: one question about a music video, one answer of a closed list."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from avcl_avqa import AnswerOptions
from avcl_avqa.dataset import NEGATIVE, QuestionData, Questions
from avcl_avqa.grounding import match_nll
from avcl_avqa.head import AnswerHead
from avcl_avqa.metrics import TYPES, accuracy_by_type
from avcl_avqa.patches import PatchHead
from avcl_core.batch import Outputs
from avcl_core.data.prepared import Prepared
from avcl_core.errors import ConfigError
from avcl_core.evaluation.examples import Answer
from avcl_core.features import FeatureSpec
from avcl_core.stream import Experience
from avcl_core.task import Dataset, Kind, Prediction, Task

MATCH_WEIGHT = 0.5
"""Weight of the match loss (tasks.md 4.5)."""
TABLE = {
    "audio_counting": "Audio Counting",
    "audio_comparative": "Audio Cmp",
    "audio": "Audio",
    "visual_counting": "Visual Counting",
    "visual_location": "Visual Loc",
    "visual": "Visual",
    "av_existential": "AV Ext",
    "av_counting": "AV counting",
    "av_location": "AV Loc",
    "av_comparative": "AV Cmp",
    "av_temporal": "AV Temporal",
    "av": "AV",
    "accuracy": "Overall",
}
"""Metric → label of the result block, in its order (tasks.md 4.10)."""


class QuestionAnswering(Task):
    """Audio-visual question answering with a closed list of answers.

    Outputs: ``answer`` ``[b, answers]``, logits; with negative frames also ``match`` ``[b, 2, T, 2]``. Targets: ``answer``,
    ``type`` and ``template``, indices ``[b]``. Predictions: ``answer`` ``[b]``.
    """

    name = "avqa"
    primary: ClassVar[str] = "accuracy"
    plain: ClassVar[Mapping[str, str]] = {NEGATIVE: "visual"}
    fields: Mapping[str, Kind] = {"answer": "classes"}
    needs = ("question",)

    def __init__(self, data: QuestionData) -> None:
        self.data = data
        self.labels = data.vocabulary.answers
        self.splits_note = data.note

    def experiences(self) -> tuple[Experience, ...]:
        """Return the whole task as one experience; both protocols select the best epoch on validation."""
        train, val, test = (tuple(self.data.rows(split)) for split in ("train", "val", "test"))
        return (Experience(0, self.name, self.name, train, val, test, self.labels),)

    def dataset(self, split: str) -> Questions:
        """Return the questions of ``split``."""
        return self.data.split(split)

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module:
        """Return an :class:`AnswerHead` over the data set's answers; ConfigError without a visual and an audio tower."""
        return AnswerHead(needs_both(self.name, spec), len(self.data.vocabulary.words), len(self.labels))

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the cross-entropy of the answer per question ``[b]``."""
        return functional.cross_entropy(outputs["answer"], targets["answer"].long(), reduction="none")

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the answer's cross-entropy and, where negatives were seen, half that of the match (tasks.md 4.5)."""
        parts = {"answer": self.nll(outputs, targets).mean()}
        if "match" in outputs:
            parts["match"] = MATCH_WEIGHT * match_nll(outputs["match"]).mean()
        return parts

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return the index of the most probable ``answer``."""
        return {"answer": outputs["answer"].argmax(-1)}

    def score(self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction]) -> dict[str, float]:
        """Return ``accuracy`` over all questions, and accuracies per type and group that have questions, in percent.

        Raises:
            ValueError: predictions and targets have different keys.
        """
        if predictions.keys() != targets.keys():
            odd = sorted(predictions.keys() ^ targets.keys())
            raise ValueError(f"avqa: predictions and targets differ in {len(odd)} samples, for example {odd[0]!r}")
        keys = sorted(targets)
        predicted, true = (np.array([int(part[key]["answer"]) for key in keys]) for part in (predictions, targets))
        found = accuracy_by_type(predicted, true, [TYPES[int(targets[key]["type"])] for key in keys])
        overall = found.pop("overall")
        return {"accuracy": overall} | {name: value for name, value in found.items() if not math.isnan(value)}

    def controls(self, train: Mapping[str, Prediction], test: Mapping[str, Prediction]) -> dict[str, dict[str, float]]:
        """Score always the most frequent training answer, and the most frequent training answer to the same template."""
        overall = Counter(int(target["answer"]) for target in train.values())
        counts: dict[int, Counter[int]] = {}
        for target in train.values():
            counts.setdefault(int(target["template"]), Counter())[int(target["answer"])] += 1
        frequent = overall.most_common(1)[0][0]
        majority = {template: answers.most_common(1)[0][0] for template, answers in counts.items()}
        predictors = {
            f"always {self.labels[frequent]!r}": dict.fromkeys(test, frequent),
            "most frequent answer to the question's template": {
                key: majority.get(int(target["template"]), frequent) for key, target in test.items()
            },
        }
        return {
            name: self.score({key: {"answer": np.array(answer)} for key, answer in answers.items()}, test)
            for name, answers in predictors.items()
        }

    def table(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """Return the accuracies in the published order; types without questions have no line (tasks.md 4.10)."""
        return [(label, f"{metrics[name]:.2f}") for name, label in TABLE.items() if name in metrics]

    def groups(self, key: str, target: Prediction) -> tuple[str, ...]:
        """Return the type of the question, and the modality that it asks about."""
        modality, kind = TYPES[int(target["type"])]
        return (f"{modality} {kind}", modality)

    def examples(
        self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction], dataset: Dataset
    ) -> Sequence[Answer]:
        """Return every question with its true and its predicted answer."""
        rows = {**self.data.rows("train"), **self.data.rows("val"), **self.data.rows("test")}
        return [
            Answer(
                key,
                f"video {rows[key].video_id}",
                rows[key].question,
                self.labels[int(targets[key]["answer"])],
                self.labels[int(prediction["answer"])],
                " ".join(rows[key].type),
            )
            for key, prediction in predictions.items()
        ]


class PatchAnswering(QuestionAnswering):
    """The same task with a :class:`PatchHead`: nothing is matched, so negative frames are neither read nor walked.

    Outputs: ``answer`` ``[b, answers]``, logits.
    """

    plain: ClassVar[Mapping[str, str]] = {}

    def dataset(self, split: str) -> Questions:
        """Return the questions of ``split``, without negatives."""
        return self.data.split(split, negatives=False)

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module:
        """Return a :class:`PatchHead` over the data set's answers; ConfigError where the towers do not fit it."""
        return PatchHead(needs_both(self.name, spec), len(self.data.vocabulary.words), len(self.labels))


def needs_both(task: str, spec: FeatureSpec) -> FeatureSpec:
    """Return ``spec``; ConfigError where it lacks the visual or the audio tower that the heads compare."""
    for tower in ("visual", "audio"):
        if tower not in spec.final:
            raise ConfigError(f"task {task} needs a tower towers.{tower}; configured: {sorted(spec.final)}")
    return spec


def build(options: AnswerOptions, prepared: Prepared, protocol: str) -> QuestionAnswering:
    """Return the task over prepared data, as the package's plug-in builds it; both protocols judge alike."""
    kind = PatchAnswering if options.head == "patches" else QuestionAnswering
    return kind(QuestionData(prepared, options.annotations))
