"""Configuration of training: one set of numbers for every method."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from avcl_core.config.options import Options
from avcl_core.errors import nearest

OWNER_KINDS = ("shared", "router", "task", "expert", "head")
"""What an owner's name begins with (:func:`avcl_core.ownership.own`)."""


class TrainingOptions(Options):
    """How each session is trained.

    Attributes:
        epochs: epochs per session.
        batch_size: samples per optimiser step, over all ranks.
        micro_batch: samples per backward pass; ``None`` for the whole batch.
        lr: learning rate; a method's groups scale it.
        rates: owner pattern (``head:*``, ``shared``) → factor on the learning rate of what it matches first; 1 for the rest. The
            factor is on the whole schedule, ``lr_min`` included.
        optimizer: ``adamw``, whose weight decay is decoupled from the gradient, or ``adam``, where it is an L2 term of it.
        weight_decay: the decay, of either form.
        schedule: ``constant``, ``cosine`` from ``lr`` to ``lr_min`` over the session, or ``step``: times ``decay`` after every
            ``decay_every`` epochs.
        schedule_by: the cosine falls at every ``step``, or keeps through each ``epoch`` the value of its first step.
        lr_min: learning rate at the end of the cosine; the warm-up begins below it.
        together: whether samples with the same media (questions about one video) stand together in batches, so that a model can
            compute the media once. Batches are then less mixed: take larger ones.
        warmup: fraction of the session's steps with linearly rising learning rate.
        clip: largest gradient norm; ``None`` for no clipping.
        selection: ``best`` epoch on the experience's selection split, or the ``last`` one.
        patience: epochs without a better selection score after which a session ends; ``None``: all epochs.
        evaluation_batch: samples per forward pass in evaluation.
        log_every: steps between two logged losses.
        checkpoint_every: steps between two commits within an epoch; epochs and phases always commit.
        tasks: task → what is different in sessions of that task alone; of a session of several tasks ``batch_size``, ``together``,
            ``epochs``, how often it goes through the task's samples, and ``lr`` and ``rates`` of what the task owns.
            ``evaluation_batch`` holds wherever the task is evaluated or passed over by a hook.
    """

    epochs: PositiveInt = 8
    batch_size: PositiveInt = 16
    micro_batch: PositiveInt | None = None
    lr: PositiveFloat = 1e-3
    rates: dict[str, PositiveFloat] = Field(default_factory=dict)
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: NonNegativeFloat = 0.01
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    schedule_by: Literal["step", "epoch"] = "step"
    lr_min: NonNegativeFloat = 0.0
    decay: float | None = Field(default=None, gt=0, le=1)
    decay_every: PositiveInt | None = None
    together: bool = False
    warmup: float = Field(default=0.05, ge=0, lt=1)
    clip: PositiveFloat | None = 1.0
    selection: Literal["best", "last"] = "best"
    patience: PositiveInt | None = None
    evaluation_batch: PositiveInt = 16
    log_every: PositiveInt = 1
    checkpoint_every: PositiveInt = 50
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def of(self, tasks: Collection[str]) -> TrainingOptions:
        """Return the options of a session that teaches ``tasks``: one task's own, or these where there are several."""
        different = self.tasks.get(next(iter(tasks)), {}) if len(tasks) == 1 else {}
        return TrainingOptions(**{**self.model_dump(exclude={"tasks"}), **different}) if different else self

    def factor(self, owner: str) -> float:
        """Return the factor on the learning rate of what ``owner`` owns."""
        return next((factor for pattern, factor in self.rates.items() if fnmatch.fnmatchcase(owner, pattern)), 1.0)

    @model_validator(mode="after")
    def _complete(self) -> TrainingOptions:
        for name in ("decay", "decay_every"):
            if (getattr(self, name) is not None) != (self.schedule == "step"):
                raise ValueError(
                    f"schedule {self.schedule} {'needs' if self.schedule == 'step' else 'takes no'} {name}"
                )
        if self.schedule != "cosine":
            for name, plain in (("schedule_by", "step"), ("lr_min", 0)):
                if getattr(self, name) != plain:
                    raise ValueError(f"schedule {self.schedule} takes no {name}; it belongs to cosine")
        if self.lr_min > self.lr:
            raise ValueError(f"lr_min {self.lr_min:g} is above lr {self.lr:g}; a cosine falls from lr to lr_min")
        for pattern in self.rates:
            if pattern.partition(":")[0] not in (*OWNER_KINDS, "*"):
                raise ValueError(f"rates: {pattern!r} matches no owner; expected {', '.join(OWNER_KINDS)} or *")
        if self.patience is not None and self.selection != "best":
            raise ValueError("patience needs selection best: without a selection no epoch is better than another")
        for name, different in self.tasks.items():
            unknown = sorted(different.keys() - (TrainingOptions.model_fields.keys() - {"tasks"}))
            if unknown:
                raise ValueError(
                    f"tasks.{name}.{unknown[0]} is unknown{nearest(unknown[0], [*TrainingOptions.model_fields])}"
                )
            self.of({name})
        return self
