"""The loss terms of AVQACL (Wu et al., CVPR 2025; avqacl_moe.md 3.9), each per sample, with the corrections of section 8."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from avcl_core.batch import Outputs
from avcl_core.methods.distances import distance


def answer_sums(logits: Tensor, targets: Tensor, old: int) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropies of new answers and of old answers, each among its own kind.

    New answers are columns ``old`` and up, their targets less ``old``; old answers keep the columns below (8-23). In the first
    increment, ``old`` = 0, all answers are new.

    Args:
        logits: ``[b, answers]``.
        targets: indices ``[b]``.
        old: answers before the increment.
    """
    new = targets >= old
    nothing = logits.sum() * 0
    fresh, known = (
        functional.cross_entropy(part, aim, reduction="sum") if len(aim) else nothing
        for part, aim in ((logits[new, old:], targets[new] - old), (logits[~new, :old], targets[~new]))
    )
    return fresh, known


def question_distance(student: Outputs, teacher: Outputs) -> Tensor:
    """Return 1 − cos(q, q of the teacher) per sample ``[b]``."""
    return 1 - functional.cosine_similarity(student["question"], teacher["question"].detach(), dim=-1)


def slice_distances(student: Outputs, teacher: Outputs, columns: Sequence[int], temperature: float) -> Tensor:
    """Return Σ over previous increments of T²·KL(teacher ‖ student) on the columns that the increment brought ``[b]``.

    An increment that brought one column or none holds nothing: there is no distribution over it.

    Args:
        columns: answers after each previous increment, the first included: ``[n₁, n₂, …]`` are slices 0…n₁, n₁…n₂, ….
    """
    total = torch.zeros(len(student["answer"]), device=student["answer"].device)
    for begin, end in zip([0, *columns], columns, strict=False):
        if end - begin > 1:
            old = teacher["answer"][:, begin:end]
            total = total + distance("classes", student["answer"][:, begin:end], old, temperature)
    return total


def structure_distance(student: Outputs, teacher: Outputs) -> Tensor:
    """Return the sum of three mean squared errors per sample ``[b]``, between first differences of the student and of the teacher.

    The sequences before pooling, each vector at length 1: sound along time, frames along time, frames along the feature dimension
    (8-27: the released code takes differences between the samples of a batch, after pooling). A sequence of one has no difference.
    """
    total = torch.zeros(len(student["question"]), device=student["question"].device)
    for name, dim in (("heard", 1), ("seen", 1), ("seen", 2)):
        if student[name].shape[dim] < 2:
            continue
        own, given = (
            functional.normalize(part, dim=-1).diff(dim=dim) for part in (student[name], teacher[name].detach())
        )
        total = total + (own - given).square().flatten(1).mean(1)
    return total
