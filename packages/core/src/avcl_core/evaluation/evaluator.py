"""Judges a method on test sets: it sees questions only, and its decoded predictions are scored over the whole split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from avcl_core.collective import Collective
from avcl_core.evaluation.examples import COUNT, Example
from avcl_core.evaluation.saved_features import FeatureMeans, SavedFeatures
from avcl_core.evaluation.usage import Usage, UsageCounter, routing_accuracy
from avcl_core.methods.base import Method
from avcl_core.seeding import ordered
from avcl_core.stream import Experience
from avcl_core.task import Prediction, Task
from avcl_core.trace import Trace
from avcl_core.training.loader import Loader
from avcl_core.walk import Place


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split, with the predictions that they were computed from and some samples to look at.

    Where the experience is hidden and a model sends samples to one, ``metrics`` has the ``routing_accuracy`` in percent.
    ``controls`` are trivial predictors; ``ablations`` the trained model itself without a kind of its modules, no yardstick.
    ``usage`` says how the model's experts were used; ``None`` where it has nothing to tell. ``features`` is there where asked for.
    """

    metrics: Mapping[str, float]
    controls: Mapping[str, Mapping[str, float]]
    predictions: Mapping[str, Prediction]
    examples: Sequence[Example] = ()
    usage: Usage | None = None
    features: SavedFeatures | None = None
    ablations: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Evaluator:
    """Evaluates without a branch on task, model or method.

    Args:
        loader: gives batches by key.
        hidden: whether the experience is withheld from prediction.
        size: samples per forward pass.
        collective: ranks that share the work; each predicts its keys.
        check: called between batches; raises to stop.
        sizes: task → samples per forward pass, where it is not ``size``.
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
        self._trivial: dict[str, float] = {}

    def predict(
        self,
        method: Method,
        experience: Experience,
        split: str,
        counter: UsageCounter | None = None,
        means: FeatureMeans | None = None,
        without: frozenset[Place] = frozenset(),
    ) -> dict[str, Prediction]:
        """Return key → decoded prediction for a split, in key order of the experience.

        ``counter`` and ``means`` take what this rank's traces heard; at the places ``without`` no module acts.
        """
        mine = experience.keys(split)[self.collective.rank :: self.collective.world]
        found: dict[str, Prediction] = {}
        for batch in self.loader.batches(experience, split, self.sizes.get(experience.task, self.size), mine):
            self.check()
            trace = Trace(means is not None) if counter is not None or means is not None else None
            decoded = method.predict(batch.question(self.hidden), trace, without)
            if counter is not None and trace is not None:
                counter.add(trace, batch.keys)
            if means is not None and trace is not None:
                means.add(trace, batch.keys)
            arrays = {name: value.cpu().numpy() for name, value in decoded.items()}
            for row, key in enumerate(batch.keys):
                found[key] = {name: value[row] for name, value in arrays.items()}
        merged: dict[str, Prediction] = {}
        for part in self.collective.join(found):
            merged |= part
        return {key: merged[key] for key in experience.keys(split)}

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
            ablate: whether to score the trained model without its prompts and without its adapters too.

        Raises:
            RunError: features are asked of a model that tells none.
        """
        targets = self.loader.targets(experience, split)
        groups = {key: task.groups(key, target) for key, target in targets.items()}
        counter = UsageCounter(groups)
        means = FeatureMeans(groups) if features else None
        predictions = self.predict(method, experience, split, counter, means)
        controls = task.controls(self.loader.targets(experience, "train"), targets)
        if _vary(targets):  # where every sample has the same truth, dealing predictions out changes nothing
            controls["shuffled predictions"] = task.score(_dealt(predictions), targets)
        ablations: dict[str, dict[str, float]] = {}
        for name, places in method.model.removable().items() if ablate else ():
            left = self.predict(method, experience, split, without=places)
            ablations[f"without {name}"] = task.score(left, targets)
        shown = ordered(predictions, "examples")[:COUNT]
        examples = task.examples(
            {key: predictions[key] for key in shown}, {key: targets[key] for key in shown}, task.dataset(split)
        )
        usage = counter.usage(self.collective)
        saved = None if means is None else means.joined(list(predictions), self.collective)
        metrics = {**task.score(predictions, targets), **routing_accuracy(usage, method.model.slot(experience))}
        return Evaluation(metrics, controls, predictions, examples, usage, saved, ablations)

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
