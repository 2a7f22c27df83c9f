"""LwF (Li and Hoiem 2016): on new samples, old heads go on answering as the model did before the experience."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import PositiveFloat
from torch import Tensor

from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.methods.ahead import placed, still_learning
from avcl_core.methods.base import Data, Method, Update
from avcl_core.methods.distances import distance
from avcl_core.methods.quiet import quiet
from avcl_core.models.base import Model
from avcl_core.ownership import Owners, Snapshot
from avcl_core.stream import Experience
from avcl_core.task import Task
from avcl_core.walk import Ctx


class LwFOptions(Options):
    """Configuration of :class:`LwF`.

    Attributes:
        strength: λ_o, the weight of the distance for each old head.
        temperature: of exclusive classes and tokens; 2 in the paper.
        old_heads: ``trained`` along, as in the paper, or ``frozen``: then only what the heads read is held.
    """

    strength: PositiveFloat = 1.0
    temperature: PositiveFloat = 2.0
    old_heads: Literal["trained", "frozen"] = "trained"


class LwF(Method):
    """Learning without forgetting: the current loss plus, for every old head, its distance from a snapshot taken before.

    Each past experience that has copies of its own in the model (prompts, experts) is asked apart, with its copies; otherwise one
    question per task. Both the model and the snapshot answer in eval mode, so the distance is 0 at first, and new samples do not
    move an old head's batch-norm statistics. The paper's warm-up, in which the new head first learns alone, is not built.

    An old head that cannot read an experience's samples (``Task.unreadable``: it needs a question, say) is not asked in it: it is
    held by nothing then, a warning says so when the experience begins, and ``left_out`` in the method's state keeps it on record.
    """

    Config = LwFOptions

    def __init__(self, model: Model, tasks: Mapping[str, Task], options: LwFOptions, seed: int) -> None:
        super().__init__(model, tasks, options, seed)
        self.strength, self.temperature, self.old_heads = options.strength, options.temperature, options.old_heads
        self.past: list[dict[str, str]] = []
        self.asked: dict[str, list[dict[str, str]]] = {}
        self.left_out: dict[str, dict[str, str]] = {}
        self.teacher: dict[str, Tensor] = {}

    def active(self, experience: Experience) -> tuple[str, ...]:
        """Return the current owners and, unless they are frozen, every head."""
        heads = ("head:*",) if self.old_heads == "trained" else ()
        return (*super().active(experience), *heads)

    def before(self, experience: Experience, data: Data) -> None:
        """Find out which old heads can read the samples of the experience."""
        (sample,) = data.batches(keys=data.keys("train")[:1])
        asked, left_out = [], {}
        for past in self._functions():
            same = past["task"] == experience.task
            reason = "" if same else self.tasks[past["task"]].unreadable(sample.inputs)
            if reason:
                left_out[past["experience"]] = reason
            else:
                asked.append(past)
        self.asked, self.left_out = {**self.asked, experience.name: asked}, {**self.left_out, experience.name: left_out}
        if self.collective.rank == 0:
            for name, reason in left_out.items():
                text = f"lwf: while learning {experience.name}, nothing holds the head of {name}: {reason}"
                warnings.warn(text, stacklevel=2)

    def _functions(self) -> list[dict[str, str]]:
        """Return the past experiences whose answers differ: the latest of each task, and all with copies of their own."""
        owners = {row.owner for row in Owners(self.model).rows.values()}
        found: dict[tuple[str, str], dict[str, str]] = {}
        for past in self.past:
            apart = bool({f"task:{past['slot']}", f"expert:{past['slot']}"} & owners)
            found[past["task"], past["slot"] if apart else ""] = past
        return list(found.values())

    def step(self, current: Batch, replayed: Sequence[Batch]) -> Iterator[Update]:
        """Yield one update on the current loss and the distances, named ``lwf:<experience>:<output>``."""
        parts = self.losses(current)
        for past in self.asked[current.experience or ""]:
            parts |= self.distances(past, current)
        yield Update(parts)

    def distances(self, past: Mapping[str, str], current: Batch) -> dict[str, Tensor]:
        """Return this batch's share of the distances of one old head's outputs."""
        heard, counts = self._heard(past["task"], current)
        asked = posed(heard, past["task"], past["experience"])
        taught = Snapshot(self.teacher).call(self.model, asked, self.context(asked, training=False))
        with quiet(self.model):
            answered = self.model(asked, self.context(asked, training=False))
        mean = Ctx(counts=counts).mean
        return {
            f"lwf:{past['experience']}:{name}": self.strength
            * mean(distance(kind, answered[name], taught[name], self.temperature))
            * current.row_share
            for name, kind in self.tasks[past["task"]].fields.items()
        }

    def _heard(self, task: str, current: Batch) -> tuple[Batch, tuple[int, ...] | None]:
        """Return the samples that an old head has to answer, and for how many each of them stands.

        A head that reads nothing but media answers all questions about a video alike.
        """
        shared = None if self.tasks[task].needs or self.tasks[task].plain else current.distinct()
        if shared is None:
            return current, None
        rows, numbers = shared
        return current.select(rows), tuple(numbers.count(number) for number in range(len(rows)))

    def after(self, experience: Experience, data: Data) -> None:
        """Take the snapshot that teaches the next experience: of all that an experience to come may change."""
        slot = self.model.slot(experience)
        self.past = [*self.past, {"experience": experience.name, "task": experience.task, "slot": slot}]
        self.teacher = Owners(self.model).state(still_learning(self, [past["experience"] for past in self.past]))

    def state(self) -> dict[str, Any]:
        """Return the snapshot, what it was taken of, and which old heads each experience asked and left out."""
        return {"past": self.past, "asked": self.asked, "left_out": self.left_out, "teacher": self.teacher}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.past, self.asked = list(state["past"]), dict(state["asked"])
        self.left_out, self.teacher = dict(state["left_out"]), placed(state["teacher"], self.model)


def posed(batch: Batch, task: str, experience: str) -> Batch:
    """Return the inputs of ``batch`` as samples of another experience, whose head and copies of modules then answer.

    Targets stay where the task is the same (a generative model reads the answer so far from them); another task's would mean
    something else.
    """
    targets = batch.targets if batch.task == task else {}
    return replace(batch, task=task, experience=experience, targets=targets, stored={})
