"""A batch: samples of one task with one payload shape; what prediction may see is a narrower view of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Outputs = dict[str, Tensor]
"""What a head returns: name → tensor, batch first; the kinds are declared by ``Task.fields``."""


@dataclass(frozen=True)
class Batch:
    """Samples of one task.

    Attributes:
        task: name of the task; never mixed within a batch.
        keys: one sample key per row.
        inputs: modality → tensor ``[b, …]`` as the tower's front end delivers it, plus task inputs such as a question.
        targets: target name → tensor ``[b, …]``.
        present: modality → bool ``[b]``, or ``[b, T]`` for single frames; a modality that is not listed is present in every sample.
        experience: name of the experience the samples come from; ``None`` where the task id is hidden.
        stored: what a replay memory kept beside the sample (dark logits, frame indices), ``[b, …]``.
        share: fraction of the whole step's loss units that this batch carries. A mean loss is multiplied by it, so that
            micro-batches and ranks add up to the loss of the whole step; the replayed batches of a step share 1.
        row_share: the same fraction counted in samples, for terms that are means over samples: distillation, ``nll``.
        seeds: one per sample while training, else empty: what a model draws for a sample (augmentation, router noise) is seeded
            with it, so that it depends neither on micro-batches nor on ranks.
        media: one per sample, equal for samples that show and sound the same (questions about one video); empty where that is not known.
        whole: every rank holds all of these samples (replayed ones under a coupled loss), so there is nothing to gather.
    """

    task: str
    keys: tuple[str, ...]
    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    present: Mapping[str, Tensor] = field(default_factory=dict)
    experience: str | None = None
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    share: float = 1.0
    row_share: float = 1.0
    seeds: tuple[int, ...] = ()
    media: tuple[str, ...] = ()
    whole: bool = False

    def __len__(self) -> int:
        return len(self.keys)

    def _map(self, change) -> Batch:
        groups = {name: {k: change(v) for k, v in getattr(self, name).items()} for name in _TENSOR_GROUPS}
        return replace(self, **groups)

    def select(self, index: Sequence[int]) -> Batch:
        """Return the rows ``index`` in that order, for routing and for regression over stored samples."""
        rows = torch.as_tensor(list(index), dtype=torch.long)
        picked = self._map(lambda value: value[rows.to(value.device)])
        names = {
            name: tuple(getattr(self, name)[int(i)] for i in index)
            for name in ("keys", "seeds", "media")
            if getattr(self, name)
        }
        return replace(picked, **names)

    def distinct(self) -> tuple[list[int], list[int]] | None:
        """Return the first row of each of the media, and for every row its number among them; ``None`` where all differ."""
        first = {media: row for row, media in reversed(list(enumerate(self.media)))}
        if len(first) == len(self.media):
            return None
        rows = sorted(first.values())
        number = {self.media[row]: i for i, row in enumerate(rows)}
        return rows, [number[media] for media in self.media]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on ``device``."""
        return self._map(lambda value: value.to(device, non_blocking=True))

    def question(self, hidden: bool) -> Batch:
        """Return what prediction may see: no targets, nothing stored and, when ``hidden``, no experience."""
        return replace(self, targets={}, stored={}, experience=None if hidden else self.experience)


_TENSOR_GROUPS = ("inputs", "targets", "present", "stored")


def concatenate(outputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join dictionaries of batch-first tensors row-wise, so that one coupled loss can see current and replayed samples."""
    return {name: torch.cat([part[name] for part in outputs]) for name in outputs[0]}
