"""Open-ended audio-visual question answering: one question about a video, an answer in words of one's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from avcl_avqa import OpenOptions
from avcl_avqa.answers import SCORERS
from avcl_avqa.open_data import OpenData
from avcl_core.batch import Outputs
from avcl_core.data.prepared import Prepared
from avcl_core.data.problems import broken
from avcl_core.errors import ConfigError, nearest
from avcl_core.evaluation.examples import Answer
from avcl_core.features import FeatureSpec
from avcl_core.stream import Experience
from avcl_core.task import Dataset, Kind, Prediction, Task
from avcl_core.texts import IGNORED, text_of

TABLE = {"em": "Exact match", "em_norm": "Normalised match", "token_f1": "Token F1"}


class OpenAnswering(Task):
    """Generated answers, an experience for each question type (avqacl_moe.md 2.2).

    Outputs: ``answer`` ``[b, n, vocabulary]``, token logits of the supervised words; generated: ``text`` uint8 ``[b, bytes]``. Targets:
    ``language``, the answer's text, which the loader turns into ids ``[b, n]`` where there is a language tower. Predictions: ``text``.
    """

    name = "avqa_open"
    primary: ClassVar[str] = "em"
    modalities: ClassVar[tuple[str, ...]] = ("visual", "audio", "language")
    fields: Mapping[str, Kind] = {"answer": "tokens"}
    needs = ("question",)

    def __init__(self, data: OpenData, options: OpenOptions | None = None) -> None:
        self.data, self.options = data, options or OpenOptions()
        self.types = self.options.types or data.types
        odd = [name for name in self.types if name not in data.types]
        if odd or len(set(self.types)) != len(self.types):
            raise ConfigError(
                f"tasks.{self.name}.types: {list(self.types)}; expected different ones of {', '.join(data.types)}"
                + (nearest(odd[0], list(data.types)) if odd else "")
            )
        self.splits_note = data.note

    def experiences(self) -> tuple[Experience, ...]:
        """Return one experience for each type of question, or for each of its increments, in the order asked for.

        Raises:
            DataError: an increment has no training or no test questions.
        """
        parts = {split: self._parts(split) for split in ("train", "val", "test")}
        for name in parts["train"]:
            empty = [split for split in ("train", "test") if not parts[split][name]]
            if empty:
                expected = "questions in train and test"
                raise broken(self.data.prepared.folder, name, f"none in {empty[0]}", expected, "leave out this type")
        return tuple(
            Experience(index, name, self.name, keys, parts["val"][name], parts["test"][name])
            for index, (name, keys) in enumerate(parts["train"].items())
        )

    def _parts(self, split: str) -> dict[str, tuple[str, ...]]:
        """Experience → keys of a split."""
        if self.options.experiences == "types":
            return {name: self.data.keys(split, name) for name in self.types}
        found = self.data.increments(split)
        return {name: keys for kind in self.types for name, keys in found.items() if name.rpartition("_")[0] == kind}

    def dataset(self, split: str) -> Dataset:
        """Return the questions of ``split``."""
        return self.data.split(split)

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module | None:
        """Return nothing: a language model answers. ConfigError where there is none."""
        if "language" not in spec.final:
            raise ConfigError(
                f"task {self.name} needs a language model to answer: configure towers.language and model.name=anchor_experts"
            )
        return None

    def units(self, targets: Mapping[str, Tensor]) -> int:
        """Return the number of supervised words."""
        return int((targets["language"] != IGNORED).sum())

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the summed cross-entropy of each answer's words ``[b]``."""
        logits = outputs["answer"].transpose(1, 2)
        return functional.cross_entropy(logits, targets["language"], ignore_index=IGNORED, reduction="none").sum(1)

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean over supervised words (avqacl_moe.md 4.1)."""
        return {"answer": self.nll(outputs, targets).sum() / self.units(targets)}

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return the generated text."""
        return {"text": outputs["text"]}

    def score(self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction]) -> dict[str, float]:
        """Return ``em``, ``em_norm`` and ``token_f1`` in percent, means over questions (avqacl_moe.md 6.2).

        Raises:
            ValueError: predictions and targets have different keys.
        """
        if predictions.keys() != targets.keys():
            odd = sorted(predictions.keys() ^ targets.keys())
            raise ValueError(
                f"{self.name}: predictions and targets differ in {len(odd)} samples, for example {odd[0]!r}"
            )
        pairs = [(text_of(predictions[key]["text"]), text_of(target["language"])) for key, target in targets.items()]
        return {name: 100 * float(np.mean([rule(*pair) for pair in pairs])) for name, rule in SCORERS.items()}

    def controls(self, train: Mapping[str, Prediction], test: Mapping[str, Prediction]) -> dict[str, dict[str, float]]:
        """Score the most frequent training answer, and the most frequent one to the same question, word by word."""
        said = {key: text_of(target["language"]).strip().lower() for key, target in train.items()}
        frequent = Counter(said.values()).most_common(1)[0][0]
        counts: dict[str, Counter[str]] = {}
        for key, answer in said.items():
            counts.setdefault(self.data.question(key), Counter())[answer] += 1
        usual = {question: answers.most_common(1)[0][0] for question, answers in counts.items()}
        predictors = {
            f"always {frequent!r}": dict.fromkeys(test, frequent),
            "most frequent answer to the same question": {
                key: usual.get(self.data.question(key), frequent) for key in test
            },
        }
        return {
            name: self.score(
                {key: {"text": np.frombuffer(text.encode(), np.uint8)} for key, text in texts.items()}, test
            )
            for name, texts in predictors.items()
        }

    def table(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """Return the scores, the primary one first."""
        return [(label, f"{metrics[name]:.2f}") for name, label in TABLE.items() if name in metrics]

    def groups(self, key: str, target: Prediction) -> tuple[str, ...]:
        """Return the type of the question."""
        return (self.data.type_of(key),)

    def pack(self, prediction: Prediction) -> dict[str, str]:
        """Return the text as text."""
        return {name: text_of(value) for name, value in prediction.items()}

    def examples(
        self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction], dataset: Dataset
    ) -> Sequence[Answer]:
        """Return every question with its true and its generated answer."""
        return [
            Answer(
                key,
                f"video {self.data.video(key)}",
                self.data.question(key),
                text_of(targets[key]["language"]),
                text_of(prediction["text"]),
                self.data.type_of(key),
            )
            for key, prediction in predictions.items()
        ]


def build(options: OpenOptions, prepared: Prepared, protocol: str) -> OpenAnswering:
    """Return the task over prepared data.

    Raises:
        ConfigError: the published protocol, whose accuracy an external judge decides (avqacl_moe.md 2.3).
    """
    if protocol == "paper":
        raise ConfigError(
            f"stream.protocol=paper: the published accuracy of {OpenAnswering.name} is judged by a language model outside; run with "
            "protocol clean and judge the predictions afterwards"
        )
    return OpenAnswering(OpenData(prepared), options)
