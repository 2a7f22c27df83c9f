"""What does not learn stays as it is to the last bit, whatever the modes and flags say: digests from before and after are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from avcl_core.errors import RunError
from avcl_core.methods.base import Method
from avcl_core.models.base import Model
from avcl_core.ownership import Owners, digest_tensors, matches
from avcl_core.stream import Experience

SHOWN = 5
"""How many changed tensors an error names."""


def learning(method: Method, experiences: Iterable[Experience]) -> tuple[str, ...]:
    """Return the owner patterns that learn while ``experiences`` are learnt together."""
    return tuple(pattern for experience in experiences for pattern in method.active(experience))


def resting_digests(model: Model, patterns: Iterable[str]) -> dict[str, str]:
    """Return name → SHA-256 of every owned parameter and buffer whose owner matches none of ``patterns``."""
    patterns = tuple(patterns)
    rows = (row for row in Owners(model).rows.values() if not matches(row.owner, patterns))
    return {row.name: digest_tensors({row.name: row.tensor}) for row in rows}


def refuse_drift(where: str, model: Model, frozen: Mapping[str, str], resting: Mapping[str, str]) -> None:
    """Compare the model with its digests from before.

    Args:
        where: what was going on, for the message.
        frozen: name → digest of tensors without an owner.
        resting: name → digest of tensors whose owner does not learn now (:func:`resting_digests`).

    Raises:
        RunError: a tensor changed or is gone; it names tensors and owners.
    """
    owners = Owners(model)
    changed = _changed(frozen, {name: owners.frozen.get(name) for name in frozen})
    if changed:
        raise RunError(
            f"{where}: {len(changed)} frozen tensors changed, first {changed[0]}; give what learns an owner, and"
            " leave the rest as it was loaded"
        )
    rows = {name: owners.rows.get(name) for name in resting}
    changed = _changed(resting, {name: None if row is None else row.tensor for name, row in rows.items()})
    if changed:
        named = [f"{name} ({row.owner})" if (row := rows[name]) else f"{name} (gone)" for name in changed[:SHOWN]]
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise RunError(
            f"{where}: {len(changed)} tensors changed whose owners do not learn now: {', '.join(named)}{more}; "
            "let active() return the owners, or leave their tensors alone from the first step to the end of after()"
        )


def _changed(before: Mapping[str, str], now: Mapping[str, Tensor | None]) -> Sequence[str]:
    found = {name: None if tensor is None else digest_tensors({name: tensor}) for name, tensor in now.items()}
    return sorted(name for name, digest in before.items() if found[name] != digest)
