"""Two ways to predict a split: batch by batch, or slot by slot where slots know nothing of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from avcl_core.batch import Batch
from avcl_core.collective import Collective
from avcl_core.errors import ConfigError
from avcl_core.evaluation.ablation_names import EXPERIENCE_GIVEN, WITHOUT_EXPERTS, only
from avcl_core.evaluation.saved_features import FeatureMeans
from avcl_core.evaluation.usage import UsageCounter
from avcl_core.methods.base import Method
from avcl_core.ownership import Owners, digest_tensors, matches
from avcl_core.routing import BASE, CHOSEN, GIVEN, Routing
from avcl_core.stream import Experience
from avcl_core.task import Prediction
from avcl_core.trace import Trace
from avcl_core.walk import Place

Batches = Callable[[Experience, str, Sequence[str]], Iterator[Batch]]
"""Experience, split, keys → batches of questions and targets, in order."""
Found = dict[str, Prediction]
"""Sample key → decoded prediction, in key order of the experience."""


@dataclass(frozen=True)
class Choice:
    """Where one sample was sent.

    Attributes:
        slot: its slot.
        scores: what was compared (``all`` for what decided) → slot → how like it the sample is; NaN where it has nothing of it.
    """

    slot: str
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Listeners:
    """What hears what modules tell while a split is predicted."""

    counter: UsageCounter | None = None
    means: FeatureMeans | None = None

    def trace(self) -> Trace | None:
        """Return a trace for one batch, where somebody listens."""
        return Trace(self.means is not None) if self.counter is not None or self.means is not None else None

    def hear(self, trace: Trace | None, keys: Sequence[str]) -> None:
        """Take what was told of the samples ``keys``."""
        if trace is None:
            return
        if self.counter is not None:
            self.counter.add(trace, keys)
        if self.means is not None:
            self.means.add(trace, keys)


DEAF = Listeners()
"""Nobody listens."""


class Predictor(Protocol):
    """A way to predict."""

    def predict(
        self, method: Method, experience: Experience, split: str, routing: Routing, listeners: Listeners
    ) -> tuple[Found, dict[str, Choice]]:
        """Return the predictions of a split, and where its samples were sent, as far as the model tells."""
        ...

    def ablations(
        self, method: Method, experience: Experience, split: str, routing: Routing, last: bool
    ) -> Iterator[tuple[str, Found]]:
        """Yield what the trained model predicts in other ways, by name; most of it after the last row only."""
        ...


class BatchByBatch:
    """Predicts a split in the order of its keys.

    Args:
        batches: gives batches.
        hidden: whether the experience is withheld.
        collective: ranks that share the work.
        check: called between batches; raises to stop.
    """

    def __init__(self, batches: Batches, hidden: bool, collective: Collective, check: Callable[[], None]) -> None:
        self.batches, self.hidden, self.collective, self.check = batches, hidden, collective, check

    def predict(
        self,
        method: Method,
        experience: Experience,
        split: str,
        routing: Routing,
        listeners: Listeners,
        without: frozenset[Place] = frozenset(),
    ) -> tuple[Found, dict[str, Choice]]:
        """Predict the split; no module acts at the places ``without``.

        Raises:
            ConfigError: the evaluation asks for a slot that the model does not have.
        """
        hidden = self.hidden and routing.to != GIVEN
        found: Found = {}
        for batch in self.batches(experience, split, _mine(experience, split, self.collective)):
            self.check()
            question, trace = batch.question(hidden), listeners.trace()
            slots = _asked(method, question, routing)
            found |= rows_of(method.predict(question, trace, without, slots), batch.keys)
            listeners.hear(trace, batch.keys)
        return _joined(found, experience, split, self.collective), {}

    def ablations(
        self, method: Method, experience: Experience, split: str, routing: Routing, last: bool
    ) -> Iterator[tuple[str, Found]]:
        """Predict without each kind of modules that can be left out, after the last row."""
        for name, places in method.model.removable().items() if last else ():
            yield f"without {name}", self.predict(method, experience, split, routing, DEAF, places)[0]


class SlotBySlot:
    """Sends all samples to slots first, then lets each slot predict its own; a prediction is kept until its slot changes.

    As one slot after another is asked, a model that holds one of them at a time loads each once.

    Args:
        batches, hidden, collective, check: as of :class:`BatchByBatch`.
        given: what samples are given as (corruption, modalities): part of what a prediction depends on.
    """

    def __init__(
        self,
        batches: Batches,
        hidden: bool,
        collective: Collective,
        check: Callable[[], None],
        given: Callable[[], Any] = lambda: None,
    ) -> None:
        self.batches, self.hidden, self.collective, self.check, self.given = batches, hidden, collective, check, given
        self._known: dict[tuple[Any, ...], tuple[Any, Prediction]] = {}
        self._digests: dict[tuple[str, str], tuple[Any, str]] = {}

    def predict(
        self, method: Method, experience: Experience, split: str, routing: Routing, listeners: Listeners
    ) -> tuple[Found, dict[str, Choice]]:
        """Route and predict the split."""
        mine: dict[str, Choice] = {}
        for batch in self.batches(experience, split, _mine(experience, split, self.collective)):
            self.check()
            mine |= self._choices(
                method, batch.question(self.hidden), experience, routing, Listeners(listeners.counter)
            )
        choices = _joined(mine, experience, split, self.collective)
        slots = {key: choice.slot for key, choice in choices.items()}
        return self.of_slots(method, experience, split, slots, Listeners(means=listeners.means)), choices

    def _choices(
        self, method: Method, question: Batch, experience: Experience, routing: Routing, listeners: Listeners
    ) -> dict[str, Choice]:
        """Where the samples of a batch are sent."""
        own = method.model.slot(experience)
        if not self.hidden or routing.to is not None:
            slot = own if routing.to in (None, GIVEN) else _slot(method, routing.to)
            return {key: Choice(slot) for key in question.keys}
        routes = method.routes(question, routing.reads)
        if routes is None:
            return {key: Choice(own) for key in question.keys}
        trace = listeners.trace()
        if trace is not None:
            slots = (*routes.candidates, BASE) if BASE in routes.slots else routes.candidates
            trace.tell_route(routes.slots, slots, next(iter(question.inputs.values())).device)
            listeners.hear(trace, question.keys)
        scores = {name: value.tolist() for name, value in routes.scores.items()}
        return {
            key: Choice(slot, {n: dict(zip(routes.candidates, rows[i], strict=True)) for n, rows in scores.items()})
            for i, (key, slot) in enumerate(zip(question.keys, routes.slots, strict=True))
        }

    def of_slots(
        self,
        method: Method,
        experience: Experience,
        split: str,
        slots: Mapping[str, str],
        listeners: Listeners = DEAF,
    ) -> Found:
        """Return what the slots ``slots`` (key → slot) predict, each pair of sample and slot computed once.

        Where features are listened to, everything is predicted anew: a kept prediction tells none.
        """
        versions = {slot: self._version(method, slot, experience.task) for slot in dict.fromkeys(slots.values())}
        place = (experience.name, split, self.given())
        mine = _mine(experience, split, self.collective)
        new: dict[tuple[Any, ...], tuple[Any, Prediction]] = {}
        for slot, version in versions.items():
            lacking = [
                key for key in mine
                if slots[key] == slot
                and (listeners.means is not None or self._known.get((*place, key, slot), (None,))[0] != version)
            ]  # fmt: skip
            for batch in self.batches(experience, split, lacking) if lacking else ():
                self.check()
                trace = listeners.trace()
                decoded = method.predict(batch.question(self.hidden), trace, slots=(slot,) * len(batch))
                listeners.hear(trace, batch.keys)
                for key, prediction in rows_of(decoded, batch.keys).items():
                    new[(*place, key, slot)] = (version, prediction)
        self._known |= new
        return _joined(
            {key: self._known[(*place, key, slots[key])][1] for key in mine}, experience, split, self.collective
        )

    def _version(self, method: Method, slot: str, task: str) -> str:
        """The digest of what a slot predicts a task's samples with, computed anew where one of these tensors was written to."""
        used = method.model.used(slot, task)
        rows = Owners(method.model).rows
        held = {name: row.tensor for name, row in rows.items() if matches(row.owner, used)}
        written = (id(method.model), *((id(tensor), tensor._version) for tensor in held.values()))
        if (slot, task) not in self._digests or self._digests[slot, task][0] != written:
            self._digests[slot, task] = (written, digest_tensors(held))
        return self._digests[slot, task][1]

    def ablations(
        self, method: Method, experience: Experience, split: str, routing: Routing, last: bool
    ) -> Iterator[tuple[str, Found]]:
        """Predict with the experience given, where it is hidden; after the last row also by each slot alone, and by none."""
        keys, own = experience.keys(split), method.model.slot(experience)
        if self.hidden and routing == CHOSEN:
            yield EXPERIENCE_GIVEN, self.of_slots(method, experience, split, dict.fromkeys(keys, own))
        if last and len(method.model.slots) > 1:
            for slot in method.model.slots:
                yield only(slot), self.of_slots(method, experience, split, dict.fromkeys(keys, slot))
        if last and method.model.removable():
            yield WITHOUT_EXPERTS, self.of_slots(method, experience, split, dict.fromkeys(keys, BASE))


