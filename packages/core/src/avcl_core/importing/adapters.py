"""What the mixture adapters of a foreign checkpoint are, by keys and shapes, and where each of our tensors is read from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avcl_core.errors import IntegrityError
from avcl_core.importing.keymap import KeyMap, Keys
from shared_backbones.tower import Tower

LIST = re.compile(r"(audio|vis)_(moe_)?adapter_blocks_p([12])\.(\d+)\.(.+)")
"""One tensor of an adapter list: modality, spelling, site, index of the kept pair, the rest (avmoe.md 5.5)."""
EXPERT = re.compile(r"(multimodal|singlemodal)_experts\.(\d+)\.(.+)")
SITES = {"1": "attn", "2": "mlp"}
MODALITIES = {"audio": "audio", "vis": "visual"}
OURS = re.compile(r"parts\.(visual|audio)_(\d+)_(attn|mlp)_add\.(.+)")
"""One of our tensors: modality, pair, site, the rest."""

INSIDE = KeyMap(
    [
        (r"align\.token\.(weight|bias)", r"conv_adapter.\1"),
        (r"align\.channel\.(weight|bias)", r"fc.\1"),
        (r"router\.fc1\.(weight|bias)", r"router.0.\1"),
        (r"router\.fc2\.(weight|bias)", r"router.2.\1"),
        (r"router\.fc3\.(weight|bias)", r"router.4.\1"),
    ]
)
IN_EXPERT = KeyMap(
    [
        (r"latents", r"my_tokens"),
        (r"output_gate", r"gate"),
        (r"attention\.(.+)", r"self_attention.\1"),
        (r"norm_before\.(weight|bias)", r"ln_before.\1"),
        (r"norm_after\.(weight|bias)", r"ln_post.\1"),
        (r"down\.weight", r"down_sampler.weight"),
        (r"up\.weight", r"up_sampler.weight"),
        (r"bottleneck_in\.(.+)", r"bn1.\1"),
        (r"bottleneck_out\.(.+)", r"bn2.\1"),
    ]
)
DEAD = r".*\.bn[12]\.num_batches_tracked"


@dataclass(frozen=True)
class Adapters:
    """The adapters of one checkpoint.

    Attributes:
        options: what the shapes say, as options of the model ``avmoe``.
        prefixes: (modality, site, index of the kept pair) → prefix of the authors' keys.
        gates: modality → whether its experts have output gates; where they have none, the gate is 1.
    """

    options: dict[str, Any]
    prefixes: Mapping[tuple[str, str, int], str]
    gates: Mapping[str, bool]

    def keys(self, name: str, pairs: Sequence[int]) -> Keys | None:
        """Return the authors' keys of one of our adapter tensors; ``pairs``: the kept pairs in order."""
        match = OURS.fullmatch(name)
        if match is None:
            return None
        modality, pair, site, inside = match[1], int(match[2]), match[3], match[4]
        prefix = self.prefixes[modality, site, list(pairs).index(pair)]
        expert = re.fullmatch(r"experts\.(\d+)\.(.+)", inside)
        if expert is None:
            keys = INSIDE.keys(inside)
        else:
            number, m = int(expert[1]), self.options["cross_experts"]
            cross = number < m
            prefix += f"multimodal_experts.{number}." if cross else f"singlemodal_experts.{number - m}."
            latent = not cross and self.options["uni_attention"] == "latent"
            inner = "gate_self" if latent else "gate_av"
            keys = (inner,) if expert[2] == "inner_gate" else IN_EXPERT.keys(expert[2])
        return None if keys is None else tuple(prefix + key for key in keys)


def missing_gate(name: str) -> Tensor | None:
    """Return the value of a tensor that a file may leave out: an output gate that is not there is 1."""
    return torch.ones(()) if name.endswith(".output_gate") else None


def is_adapter(key: str) -> bool:
    """Whether a key belongs to an adapter list of any kind."""
    return LIST.fullmatch(key) is not None


def has_routers(keys: Sequence[str]) -> bool:
    """Whether the adapters among these keys are mixtures; DG-SCT's have no router."""
    return any(match and match[5].startswith("router.") for match in map(LIST.fullmatch, keys))


