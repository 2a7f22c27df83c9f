"""The experts and anchors of AVQACL-MoE's authors as owned tensors of anchor experts (avqacl_moe.md 3.4, 4.4, Appendix A)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avcl_core.errors import ConfigError, IntegrityError, nearest
from avcl_core.importing.foreign import Foreign
from avcl_core.importing.keymap import KeyMap, Reader
from avcl_core.ownership import Owners

EXPERT = KeyMap([(r"parts\.language_(\d+)_mlp_swap\.slots\.[^.]+\.mlp\.(.+)", r"model.layers.\1.mlp.\2")])
ANCHOR = re.compile(r"anchors\.slots\.[^.]+\.([^.]+)\.(count|mean|spread|centres|scatter)")
SOURCES: Mapping[str, tuple[str, ...]] = {"visual": ("video", "image"), "audio": ("audio",), "text": ("text",)}
"""What is compared → the authors' keys; frames and single images have one tower and one reduction."""
KNOWN = 1
"""Count of an imported anchor: the files do not say of how many samples it is the mean, and any number but 0 says that it is known.
Their spread is not in the files either and stays 0; no score that published anchors can have reads one of the two."""


@dataclass(frozen=True)
class Files:
    """The two files of one experience."""

    expert: Foreign
    anchor: Foreign


@dataclass(frozen=True)
class Experts:
    """What a model is loaded with.

    Attributes:
        state: every owned tensor of the model.
        dropped: keys of anchor files that the model does not compare, by file.
    """

    state: dict[str, Tensor]
    dropped: tuple[str, ...]


def expert_tensors(files: Mapping[str, Files], owners: Owners, experiences: Sequence[str]) -> Experts:
    """Read every owned tensor of a grown model, each experience's from its own files, told by name and never by position.

    Args:
        files: experience → its files.
        owners: of the model, with all ``experiences`` grown.

    Raises:
        ConfigError: experiences without files, or files of experiences that the stream does not have.
        IntegrityError: a key is missing, unknown or of another shape, or the model is not the published one.
    """
    refuse_other_names(files, experiences)
    state: dict[str, Tensor] = {}
    dropped: list[str] = []
    for name in experiences:
        expected = owners.state((f"expert:{name}",))
        anchors = {key: tensor for key, tensor in expected.items() if key.startswith("anchors.")}
        weights = {key: tensor for key, tensor in expected.items() if key not in anchors}
        reader = Reader(str(files[name].expert.file), files[name].expert.tensors)
        state |= reader.take(weights, EXPERT.keys)
        reader.rest(EXPERT.is_dead)
        found, left = anchor_tensors(files[name].anchor, anchors)
        state |= found
        dropped += [f"{files[name].anchor.file.name}: {key}" for key in left]
    if other := sorted(owners.rows.keys() - state.keys()):
        raise IntegrityError(
            f"{other[0]}: no file of an expert has it; configure the model as published, with model.expert.per=experience"
        )
    return Experts({name: state[name] for name in owners.rows}, tuple(dropped))


def refuse_other_names(given: Mapping[str, object], experiences: Sequence[str]) -> None:
    """Raise ConfigError unless there is something for every experience and for nothing else."""
    for name in given:
        if name not in experiences:
            raise ConfigError(f"{name!r} is no experience of the stream{nearest(name, tuple(experiences))}")
    if lacking := [name for name in experiences if name not in given]:
        raise ConfigError(
            f"no files of {', '.join(lacking)}; the stream has {', '.join(experiences)}: each needs its expert and its anchor"
        )


def anchor_tensors(foreign: Foreign, expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return an experience's anchors, the rows of the authors' layout averaged, and the keys that nothing compares.

    Args:
        expected: our names below one slot → tensors of the wanted shape.
    """
    where, tensors = str(foreign.file), foreign.tensors
    known = {key for keys in SOURCES.values() for key in keys}
    if odd := sorted(tensors.keys() - known):
        raise IntegrityError(
            f"{where}: {', '.join(odd)}: the published layout has {', '.join(sorted(known))} and no other key"
        )
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, wanted in expected.items():
        match = ANCHOR.fullmatch(name)
        if match is None:
            raise IntegrityError(f"{where}: the published layout has nothing for {name}")
        modality, what = match[1], match[2]
        keys = [key for key in SOURCES[modality] if key in tensors]
        if len(keys) != 1:
            having = " and ".join(keys) or f"none of {', '.join(SOURCES[modality])}"
            raise IntegrityError(
                f"{where}: has {having} for the anchor {modality}; expected one, or leave {modality} out of model.anchors.reads"
            )
        used.add(keys[0])
        if what in ("centres", "scatter") and wanted.numel():
            raise IntegrityError(
                f"{where}: published anchors are means, which have no {what}; choose model.anchors.score=mean_cosine"
            )
        if what == "mean":
            found[name] = _pooled(where, keys[0], tensors[keys[0]], wanted)
        else:
            found[name] = torch.full_like(wanted, KNOWN) if what == "count" else torch.zeros_like(wanted)
    return found, tuple(sorted(tensors.keys() - used))


def _pooled(where: str, key: str, rows: Tensor, wanted: Tensor) -> Tensor:
    """The mean over rows ``[n, D]``, or ``[D]`` as it is; routing compares nothing else of them."""
    width = len(wanted)
    if rows.ndim not in (1, 2) or rows.shape[-1] != width or not rows.numel():
        raise IntegrityError(
            f"{where}: {key} is {'×'.join(map(str, rows.shape)) or 'scalar'}; expected {width} or rows of {width}"
        )
    if not rows.is_floating_point() or not bool(torch.isfinite(rows).all()):
        raise IntegrityError(f"{where}: {key} has values that are not finite numbers; the file is damaged")
    mean = rows.double().mean(0) if rows.ndim == 2 else rows.double()
    return mean.to(wanted.dtype)