def rows_of(decoded: Mapping[str, Any], keys: Sequence[str]) -> Found:
    """Return decoded predictions ``[b, …]`` by key, on the host."""
    arrays = {name: value.cpu().numpy() for name, value in decoded.items()}
    return {key: {name: value[row] for name, value in arrays.items()} for row, key in enumerate(keys)}


def _mine(experience: Experience, split: str, collective: Collective) -> tuple[str, ...]:
    return experience.keys(split)[collective.rank :: collective.world]


def _joined(found: Mapping[str, Any], experience: Experience, split: str, collective: Collective) -> dict[str, Any]:
    """What all ranks found, in key order of the experience."""
    merged: dict[str, Any] = {}
    for part in collective.join(dict(found)):
        merged |= part
    return {key: merged[key] for key in experience.keys(split)}


def _asked(method: Method, question: Batch, routing: Routing) -> tuple[str, ...] | None:
    """The slots that an evaluation demands, or nothing where the model routes as always."""
    if routing.reads:
        routes = method.routes(question, routing.reads)
        return None if routes is None else routes.slots
    if routing.to in (None, GIVEN):
        return None
    return (_slot(method, routing.to),) * len(question)


def _slot(method: Method, slot: str | None) -> str:
    known = [*method.model.slots, *([BASE] if method.model.separate else [])]
    if slot not in known:
        raise ConfigError(f"to={slot}: unknown; expected {GIVEN} or one of {', '.join(known)}")
    assert slot is not None
    return slot