def infer(tensors: Mapping[str, Tensor], visual: Tower, audio: Tower, where: str) -> Adapters:
    """Say what the adapters are.

    Args:
        tensors: the whole checkpoint.
        visual, audio: the towers, for token counts, widths and pairs.
        where: the file, for messages.

    Raises:
        IntegrityError: lists are incomplete, adapters differ in their structure, or no model has these shapes; the message
            names the key.
    """
    prefixes: dict[tuple[str, str, int], str] = {}
    for key in tensors:
        match = LIST.fullmatch(key)
        if match:
            place = (MODALITIES[match[1]], SITES[match[3]], int(match[4]))
            prefix = key.removesuffix(match[5])
            if prefixes.setdefault(place, prefix) != prefix:
                raise IntegrityError(f"{where}: {key}: both spellings of the adapter lists in one file")
    if not prefixes:
        raise IntegrityError(f"{where}: audio_moe_adapter_blocks_p1.0.fc.weight is missing; the file has no adapters")
    count = 1 + max(index for _, _, index in prefixes)
    for modality, own in (("audio", "audio"), ("visual", "vis")):
        for digit, site in SITES.items():
            for index in range(count):
                if (modality, site, index) not in prefixes:
                    raise IntegrityError(
                        f"{where}: {own}_…adapter_blocks_p{digit}.{index} is missing; all four lists have {count} adapters"
                    )
    inside = {place: _below(tensors, prefix) for place, prefix in prefixes.items()}
    options: dict[str, Any] = {"skip": _skip(tensors, prefixes, count, visual, audio, where)}
    structures = {place: _structure(prefixes[place], table, where) for place, table in inside.items()}
    first_place, first = next(iter(structures.items()))
    for place, structure in structures.items():
        for name, value in structure.items():
            if name != "gates" and value != first[name]:
                raise IntegrityError(
                    f"{where}: {prefixes[place]}*: {name} {value}, but {first[name]} in {prefixes[first_place]}*; one model has "
                    "one kind of adapter"
                )
    options |= {name: value for name, value in first.items() if name != "gates" and value is not None}
    gates = {}
    for modality in ("audio", "visual"):
        found = {structure["gates"] for place, structure in structures.items() if place[0] == modality}
        if len(found) > 1 or None in found:
            raise IntegrityError(f"{where}: only some experts of the {modality} adapters have a gate")
        gates[modality] = found.pop()
    return Adapters(options, prefixes, gates)


def kept_pairs(stages: Sequence[int], skip: int) -> list[int]:
    """Return the pairs that have adapters; ``stages``: stage of every pair (avmoe.md 3.1)."""
    return [pair for pair, stage in enumerate(stages) if skip == 1 or (stage + 1) % skip]


def pair_stages(visual: Tower, audio: Tower) -> list[int]:
    """Return the stage of every pair: each audio block has a partner."""
    return [stage for stage, depth in enumerate(audio.info.depths) for _ in range(depth)]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _skip(tensors, prefixes, count: int, visual: Tower, audio: Tower, where: str) -> int:
    """The skip whose kept pairs are as many, and have as many tokens, as the adapters say."""
    stages = pair_stages(visual, audio)
    tokens = {name: _tokens(tower) for name, tower in (("visual", visual), ("audio", audio))}
    fault = ""
    for skip in range(1, len(set(stages)) + 1):
        kept = kept_pairs(stages, skip)
        if len(kept) != count:
            continue
        fault = ""
        for (modality, _, index), prefix in prefixes.items():
            other = "audio" if modality == "visual" else "visual"
            stage = stages[kept[index]]
            key = f"{prefix}conv_adapter.weight"
            if key not in tensors:
                raise IntegrityError(f"{where}: {key} is missing")
            shape = tuple(tensors[key].shape[:2])
            wanted = (tokens[modality][stage], tokens[other][stage])
            if shape != wanted:
                fault = f"{key} maps {shape[1:]} tokens to {shape[:1]}; with skip {skip} expected {wanted[1]} to {wanted[0]}"
                break
        if not fault:
            return skip
    if not fault:
        possible = [len(kept_pairs(stages, skip)) for skip in range(1, len(set(stages)) + 1)]
        last = prefixes["audio", "attn", count - 1]
        fault = f"{last}*: {count} adapters in a list; with these towers expected one of {sorted(set(possible))}"
    raise IntegrityError(f"{where}: {fault}; configure the towers that the checkpoint was trained with")


