"""Prepared open-ended questions as samples by key: text in, text out, eight frames and the sound of the video between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from avcl_avqa.annotations import SPLITS
from avcl_avqa.increments import by_increment
from avcl_avqa.open_files import LAYOUT, benchmark_of, read_questions
from avcl_avqa.open_records import OpenQuestion, shared_keys
from avcl_avqa.partition import Partition, load_partition, named_shape
from avcl_core.data.prepared import Prepared
from avcl_core.data.problems import broken
from avcl_core.data.records import refuse_errors
from avcl_core.errors import DataError
from avcl_core.texts import text_array

MEDIA = "<video>\n<audio>\n"
"""What stands before every question of the benchmarks (avqacl_moe.md 3.2)."""


class OpenData:
    """The questions of one benchmark over prepared media.

    Raises:
        DataError: a question file has an error, a question is in two splits or types, or the data set is another one.
    """

    def __init__(self, prepared: Prepared) -> None:
        if prepared.layout != LAYOUT:
            raise broken(
                prepared.folder, "layout", prepared.layout, LAYOUT, "name the folder of prepared avqa_open data"
            )
        self.prepared = prepared
        names = [name for name in prepared.annotations if name.partition("_")[0] in SPLITS]
        found = [read_questions(Path(prepared.annotation(name))) for name in names]
        questions = [question for file in found for question in file.questions]
        problems = [problem for file in found for problem in file.problems]
        refuse_errors([*problems, *shared_keys(questions, str(prepared.folder))])
        self.benchmark = benchmark_of({question.type for question in questions})
        self.partition = self._partition()
        present = {question.type for question in questions if question.split == "train"}
        self.types = tuple(name for name in self.benchmark.types if name in present)
        self._questions = {question.key: question for question in questions}
        self.longest = {
            "question": max(len((MEDIA + question.question).encode()) for question in questions),
            "answer": max(1, *(len(question.answer.encode()) for question in questions)),
        }
        kept, absent = len(questions), [question.key for question in questions if question.video not in prepared]
        self.note = f"{self.benchmark.name}, {kept} questions, {len(self.types)} of {len(self.benchmark.types)} types"
        if absent:
            self.note += f"; {len(absent)} of them without media"

    def _partition(self) -> Partition | None:
        """The groups of labels, where their file is beside the questions."""
        files = [
            self.prepared.annotation(name) for name in self.prepared.annotations if name.startswith("task_partition")
        ]
        if not files:
            return None
        if len(files) > 1:
            found = ", ".join(file.name for file in files)
            raise broken(
                self.prepared.folder, "partition", found, "one file", "leave the partition of your stream there"
            )
        return load_partition(files[0], self.benchmark.shaped(*named_shape(files[0])))

    def increments(self, split: str) -> dict[str, tuple[str, ...]]:
        """Return increment → keys of its questions in a split, increments in stream order.

        Raises:
            DataError: there is no partition file, or a question has a label that it does not have.
        """
        if self.partition is None:
            expected = "task_partition_<steps>_<labels>.json beside the questions"
            raise broken(self.prepared.folder, "partition", "none", expected, "add it and prepare the data again")
        questions = [question for question in self._questions.values() if question.split == split]
        try:
            return {name: tuple(keys) for name, keys in by_increment(self.partition, questions).items()}
        except ValueError as error:
            raise DataError(f"{self.prepared.folder}: {error}") from error

    def record(self, key: str) -> OpenQuestion:
        """Return a question in its normal form."""
        return self._questions[key]

    def keys(self, split: str, type: str) -> tuple[str, ...]:
        """Return the keys of a split and type in file order."""
        return tuple(k for k, q in self._questions.items() if (q.split, q.type) == (split, type))

    def split(self, split: str) -> OpenSamples:
        """Return the samples of a split."""
        return OpenSamples(self.prepared, {k: q for k, q in self._questions.items() if q.split == split}, self.longest)

    def question(self, key: str) -> str:
        """Return the text of a question."""
        return self._questions[key].question

    def type_of(self, key: str) -> str:
        """Return the type of a question."""
        return self._questions[key].type

    def video(self, key: str) -> str:
        """Return the video that a question is about."""
        return self._questions[key].video


class OpenSamples:
    """Questions of one split.

    Inputs: ``visual`` uint8 ``[frames, S, S, 3]``, ``audio`` float32 ``[seconds, rate]``, ``question`` uint8 ``[bytes]``. Targets:
    ``language`` uint8 ``[bytes]``, the answer as written.
    """

    drawn = frozenset[str]()

    def __init__(self, prepared: Prepared, questions: Mapping[str, OpenQuestion], longest: Mapping[str, int]) -> None:
        self.prepared, self._questions, self.longest = prepared, questions, longest

    def inputs(self, key: str, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Return the raw inputs of a question; nothing is drawn."""
        question = self._questions[key]
        return {
            "visual": self.prepared.frames(question.video),
            "audio": self.prepared.wave(question.video),
            "question": text_array(MEDIA + question.question, self.longest["question"]),
        }

    def targets(self, key: str) -> dict[str, np.ndarray]:
        """Return the answer."""
        return {"language": text_array(self._questions[key].answer, self.longest["answer"])}

    def digest(self, key: str) -> str:
        """Return the digest of the video's media, which other questions share."""
        return self.prepared.sample_digest(self._questions[key].video)
