"""What evaluations of a trained model in other ways are called; they tell what routing and experts are worth."""

from __future__ import annotations

EXPERIENCE_GIVEN = "experience given"
"""What a model predicts if it need not find a sample's experience."""
WITHOUT_EXPERTS = "without experts"
"""What the frozen base model predicts alone."""
_ALONE = " for all"


def only(slot: str) -> str:
    """Return the name of the ablation in which a slot answers all samples."""
    return slot + _ALONE


def slot_of(name: str) -> str | None:
    """Return the slot that answers all samples in the ablation ``name``; ``None`` if it is another kind of ablation."""
    return name.removesuffix(_ALONE) if name.endswith(_ALONE) else None
