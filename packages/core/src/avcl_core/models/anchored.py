"""Anchored experts: one per experience, each taught by its own alone, and found for hidden samples by what these are like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError, DataError
from avcl_core.models.base import Model
from avcl_core.moe.anchors import Anchors, Pooled
from avcl_core.moe.feedforward import Layers
from avcl_core.moe.scores import Discriminant, MeanCosine, NearestCentre, Score
from avcl_core.routing import BASE, Routes
from avcl_core.stream import Experience

if TYPE_CHECKING:
    from avcl_core.methods.base import Data

Read = Literal["visual", "audio", "text"]
"""What a router compares: patch tokens of the frames, tokens of the sound, words of the question."""
READS: tuple[Read, ...] = ("visual", "audio", "text")


class ExpertOptions(Options):
    """What an expert is.

    Attributes:
        layers: blocks of a tower whose MLP it replaces: ``even``, as published, ``odd``, ``all`` or their numbers.
        rank: of low-rank differences to the frozen MLP; ``null``: a whole copy, as published.
        scale: factor on low-rank differences.
        per: one for each ``experience``, or one for ``all``: sequential fine-tuning, and joint training.
        disk: folder in which experts rest that neither learn nor answer; ``null``: all stay on the device. Predictions ask one
            expert after another, so each is read once for a test set.
    """

    layers: Layers = "even"
    rank: PositiveInt | None = None
    scale: PositiveFloat = 1.0
    per: Literal["experience", "all"] = "experience"
    disk: Path | None = None


class AnchorOptions(Options):
    """How a sample of a hidden experience finds its expert (avqacl_moe.md 3.5).

    Attributes:
        score: ``mean_cosine``, as published; ``centres``: the nearest of K-Means centres; ``lda``: linear discriminants.
        reads: what is compared; a sample has a score in each of these that it has.
        weights: of what is compared; by default 1.
        centre: cosines after subtracting the mean of all anchors.
        count: K-Means centres of an experience, the best of ``restarts`` runs.
        shrinkage: of the discriminants' covariance towards its mean variance.
        lost: what happens to samples that have nothing of what is compared: they ``fail`` the evaluation, or the frozen model
            answers them (``base``), which the report counts.
    """

    score: Literal["mean_cosine", "centres", "lda"] = "mean_cosine"
    reads: Annotated[tuple[Read, ...], Field(min_length=1)] = READS
    weights: Mapping[Read, NonNegativeFloat] = {}
    centre: bool = False
    count: PositiveInt = 16
    restarts: PositiveInt = 8
    shrinkage: Annotated[float, Field(gt=0, le=1)] = 1e-4
    lost: Literal["fail", "base"] = "fail"

    def rule(self) -> Score:
        """Return the score that is asked for."""
        if self.score == "lda":
            return Discriminant(self.shrinkage)
        return NearestCentre() if self.score == "centres" else MeanCosine(self.centre)

    def make(self, widths: Mapping[str, int]) -> Anchors:
        """Return anchors that nothing is known of yet.

        Args:
            widths: what can be compared → D of its features.

        Raises:
            ConfigError: what is to be compared is not among these.
        """
        unknown = [name for name in self.reads if name not in widths]
        if unknown:
            raise ConfigError(f"model.anchors.reads names {unknown}; this model compares {sorted(widths)}")
        return Anchors(
            {name: widths[name] for name in self.reads}, self.rule(), {str(n): w for n, w in self.weights.items()},
            centres=self.count if self.score == "centres" else 0, restarts=self.restarts, scatter=self.score == "lda",
        )  # fmt: skip


class AnchoredOptions(Options):
    """Configuration that all models with anchored experts have.

    Attributes:
        expert: what an expert is.
        anchors: how it is found.
    """

    expert: ExpertOptions = ExpertOptions()
    anchors: AnchorOptions = AnchorOptions()


class Anchored(Model):
    """Experts and anchors by experience (avqacl_moe.md 3.3 to 3.5). A subclass places the experts and makes ``anchors``.

    What a hidden sample is like is compared with the anchors of all experiences so far, once, and the most similar one's expert
    answers. Experts and anchors know only their own experience, so the order of experiences does not matter to them.
    """

    Config = AnchoredOptions
    options: AnchoredOptions
    separate = True
    anchors: Anchors

    def slot(self, experience: Experience) -> str:
        """Return the experience's own expert, or the one for all."""
        return experience.name if self.options.expert.per == "experience" else "all"

    def grow(self, experience: Experience) -> None:
        """Make the expert of an experience, and room for its anchors."""
        super().grow(experience)
        self.anchors.grow(self.slot(experience))

    def calibrate(self, experience: Experience, data: Data, hidden: bool) -> None:
        """Compute the experience's anchors, where prediction will ask for them."""
        if hidden and self.options.expert.per == "experience":
            self.anchors.fit(self.slot(experience), (self.pooled(batch) for batch in data.batches()))

    def pooled(self, batch: Batch) -> Pooled:
        """Return what samples are like: means over the valid tokens of what frozen towers make of them ``[b, D]``."""
        raise NotImplementedError(f"{type(self).__name__}.pooled")

    def route(self, batch: Batch) -> tuple[str, ...]:
        """Return the expert of every sample: its experience's where that is given, else the most similar one."""
        found = self.routes(batch)
        return ("all",) * len(batch) if found is None else found.slots

    def routes(self, batch: Batch, reads: Sequence[str] = ()) -> Routes | None:
        """Return the expert of every sample and its scores: means over, and in, what anchors compare; nothing with one expert for all.

        Raises:
            DataError: samples have nothing that is compared, and ``anchors.lost`` says ``fail``.
            ConfigError: the anchors know nothing of ``reads``.
        """
        if self.options.expert.per == "all":
            return None
        if batch.experience is not None:
            return Routes((batch.experience,) * len(batch), tuple(self.slots))
        unknown = [name for name in reads if name not in self.anchors.widths]
        if unknown:
            raise ConfigError(
                f"reads={','.join(reads)}: anchors know {', '.join(self.anchors.widths)}, not {unknown[0]}"
            )
        compared = self.anchors.compare(self.pooled(batch), reads)
        scores = self.anchors.together(compared, len(batch))
        chosen = self.anchors.choose(scores)
        lost = [key for key, slot in zip(batch.keys, chosen, strict=True) if slot is None]
        if lost and self.options.anchors.lost == "fail":
            raise DataError(
                f"{len(lost)} samples have none of {list(self.anchors.widths)} to be routed by, for example {lost[0]!r}; "
                "remove them, or let the frozen model answer them with model.anchors.lost=base"
            )
        return Routes(tuple(slot or BASE for slot in chosen), self.anchors.known, {"all": scores, **compared})
