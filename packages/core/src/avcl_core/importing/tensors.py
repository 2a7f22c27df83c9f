"""The trained tensors of a foreign checkpoint under the names of the model that they are loaded into, all of them and no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from avcl_core.importing.adapters import DEAD, OURS, Adapters, is_adapter, missing_gate
from avcl_core.importing.foreign import Foreign
from avcl_core.importing.keymap import KeyMap, Reader
from avcl_core.importing.published import Published
from avcl_core.importing.towers import PREFIXES
from avcl_core.models.base import Model
from avcl_core.ownership import Owners

_COUNTERS = KeyMap([], dead=DEAD)


@dataclass(frozen=True)
class Trained:
    """What a model is loaded with.

    Attributes:
        state: every owned tensor of the model.
        dropped: authors' keys outside the towers that were not used.
        fresh: names of ours that kept the model's own values, since the native form has tensors of its own.
    """

    state: dict[str, Tensor]
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]


def trained_tensors(
    foreign: Foreign, about: Published, adapters: Adapters | None, model: Model, to_native: bool = False
) -> Trained:
    """Read every owned tensor of ``model`` from a checkpoint.

    Args:
        adapters: what its adapters are; nothing where the model has none.
        to_native: dense self-attention becomes latent attention, whose latent tokens stay the model's and whose gate is 0.

    Raises:
        IntegrityError: a key is missing, unknown or of another shape; the message names it.
    """
    reader = Reader(str(foreign.file), foreign.tensors)
    reader.used.update(key for key in foreign.tensors if key.startswith(tuple(PREFIXES.values())))
    expected = Owners(model).state()
    prefix = f"heads.{about.task}."
    heads = {name: tensor for name, tensor in expected.items() if name.startswith(prefix)}
    parts = {name: tensor for name, tensor in expected.items() if name not in heads}
    state = reader.take(heads, lambda name: about.head.keys(name.removeprefix(prefix)), surplus=about.surplus)
    fresh: dict[str, Tensor] = {}
    if adapters is not None:
        if to_native and adapters.options["uni_attention"] == "dense":
            fresh = _latent_attention(parts, adapters.options["cross_experts"])
        pairs = sorted({int(match[2]) for match in map(OURS.fullmatch, parts) if match})
        rest = {name: tensor for name, tensor in parts.items() if name not in fresh}
        state |= reader.take(rest, lambda name: adapters.keys(name, pairs), missing_gate) | fresh

    def dead(key: str) -> bool:
        if about.head.is_dead(key) or _COUNTERS.is_dead(key):
            return True
        if adapters is None:
            return about.foreign_adapters and is_adapter(key)
        return bool(fresh) and key.endswith(".gate_av") and ".singlemodal_experts." in key

    return Trained({name: state[name] for name in expected}, reader.rest(dead), tuple(fresh))


def _latent_attention(parts: Mapping[str, Tensor], cross: int) -> dict[str, Tensor]:
    """The attention of unimodal experts that no checkpoint with dense attention has: without effect until it is trained."""
    fresh = {}
    for name, tensor in parts.items():
        match = OURS.fullmatch(name)
        inside = match[4].split(".") if match else []
        if inside[:1] == ["experts"] and int(inside[1]) >= cross and inside[2] in ("latents", "inner_gate"):
            fresh[name] = torch.zeros_like(tensor) if inside[2] == "inner_gate" else tensor
    return fresh
