"""AVQACL's own setting: the open-ended questions answered from a closed list that grows with every increment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from avcl_avqa import ClosedOptions
from avcl_avqa.answer_list import AnswerList
from avcl_avqa.closed_head import ClosedHead
from avcl_avqa.closed_words import LENGTHS, WordList, words_of
from avcl_avqa.increments import by_increment
from avcl_avqa.open_data import OpenData, OpenSamples
from avcl_avqa.open_task import OpenAnswering
from avcl_avqa.task import needs_both
from avcl_core.batch import Outputs
from avcl_core.data.frames import evenly
from avcl_core.data.prepared import Prepared
from avcl_core.errors import ConfigError
from avcl_core.features import FeatureSpec
from avcl_core.stream import Experience
from avcl_core.task import Kind
from avcl_core.texts import texts_array


class ClosedAnswering(OpenAnswering):
    """The same questions, experiences and scores as :class:`OpenAnswering`, with an index into a list as the answer.

    Answers and question words are listed in order of first appearance in training, experience by experience, so an old answer keeps
    its column whatever comes (avqacl_moe.md 2.1). A test answer that no training question has is ``<unk>`` and cannot be right.

    Outputs: those of :class:`ClosedHead`. Targets: ``answer``, index ``[b]`` in the whole list, and ``language``, the text.
    Predictions: ``text``, so that they are scored, stored and exported as generated answers are.
    """

    name = "avqa_closed"
    modalities: ClassVar[tuple[str, ...]] = ("visual", "audio")
    fields: Mapping[str, Kind] = {"answer": "classes"}
    needs = ("words",)

    def __init__(self, data: OpenData, options: ClosedOptions | None = None) -> None:
        options = options or ClosedOptions()
        super().__init__(data, options)
        self.width, self.length = options.width, LENGTHS[data.benchmark.name]
        answers, words = AnswerList(), WordList()
        found, self._words = list[Experience](), dict[str, int]()
        for one in super().experiences():
            records = [data.record(key) for key in one.train]
            answers, words = (
                answers.grown(record.answer for record in records),
                words.grown(r.question for r in records),
            )
            self._words[one.name] = len(words)
            found.append(replace(one, labels=answers.answers))
        self._experiences, self.answers, self.words = tuple(found), answers, words
        self.labels = answers.answers
        self.splits_note = "; ".join(filter(None, (data.note, self._told())))

    def _told(self) -> str:
        keys = {key for one in self._experiences for split in ("train", "test") for key in one.keys(split)}
        long = sum(len(words_of(self.data.question(key))) > self.length for key in keys)
        test = dict.fromkeys(key for one in self._experiences for key in one.test)
        strange = sum(self.data.record(key).answer not in self.labels for key in test)
        note = f"{len(self.labels)} answers with <unk>, {len(self.words)} words; {strange} test answers are in no training question"
        return note + (f"; {long} questions are cut to {self.length} words" if long else "")

    def experiences(self) -> tuple[Experience, ...]:
        """Return the experiences of the open-ended task, each with the answers known so far as its labels."""
        return self._experiences

    def dataset(self, split: str) -> ClosedSamples:
        """Return the questions of ``split``."""
        return ClosedSamples(self.data.split(split), self)

    def classes(self, experience: Experience) -> dict[str, tuple[str, ...]]:
        """Return class of the memory → training keys of an experience: its type and the label that put a question into it.

        A type's questions without labels are one class (8-25: ids are those of the whole stream, not of its first type).
        """
        records = [self.data.record(key) for key in experience.train]
        found: dict[str, list[str]] = {}
        if self.options.experiences == "increments" and self.data.partition is not None:
            names = list(self.data.partition.dictionary())
            members = by_increment(self.data.partition, records)[experience.name]
            for key in experience.train:
                found.setdefault(names[members[key]], []).append(key)
        else:
            for record in records:
                found.setdefault("_".join((record.type, *record.labels[:1])), []).append(record.key)
        return {name: tuple(keys) for name, keys in found.items()}

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module:
        """Return a :class:`ClosedHead` over the lists so far; ConfigError without a visual and an audio tower."""
        needs_both(self.name, spec)
        return ClosedHead(spec, self._words[experience.name], len(experience.labels), self.width)

    def widen(self, head: nn.Module, experience: Experience) -> nn.Module:
        """Return the head with the words and answers that an experience adds."""
        assert isinstance(head, ClosedHead)
        head.widen(self._words[experience.name], len(experience.labels))
        return head

    def units(self, targets: Mapping[str, Tensor]) -> int:
        """Return the number of questions."""
        return len(targets["answer"])

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the cross-entropy over all answers so far ``[b]``."""
        return functional.cross_entropy(outputs["answer"], targets["answer"], reduction="none")

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean cross-entropy; the benchmark's own losses are the method's (:mod:`avcl_avqa.avqacl`)."""
        return {"answer": self.nll(outputs, targets).mean()}

    @cached_property
    def _texts(self) -> Tensor:
        return texts_array(self.labels)

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return the text of the most probable answer."""
        best = outputs["answer"].argmax(-1)
        return {"text": self._texts.to(best.device)[best]}


class ClosedSamples:
    """Questions of one split.

    Inputs: ``visual`` uint8 ``[frames, S, S, 3]``, ``audio`` float32 ``[frames, rate]``, the seconds in which the frames lie, so that
    every model can read both in step; ``words`` int64 ``[length]``. Targets: ``answer`` int64, ``language`` uint8 ``[bytes]``.
    """

    drawn = frozenset[str]()

    def __init__(self, samples: OpenSamples, task: ClosedAnswering) -> None:
        self.samples, self.task = samples, task

    def inputs(self, key: str, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Return the raw inputs of a question; nothing is drawn."""
        found = self.samples.inputs(key, rng)
        words = self.task.words.encode(self.task.data.question(key), self.task.length)
        seconds = evenly(len(found["audio"]), len(found["visual"])) - 1
        return {"visual": found["visual"], "audio": found["audio"][seconds], "words": words}

    def targets(self, key: str) -> dict[str, np.ndarray]:
        """Return the answer as index and as text."""
        (index,) = self.task.answers.encode([self.task.data.record(key).answer])
        return {"answer": np.asarray(index), **self.samples.targets(key)}

    def digest(self, key: str) -> str:
        """Return the digest of what is seen and heard: of the video's media, of whose sound some seconds are taken."""
        return f"{self.samples.digest(key)}-at-frames"


def build(options: ClosedOptions, prepared: Prepared, protocol: str) -> ClosedAnswering:
    """Return the task over prepared open-ended data.

    Raises:
        ConfigError: the published protocol, which nobody can repeat: re-runs of the released code differ (avqacl_moe.md 3.9).
    """
    if protocol == "paper":
        raise ConfigError(
            f"stream.protocol=paper: {ClosedAnswering.name} is the corrected benchmark (avqacl-fixed), whose figures are not the"
            " published ones; run with protocol clean"
        )
    return ClosedAnswering(OpenData(prepared), options)
