"""The towers inside a foreign checkpoint: its own weight files where they are not those of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

import shared_backbones
from avcl_core.config.run import TowerOptions
from avcl_core.errors import IntegrityError
from avcl_core.importing.foreign import Foreign
from avcl_core.training.checkpoint import file_digest
from shared_backbones.convert import htsat, swin_v2
from shared_backbones.errors import TowerError, WeightsError
from shared_backbones.registry import build
from shared_backbones.tower import Tower
from shared_backbones.weights import OPTIONAL, compare

PREFIXES: Mapping[Literal["visual", "audio"], str] = {"visual": "swin.", "audio": "htsat."}
"""Modality → prefix of the tower's keys in the authors' files."""
NAMES: Mapping[str, str] = {"visual": "swin_v2", "audio": "htsat"}


@dataclass(frozen=True)
class TowerWeights:
    """The tensors of one tower, under our names.

    Attributes:
        tensors: names below ``Tower.net``; empty where the file has no such tower.
        dropped: authors' keys that the tower does not use: class heads, and what follows from the geometry.
    """

    tensors: dict[str, Tensor]
    dropped: tuple[str, ...]


def shape_of(modality: str, options: TowerOptions) -> Tower:
    """Return the configured tower with shapes only; IntegrityError if it is not the one of the published models."""
    if options.name != NAMES.get(modality):
        raise IntegrityError(
            f"towers.{modality}.name: {options.name}; the published models have {NAMES.get(modality, 'no such tower')}"
        )
    try:
        return build(options.name, options.size, {"variant": options.variant} if options.variant else {}, device="meta")
    except TowerError as error:
        raise IntegrityError(f"towers.{modality}: {error}") from error


def tower_weights(foreign: Foreign, modality: Literal["visual", "audio"], shapes: Tower) -> TowerWeights:
    """Return the tower of ``modality`` in a checkpoint.

    Raises:
        IntegrityError: its keys or shapes are not those of the configured tower.
    """
    prefix = PREFIXES[modality]
    given = {name.removeprefix(prefix): tensor for name, tensor in foreign.tensors.items() if name.startswith(prefix)}
    if not given:
        return TowerWeights({}, ())
    found, dropped = _visual(given) if modality == "visual" else _audio(given)
    expected = shapes.net.state_dict()
    if faults := compare(expected, found):
        info = shapes.info
        raise IntegrityError(
            f"{foreign.file}: {prefix}* does not fit tower {info.name} ({info.size}, {info.variant}): {'; '.join(faults)}"
        )
    tensors = {name: tensor.to(expected[name].dtype) for name, tensor in found.items()}
    return TowerWeights(tensors, tuple(prefix + name for name in dropped))


def _visual(given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """timm 0.6 keeps a stage's down-sampling at its end, today's at the start of the next (avmoe.md 5.3)."""
    old = any(name.startswith("layers.0.downsample.") for name in given)
    found, dropped = {}, []
    for name, tensor in given.items():
        match = swin_v2.DOWNSAMPLE.fullmatch(name)
        if swin_v2.DROPPED.fullmatch(name):
            dropped.append(name)
        elif old and match:
            found[f"layers.{int(match[1]) + 1}.{match[2]}"] = tensor
        else:
            found[name] = tensor
    return found, dropped


def _audio(given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    found, dropped = htsat.translate_encoder(dict(given))
    return {f"audio_encoder.{name}": tensor for name, tensor in found.items()}, dropped


def differing(weights: TowerWeights, modality: str, options: TowerOptions) -> tuple[str, ...] | None:
    """Return the names in which a tower differs from the configured one; ``None`` where that one is not here to compare with.

    Raises:
        IntegrityError: the configured file is there and is not one of this tower.
    """
    if options.size == "full" and (options.checkpoint is None or not options.checkpoint.is_file()):
        return None
    given = {"variant": options.variant} if options.variant else {}
    try:
        tower = shared_backbones.create(options.name, size=options.size, checkpoint=options.checkpoint, **given)
    except WeightsError as error:
        raise IntegrityError(f"towers.{modality}: {error}") from error
    known = tower.net.state_dict()
    return tuple(
        name
        for name, tensor in weights.tensors.items()
        if name.rpartition(".")[2] not in OPTIONAL and not torch.equal(known[name].cpu(), tensor)
    )


def write_tower(weights: TowerWeights, shapes: Tower, foreign: Foreign, target: Path) -> str:
    """Write a tower's tensors as a file that ``towers.<modality>.checkpoint`` takes, and return its SHA-256."""
    info = shapes.info
    metadata = {
        "tower": info.name,
        "size": info.size,
        "variant": info.variant,
        "converter": "avmoe",
        "source": foreign.file.name,
        "source_sha256": foreign.sha256,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in weights.tensors.items()}, target, metadata=metadata
    )
    return file_digest(target)
