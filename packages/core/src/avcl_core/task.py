"""A task says what is predicted, from which data, with which head, loss and metrics; it knows nothing of continual learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from torch import Tensor, nn

from avcl_core.batch import Outputs
from avcl_core.evaluation.examples import Example
from avcl_core.features import FeatureSpec
from avcl_core.stream import Experience

Kind = Literal["classes", "labels", "mask", "value", "tokens"]
"""How an output is to be read: exclusive logits, independent logits, dense logits, a real value, token logits."""

Prediction = dict[str, np.ndarray]
"""One sample's decoded prediction or target: name → array without a batch dimension."""


class Dataset(Protocol):
    """Samples of one split by key. Everything is a pure function of the key (and of ``rng`` for augmentation)."""

    drawn: frozenset[str]
    """Names of the inputs that are drawn with ``rng``; the others are cached by content digest. Without ``rng`` (evaluation,
    hooks) drawn inputs are plain or left out."""

    def inputs(self, key: str, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
        """Return raw inputs: ``visual`` uint8 ``[T, H, W, 3]``, ``audio`` float32 ``[T, rate]``, and task inputs."""
        ...

    def targets(self, key: str) -> Mapping[str, np.ndarray]:
        """Return targets without a batch dimension."""
        ...

    def digest(self, key: str) -> str:
        """Return the content digest of the sample's raw media."""
        ...


class Task(ABC):
    """The interface of a task. Subclasses live in task packages and register through ``avcl.tasks``."""

    name: str
    """Name of the task, as in configurations."""
    primary: ClassVar[str]
    """Key of the primary metric in :meth:`score`; larger is better."""
    ideal: ClassVar[float] = 100.0
    """Value of a perfect primary metric."""
    fields: Mapping[str, Kind]
    """Output name → kind: all that distillation and dark replay need to know."""
    coupled: ClassVar[bool] = False
    """True when the loss is not a mean over units (a correlation, say): no accumulation, outputs gathered across ranks."""
    oracles: ClassVar[frozenset[str]] = frozenset()
    """Names of the controls that look at the test targets: bounds to compare with, not trivial predictors."""
    modalities: ClassVar[tuple[str, ...]] = ("visual", "audio")
    """Modalities that the inputs carry."""
    audio_rate: ClassVar[int] = 32_000
    """Sample rate in Hz of the ``audio`` input."""
    plain: ClassVar[Mapping[str, str]] = {}
    """Input → tower whose plain tokens (no site module, no gradient) the head finds in ``Features.plain``, where the batch has it."""
    labels: tuple[str, ...] = ()
    """Names of the labels in index order, where the task has labels."""
    needs: tuple[str, ...] = ()
    """Names of the inputs that the head reads beside the features (a question); without one of them it cannot answer."""
    texts: tuple[str, ...] = ()
    """Names that a model with a text side compares every second with (``Features.similarity``), in index order; none by default."""
    splits_note: str = ""
    """One line that reports print beside the scores: known overlaps, removed or repaired records."""

    @abstractmethod
    def experiences(self) -> tuple[Experience, ...]:
        """Return the experiences that this task contributes to a stream: one whole task, or its increments."""

    @abstractmethod
    def dataset(self, split: str) -> Dataset:
        """Return the samples of ``split``."""

    @abstractmethod
    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module | None:
        """Return a module ``(features, batch) -> Outputs``, or ``None`` where the model reads out itself."""

    def widen(self, head: nn.Module, experience: Experience) -> nn.Module:
        """Return the head for a further experience of the same task; a growing answer list replaces it by a wider one."""
        return head

    def unreadable(self, inputs: Mapping[str, Tensor]) -> str:
        """Return why the head cannot answer another task's samples, or nothing where it can.

        Asked by methods that let old heads answer new samples. By default it needs the inputs :attr:`needs`, by name; a task
        whose head is made for one number of frames looks at their shapes as well.

        Args:
            inputs: a batch's inputs as the front ends deliver them, ``[b, T, …]``.
        """
        lacking = [name for name in self.needs if name not in inputs]
        return f"its head needs {', '.join(lacking)}" if lacking else ""

    @abstractmethod
    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the negative log-likelihood per sample ``[b]``: Fisher information, loss-aware replay, default loss."""

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return named scalar parts of the loss, means over :meth:`units`; a function of outputs and targets only."""
        return {"nll": self.nll(outputs, targets).mean()}

    def units(self, targets: Mapping[str, Tensor]) -> int:
        """Return the denominator of the loss: samples by default; segments or supervised tokens where those count."""
        return len(next(iter(targets.values())))

    @abstractmethod
    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return predictions ``[b, …]`` that are enough to compute every metric without a forward pass."""

    @abstractmethod
    def score(self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction]) -> dict[str, float]:
        """Return all metrics over a whole split, keyed by sample key; includes :attr:`primary`."""

    @abstractmethod
    def controls(self, train: Mapping[str, Prediction], test: Mapping[str, Prediction]) -> dict[str, dict[str, float]]:
        """Return name → metrics on ``test`` of trivial predictors, fitted on ``train`` alone, and of :attr:`oracles`."""

    def table(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """Return the result block as (label, formatted value) rows in the order that the task's community prints."""
        return [(name, f"{value:.2f}") for name, value in metrics.items()]

    def examples(
        self,
        predictions: Mapping[str, Prediction],
        targets: Mapping[str, Prediction],
        dataset: Dataset,
    ) -> Sequence[Example]:
        """Return what a report shows of these few samples (:mod:`avcl_core.evaluation.examples`); nothing by default."""
        return ()

    def groups(self, key: str, target: Prediction) -> tuple[str, ...]:
        """Return the groups of samples that this one belongs to (class, type of question) in usage statistics; none by default."""
        return ()

    def pack(self, prediction: Prediction) -> dict[str, Any]:
        """Return a JSON-storable form of one prediction; dense masks override this."""
        return {name: value.tolist() for name, value in prediction.items()}
