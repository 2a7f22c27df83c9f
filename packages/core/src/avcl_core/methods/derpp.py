"""DER++ (Buzzega et al. 2020): remembered samples are replayed against the outputs that they had, and against their targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from avcl_core.batch import Batch
from avcl_core.errors import ConfigError
from avcl_core.methods.base import Data
from avcl_core.methods.distances import distance
from avcl_core.methods.er import ExperienceReplay, ReplayOptions
from avcl_core.models.base import Model
from avcl_core.ownership import evaluation_mode
from avcl_core.stream import Experience
from avcl_core.task import Kind, Task

MaskForm = Literal["float32", "float16", "int8"]
STEPS = 10
"""Steps of an int8 logit within 1: logits of masks are kept in tenths, up to ±12.7 (probabilities down to 3e-6)."""


class DarkReplayOptions(ReplayOptions):
    """Configuration of :class:`DarkReplay`.

    Attributes:
        alpha: weight of the distance between what the replayed samples' outputs are and what they were.
        beta: weight of their loss at their targets.
        masks: how logits of masks are kept, everything else being kept in float32. A sample with 5 masks of 224 × 224 takes
            1.0 MB in float32, 0.5 MB in float16 and 0.25 MB in ``int8`` (tenths of a logit); every commit writes them.
        megabytes: largest size of all stored outputs.
    """

    alpha: NonNegativeFloat = 0.5
    beta: NonNegativeFloat = 0.5
    masks: MaskForm = "float16"
    megabytes: PositiveInt = 512


class DarkReplay(ExperienceReplay):
    """Dark experience replay with targets: current loss + α · distance to stored outputs + β · replayed loss.

    Outputs are those that ``Task.fields`` declares, compared by their kinds (:mod:`avcl_core.methods.distances`). They are stored
    in eval mode when an experience ends; in the paper a reservoir is filled, and logits stored, during training. One draw serves
    both terms, which the paper draws apart.
    """

    Config = DarkReplayOptions

    def __init__(self, model: Model, tasks: Mapping[str, Task], options: DarkReplayOptions, seed: int) -> None:
        super().__init__(model, tasks, options, seed)
        self.alpha, self.beta, self.megabytes = options.alpha, options.beta, options.megabytes
        self.masks: MaskForm = options.masks

    def remembered(self, batch: Batch, prefix: str) -> dict[str, Tensor]:
        """Return β times the loss parts of a replayed batch, and α times the distance of its outputs, ``<prefix>dark``."""
        ctx = self.context(batch, training=True)
        outputs = self.model(batch, ctx)
        parts = {n: self.beta * value for n, value in self.relearnt(outputs, batch, ctx, prefix).items()}
        kinds = self.tasks[batch.task].fields
        apart = [distance(kind, outputs[name], unpacked(batch.stored[name])).mean() for name, kind in kinds.items()]
        parts[f"{prefix}dark"] = self.alpha * torch.stack(apart).sum() * batch.row_share
        return parts

    def before(self, experience: Experience, data: Data) -> None:
        """Refuse an experience whose outputs would not fit, before it is learnt.

        Raises:
            ConfigError: they take more than ``megabytes``.
        """
        keys = self.memory.candidates(experience.name, data.keys("train"))
        (one,) = self.outputs(data, keys[:1]).values()
        size = sum(value.nbytes for value in one.values())
        total = self.memory.bytes_beside(experience.name) + len(keys) * size
        if total > self.megabytes * 2**20:
            raise ConfigError(
                f"method.memory: outputs of {experience.name} take {size / 2**20:.3g} MB per sample, {total / 2**20:.4g} MB with "
                f"all others, more than method.megabytes={self.megabytes}; remember fewer samples, or set method.masks=int8"
            )

    def after(self, experience: Experience, data: Data) -> None:
        """Remember samples of the finished experience with their outputs."""
        keys = data.keys("train")
        self.memory.add(experience.name, keys, self.outputs(data, self.memory.candidates(experience.name, keys)))

    def outputs(self, data: Data, keys: list[str]) -> dict[str, dict[str, Tensor]]:
        """Return key → outputs of training samples as they are stored, on the host.

        Every rank computes a part of them and gets all: each output is computed once, so that no two ranks replay against
        different ones.
        """
        found: dict[str, dict[str, Tensor]] = {}
        mine = keys[self.collective.rank :: self.collective.world]
        with torch.no_grad(), evaluation_mode(self.model):
            for batch in data.batches(keys=mine):
                outputs = self.model(batch, self.context(batch, training=False))
                kinds = self.tasks[batch.task].fields
                stored = {name: packed(kind, outputs[name], self.masks).cpu() for name, kind in kinds.items()}
                found |= {k: {n: v[row].clone() for n, v in stored.items()} for row, k in enumerate(batch.keys)}
        joined: dict[str, dict[str, Tensor]] = {}
        for part in self.collective.join(found):
            joined |= part
        return joined


def packed(kind: Kind, outputs: Tensor, masks: MaskForm) -> Tensor:
    """Return outputs as they are stored: masks in the form asked for, everything else in float32."""
    outputs = outputs.float()
    if kind != "mask" or masks == "float32":
        return outputs
    if masks == "float16":
        return outputs.clamp(-65504, 65504).half()
    return (outputs * STEPS).round().clamp(-127, 127).to(torch.int8)


def unpacked(stored: Tensor) -> Tensor:
    """Return stored outputs in float32."""
    return stored.float() / STEPS if stored.dtype == torch.int8 else stored.float()
