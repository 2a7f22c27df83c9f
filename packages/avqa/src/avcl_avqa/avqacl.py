"""AVQACL, the benchmark's own method, corrected (``avqacl-fixed``): separated answers, a frozen teacher, herded exemplars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from avcl_avqa.avqacl_losses import answer_sums, question_distance, slice_distances, structure_distance
from avcl_avqa.closed_task import ClosedAnswering
from avcl_core.batch import Batch, Outputs
from avcl_core.errors import ConfigError
from avcl_core.methods.ahead import placed, still_learning
from avcl_core.methods.base import Data, Update
from avcl_core.methods.er import ExperienceReplay, ReplayOptions
from avcl_core.models.base import Model
from avcl_core.ownership import Owners, Snapshot, evaluation_mode
from avcl_core.replay.herding import HerdedMemory, herded
from avcl_core.replay.memory import Exemplar
from avcl_core.stream import Experience
from avcl_core.task import Task


class AvqaclOptions(ReplayOptions):
    """Configuration of :class:`Avqacl`; the defaults are those for Split-AVQA.

    Attributes:
        memory: capacity in samples, shared equally by the classes (question type and label) seen so far; 700 for MUSIC.
        replay_batch: exemplars beside each batch.
        question: w_q, the weight of the distance between question features; 0.9 for MUSIC.
        structure: w_s, the weight of the distance between differences along time and features; 0.3 for MUSIC.
        temperature: of the distance between logits.
    """

    memory: PositiveInt = 5000
    replay_batch: PositiveInt = 16
    question: NonNegativeFloat = 0.7
    structure: NonNegativeFloat = 0.5
    temperature: PositiveFloat = 2.0


class Avqacl(ExperienceReplay):
    """AVQACL (Wu et al., CVPR 2025; avqacl_moe.md 3.9, 8-23 to 8-27), corrected.

    Loss = CE of new answers among the new + CE of old answers among the old, both weighted by how many samples of the step they
    stand for, + w_q · (1 − cos of question features) + Σ T²·KL on each previous increment's logits + w_s · structure. The last three
    are means over all samples of the step, current and remembered. The teacher is a frozen copy of all that learns, with its own
    classifier and word list. An old answer in the current batch is trained on its old column, as exemplars are.

    Raises:
        ConfigError: the stream has a task without a growing list of answers.
    """

    Config = AvqaclOptions
    memory: HerdedMemory

    def __init__(self, model: Model, tasks: Mapping[str, Task], options: AvqaclOptions, seed: int) -> None:
        super().__init__(model, tasks, options, seed)
        odd = [name for name, task in tasks.items() if not isinstance(task, ClosedAnswering)]
        if odd:
            raise ConfigError(
                f"method avqacl is made for {ClosedAnswering.name}, whose answers grow; stream.tasks has {odd[0]}: choose another"
                " method"
            )
        self.weights, self.temperature = (options.question, options.structure), options.temperature
        self.memory = HerdedMemory(options.memory, seed)
        self.past: list[str] = []
        self.columns: list[int] = []
        self.teacher: dict[str, Tensor] = {}
        self.rows = 0

    def recall(self, batch_size: int, generator: torch.Generator) -> Sequence[Exemplar]:
        """Draw the exemplars of one step, and note how many samples it has in all."""
        drawn = super().recall(batch_size, generator)
        self.rows = batch_size + len(drawn)
        return drawn

    def step(self, current: Batch, replayed: Sequence[Batch]) -> Iterator[Update]:
        """Yield one update on ``new``, ``old`` and, from the second experience on, ``question``, ``distil`` and ``structure``."""
        total: dict[str, Tensor] = {}
        for batch in (current, *replayed):
            for name, value in self.sums(batch).items():
                total[name] = total[name] + value if name in total else value
        yield Update({name: value / self.rows for name, value in total.items()})

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of a batch, summed over its samples."""
        ctx = self.context(batch, training=True)
        student = self.model(batch, ctx)
        new, old = answer_sums(student["answer"], batch.targets["answer"], self.columns[-1] if self.columns else 0)
        parts = {"new": new, "old": old, **{name: value * len(batch) for name, value in ctx.aux.items()}}
        return parts | self.held(student, batch)

    def held(self, student: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted distances from the teacher, summed over the samples; nothing in the first experience."""
        if not self.teacher:
            return {}
        teacher = Snapshot(self.teacher).call(self.model, batch, self.context(batch, training=False))
        question, structure = self.weights
        return {
            "question": question * question_distance(student, teacher).sum(),
            "distil": slice_distances(student, teacher, self.columns, self.temperature).sum(),
            "structure": structure * structure_distance(student, teacher).sum(),
        }

    def after(self, experience: Experience, data: Data) -> None:
        """Herd exemplars of each class by what the classifier reads, and take the teacher of the next experience."""
        task = self.tasks[experience.task]
        assert isinstance(task, ClosedAnswering)
        classes, fused = task.classes(experience), self.fused(data)
        share = self.memory.share(list(classes))
        chosen = {}
        for name, keys in classes.items():
            order = herded(torch.stack([fused[key] for key in keys]), share)
            chosen[name] = [keys[i] for i in order]
        self.memory.add_classes(experience.name, chosen)
        self.past, self.columns = [*self.past, experience.name], [*self.columns, len(experience.labels)]
        self.teacher = Owners(self.model).state(still_learning(self, self.past))

    def fused(self, data: Data) -> dict[str, Tensor]:
        """Return key → what the classifier reads of a training sample, on the host; each is computed by one rank."""
        keys, found = data.keys("train"), dict[str, Tensor]()
        with torch.no_grad(), evaluation_mode(self.model):
            for batch in data.batches(keys=keys[self.collective.rank :: self.collective.world]):
                rows = self.model(batch, self.context(batch, training=False))["fused"].float().cpu()
                found |= dict(zip(batch.keys, rows, strict=True))
        joined: dict[str, Tensor] = {}
        for part in self.collective.join(found):
            joined |= part
        return joined

    def state(self) -> dict[str, Any]:
        """Return the memory, the teacher, and which experiences it knows with how many answers."""
        return {**super().state(), "past": self.past, "columns": self.columns, "teacher": self.teacher}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        super().load(state)
        self.past, self.columns = list(state["past"]), [int(n) for n in state["columns"]]
        self.teacher = placed(state["teacher"], self.model)
