"""Judges a method on test sets: it sees questions only, and its decoded predictions are scored over the whole split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from avcl_core.batch import Batch
from avcl_core.collective import Collective
from avcl_core.evaluation.examples import COUNT, Example
from avcl_core.evaluation.predicting import DEAF, BatchByBatch, Choice, Listeners, Predictor, SlotBySlot
from avcl_core.evaluation.routing_table import routing_table
from avcl_core.evaluation.saved_features import FeatureMeans, SavedFeatures
from avcl_core.evaluation.usage import Usage, UsageCounter, routing_accuracy
from avcl_core.methods.base import Method
from avcl_core.routing import CHOSEN
from avcl_core.seeding import ordered
from avcl_core.stream import Experience
from avcl_core.task import Prediction, Task
from avcl_core.training.loader import Loader


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split, with the predictions that they were computed from and some samples to look at.

    Where the experience is hidden and a model sends samples to one, ``metrics`` has the ``routing_accuracy`` in percent.
    ``controls`` are trivial predictors; ``ablations`` the trained model itself without a kind of its modules, or with its samples
    sent elsewhere, no yardstick. ``choices`` says where each sample was sent, by models that tell.
    ``usage`` says how the model's experts were used; ``None`` where it has nothing to tell. ``features`` is there where asked for.
    """

    metrics: Mapping[str, float]
    controls: Mapping[str, Mapping[str, float]]
    predictions: Mapping[str, Prediction]
    examples: Sequence[Example] = ()
    usage: Usage | None = None
    features: SavedFeatures | None = None
    ablations: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    choices: Mapping[str, Choice] = field(default_factory=dict)


class Evaluator:
    """Evaluates without a branch on task, model or method.

    Args:
        loader: gives batches by key.
        hidden: whether the experience is withheld from prediction.
        size: samples per forward pass.
        collective: ranks that share the work; each predicts its keys.
        check: called between batches; raises to stop.
        sizes: task → samples per forward pass, where it is not ``size``.

    Attributes:
        routing: how hidden samples are sent; by default as the model chooses.
    """

    def __init__(
        self,
        loader: Loader,
        hidden: bool,
        size: int,
        collective: Collective,
        check: Callable[[], None] = lambda: None,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self.loader, self.hidden, self.size, self.collective, self.check = loader, hidden, size, collective, check
        self.sizes = dict(sizes or {})
        self.routing = CHOSEN
        self._trivial: dict[str, float] = {}
        self.by_batch = BatchByBatch(self._batches, hidden, collective, check)
        self.by_slot = SlotBySlot(self._batches, hidden, collective, check, self._given)

    def _batches(self, experience: Experience, split: str, keys: Sequence[str]) -> Iterator[Batch]:
        return self.loader.batches(experience, split, self.sizes.get(experience.task, self.size), keys)

    def _given(self) -> tuple[object, ...]:
        corruption = self.loader.corruption
        return self.loader.seen, None if corruption is None else corruption.text

    def _predictor(self, method: Method) -> Predictor:
        """The way that suits the model."""
        return self.by_slot if method.model.separate else self.by_batch

    def predict(self, method: Method, experience: Experience, split: str) -> dict[str, Prediction]:
        """Return key → decoded prediction for a split, in key order of the experience."""
        return self._predictor(method).predict(method, experience, split, self.routing, DEAF)[0]

    def evaluate(
        self,
        method: Method,
        task: Task,
        experience: Experience,
        split: str,
        features: bool = False,
        ablate: bool = False,
    ) -> Evaluation:
        """Predict and score a split; controls are trivial predictors and the predictions dealt out to other samples.

        Args:
            features: whether to return the towers' mean final features beside the predictions.
            ablate: whether the row is the last one, after which the trained model is also scored without its prompts and without
                its adapters, or with each expert for all samples.

        Raises:
            RunError: features are asked of a model that tells none.
        """
        targets = self.loader.targets(experience, split)
        groups = {key: task.groups(key, target) for key, target in targets.items()}
        counter = UsageCounter(groups)
        means = FeatureMeans(groups) if features else None
        predictor = self._predictor(method)
        predictions, choices = predictor.predict(method, experience, split, self.routing, Listeners(counter, means))
        controls = task.controls(self.loader.targets(experience, "train"), targets)
        if _vary(targets):  # where every sample has the same truth, dealing predictions out changes nothing
            controls["shuffled predictions"] = task.score(_dealt(predictions), targets)
        others = predictor.ablations(method, experience, split, self.routing, ablate)
        ablations = {name: task.score(left, targets) for name, left in others}
        shown = ordered(predictions, "examples")[:COUNT]
        examples = task.examples(
            {key: predictions[key] for key in shown}, {key: targets[key] for key in shown}, task.dataset(split)
        )
        usage = counter.usage(self.collective)
        own = method.model.slot(experience)
        routed = routing_table(choices, own, task, predictions, targets)
        if usage is not None and routed is not None:
            usage["routing"] = routed
        saved = None if means is None else means.joined(list(predictions), self.collective)
        metrics = {**task.score(predictions, targets), **routing_accuracy(usage, own)}
        return Evaluation(metrics, controls, predictions, examples, usage, saved, ablations, choices)

    def skill(self, task: Task, experience: Experience, metrics: Mapping[str, float]) -> float:
        """Return the primary metric as a skill score: 0 for the best trivial predictor of the selection split, 1 if perfect.

        For one task this only rescales its metric; for several, skills of different metrics can be averaged.
        """
        if experience.name not in self._trivial:
            train, judged = (self.loader.targets(experience, split) for split in ("train", experience.selection))
            controls = {n: v for n, v in task.controls(train, judged).items() if n not in task.oracles}
            self._trivial[experience.name] = max(values[task.primary] for values in controls.values())
        base = self._trivial[experience.name]
        return (metrics[task.primary] - base) / (task.ideal - base) if task.ideal != base else 0.0


def _vary(targets: Mapping[str, Prediction]) -> bool:
    """Whether the targets of any two samples differ."""
    first, *others = targets.values()
    return any(not np.array_equal(first[name], other[name]) for other in others for name in first)


def _dealt(predictions: Mapping[str, Prediction]) -> dict[str, dict[str, np.ndarray]]:
    """Give every sample the prediction of another one: a cyclic shift of a fixed random order."""
    keys = ordered(predictions, "dealt")
    return {key: predictions[keys[(i + 1) % len(keys)]] for i, key in enumerate(keys)}