def _tokens(tower: Tower) -> list[int]:
    found = {sub.stage: sub.grid[0] * sub.grid[1] for sub in tower.subs}
    return [found[stage] for stage in sorted(found)]


def _structure(prefix: str, inside: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """Structure of one adapter: options of the model, and ``gates``: whether all, or none, of its experts have one."""

    def need(key: str) -> Tensor:
        if key not in inside:
            raise IntegrityError(f"{where}: {prefix}{key} is missing; the adapter is no mixture of experts of AVMOE")
        return inside[key]

    experts: dict[tuple[str, int], set[str]] = {}
    for key in inside:
        match = EXPERT.fullmatch(key)
        if match:
            experts.setdefault((match[1], int(match[2])), set()).add(match[3])
    counts = {}
    for kind in ("multimodal", "singlemodal"):
        numbers = sorted(number for found, number in experts if found == kind)
        if numbers != list(range(len(numbers))):
            raise IntegrityError(f"{where}: {prefix}{kind}_experts has the numbers {numbers}; expected 0, 1, …")
        counts[kind] = len(numbers)
    width = len(need("fc.weight"))
    if not experts:
        raise IntegrityError(f"{where}: {prefix}multimodal_experts.0 is missing; the adapter has no experts")
    kind, number = next(iter(experts))
    down = need(f"{kind}_experts.{number}.down_sampler.weight")
    rows, columns = down.shape[:2]
    if not rows or not columns or width % rows or width % columns:
        raise IntegrityError(
            f"{where}: {prefix}{kind}_experts.{number}.down_sampler.weight is {rows}×{columns}, but the adapter is {width} wide"
        )
    names = list(experts.values())
    normed = {"bn1.weight" in found for found in names}
    gated = {"gate" in found for found in names}
    tokens = {len(inside[key]) for key in inside if key.endswith(".my_tokens")}
    if len(normed) > 1 or len(tokens) > 1:
        what = "bn1.weight" if len(normed) > 1 else "my_tokens"
        raise IntegrityError(f"{where}: {prefix}*: experts differ in {what}; one model has one kind of expert")
    return {
        "cross_experts": counts["multimodal"],
        "uni_experts": counts["singlemodal"],
        "reduction": width // rows,
        "groups": width // columns,
        "latents": tokens.pop() if tokens else None,
        "bottleneck_norm": "batch" if normed.pop() else "none",
        "uni_attention": _uni_attention(prefix, [n for (k, _), n in experts.items() if k == "singlemodal"], where),
        "gates": gated.pop() if len(gated) == 1 else None,
    }


def _uni_attention(prefix: str, experts: Sequence[set[str]], where: str) -> str:
    kinds = set()
    for names in experts:
        marks = {
            "temporal": "self_attention.in_proj_weight" in names,
            "latent": "gate_self" in names,
            "dense": "gate_av" in names,
        }
        found = [kind for kind, there in marks.items() if there]
        if len(found) > 1 or ("my_tokens" in names) != ("latent" in found):
            odd = " and ".join(
                sorted({"self_attention", "my_tokens", "gate_self", "gate_av"} & {n.split(".")[0] for n in names})
            )
            raise IntegrityError(
                f"{where}: {prefix}singlemodal_experts has {odd}; expected self_attention, or my_tokens with gate_self, or gate_av"
            )
        kinds.add(found[0] if found else "none")
    if len(kinds) > 1:
        raise IntegrityError(f"{where}: {prefix}singlemodal_experts differ in their attention: {sorted(kinds)}")
    return kinds.pop() if kinds else "none"
