"""How far one output is from another of its kind: what distillation and dark replay minimise."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from avcl_core.task import Kind

EXCLUSIVE: tuple[Kind, ...] = ("classes", "tokens")
INDEPENDENT: tuple[Kind, ...] = ("labels", "mask")


def distance(kind: Kind, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the distance per sample ``[b]``, in float32; 0 where both are equal, and no gradient to the teacher.

    ``classes``, ``tokens``: logits in the last dimension; KL(teacher ‖ student) of their softmax at ``temperature``, times its
    square (Hinton et al. 2015), a mean over positions (seconds, tokens). ``labels``, ``mask``: independent logits; binary
    cross-entropy with the teacher's probabilities less their entropy (the same gradient), a mean over logits or pixels.
    ``value``: squared error, a mean over values.

    A head that was widened since has more classes or labels than its teacher: those in the teacher's place are compared.

    Args:
        kind: how the output is to be read, from ``Task.fields``.
        student, teacher: outputs ``[b, …]`` of the same samples.

    Raises:
        ValueError: the shapes differ in more than added classes.
    """
    student, teacher = student.float(), teacher.detach().float()
    if kind in ("classes", "labels", "tokens") and student.ndim > 1 and student.shape[-1] > teacher.shape[-1]:
        student = student[..., : teacher.shape[-1]]
    if student.shape != teacher.shape:
        raise ValueError(
            f"outputs of kind {kind} cannot be compared: {tuple(student.shape)} now, {tuple(teacher.shape)} from the teacher"
        )
    if kind in EXCLUSIVE:
        own, given = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
        each = temperature**2 * functional.kl_div(own, given, log_target=True, reduction="none").sum(-1)
    elif kind in INDEPENDENT:
        likely = teacher.sigmoid()
        cross, entropy = (
            functional.binary_cross_entropy_with_logits(logits, likely, reduction="none")
            for logits in (student, teacher)
        )
        each = cross - entropy
    else:
        each = (student - teacher).square()
    return each.reshape(len(each), -1).mean(1)
