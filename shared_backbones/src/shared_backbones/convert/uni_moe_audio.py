"""Uni-MoE-audio's language model with its connectors, dense or with experts, to tower `av_llama` (avqacl_moe.md 3.1).

The published text says the names of the decoder (transformers' LLaMA), of the projector (``mm_projector.0``, ``.2``) and of the aligner's
queries and projection. It leaves open those of the Q-Former and of the experts; the ones below are what Uni-MoE-audio's modules are
called, as attributes of its public code: the Q-Former of transformers twice wrapped, experts and gate in place of an MLP. A
checkpoint with other names is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from shared_backbones.convert import FolderConverter, Plan
from shared_backbones.convert.folder import Folder
from shared_backbones.errors import TowerError, WeightsError

# Our names and the authors'; the first pattern that matches counts.
RULES = (
    (r"decoder\.(lm_head\..+)", r"\1"),
    (r"decoder\.(model\..+)", r"\1"),
    (r"visual\.enter\.(.+)", r"model.mm_projector.0.\1"),
    (r"visual\.leave\.(.+)", r"model.mm_projector.2.\1"),
    (r"audio\.qformer\.(.+)", r"model.mm_audio_aligner.qformer.qformer.\1"),
    (r"audio\.(query_tokens|projector\..+)", r"model.mm_audio_aligner.\1"),
)
# Towers have files of their own; the frequencies of positions follow from the base.
DROPPED = re.compile(r"model\.(vision_tower|audio_tower)\..+|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
MLP = re.compile(r"model\.layers\.(\d+)\.mlp\.(.+)")
EXPERTS = 4
FFN = re.compile(rf"mean|expert:([0-{EXPERTS - 1}])")
NEEDED = ("num_attention_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings")
"""What neither shapes nor names tell, so that a config without it is refused; who knows it may state it."""
FIXED = {
    "hidden_act": "silu", "rope_scaling": None, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    "bos_token_id": 1, "eos_token_id": 2, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch", "audio_projector_type": "linear",
}  # fmt: skip
"""What must be so where a config says it."""


def theirs(name: str) -> str:
    """The authors' name of one of our tensors, in a dense checkpoint."""
    for pattern, template in RULES:
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    raise WeightsError(f"tower av_llama has a tensor {name} that the layout has no name for")


def plan(folder: Folder, given: Mapping[str, str]) -> Plan:
    """What becomes of the tensors of a folder; WeightsError names everything that does not fit."""
    from shared_backbones.language import LanguageNet
    from shared_backbones.registry import build
    from shared_backbones.weights import compare

    ffn = _choice(folder, given)
    net = cast(LanguageNet, build("av_llama", "full", {}, device="meta").net)
    if faults := _deviations(folder.config, given, _built(net)):
        raise WeightsError(f"{folder.path / 'config.json'}: {'; '.join(faults)}")
    names: dict[str, list[str]] = {}
    expected: dict[str, Tensor] = {}
    for name, tensor in net.state_dict().items():
        key = theirs(name)
        match = MLP.fullmatch(key) if ffn != "dense" else None
        if match is None or int(match[1]) % 2:
            names[name] = [key]
            expected[key] = tensor
            continue
        every = [f"model.layers.{match[1]}.mlp.experts.{number}.{match[2]}" for number in range(EXPERTS)]
        chosen = FFN.fullmatch(ffn)
        assert chosen is not None
        names[name] = every if chosen[1] is None else [every[int(chosen[1])]]
        width = cast(int, net.decoder.config.hidden_size)
        expected.update((key, tensor) for key in every)
        expected[f"model.layers.{match[1]}.mlp.gate.weight"] = torch.empty(EXPERTS, width, device="meta")
    dropped = {name for name in folder.tensors if DROPPED.fullmatch(name)}
    kept = {name: tensor for name, tensor in folder.tensors.items() if name not in dropped}
    faults = compare(expected, kept)
    faults += _mixed(names, kept) if not faults else []
    if faults:
        hint = "; its config says dense" if ffn == "dense" else "; its config says moe"
        raise WeightsError(f"{folder.path}: not the layout uni_moe_audio of tower av_llama{hint}: {'; '.join(faults)}")
    used = {key for keys in names.values() for key in keys}
    stated = {name: value for name, value in given.items() if name != "ffn"}
    return Plan(
        None,
        {name: tuple(kept[key] for key in keys) for name, keys in names.items()},
        tuple(sorted(dropped | (kept.keys() - used))),
        {"ffn": ffn, **stated},
    )


def _mixed(names: Mapping[str, list[str]], tensors: Mapping[str, Tensor]) -> list[str]:
    """Experts that are to be averaged and have different types."""
    return [
        f"{keys[0]} and its like have types {', '.join(sorted(map(str, types)))}"
        for keys in names.values()
        if len(types := {tensors[key].dtype for key in keys}) > 1
    ]


def _choice(folder: Folder, given: Mapping[str, str]) -> str:
    """What the dense feed-forward layers are made of: ``dense``, ``mean`` or ``expert:<k>``."""
    moe, ffn = folder.config.get("moe"), given.get("ffn")
    if moe is None or moe is False:
        if ffn is not None:
            raise TowerError(f"ffn={ffn}: {folder.path} has no experts to choose from (config.json: moe is {moe!r})")
        return "dense"
    if ffn is None:
        raise TowerError(
            f"{folder.path}: config.json has moe {moe!r}, so its even blocks have {EXPERTS} experts; which one becomes the dense layer "
            f"is not published: give ffn=expert:0 to ffn=expert:{EXPERTS - 1}, or ffn=mean"
        )
    if FFN.fullmatch(ffn) is None:
        raise TowerError(f"ffn={ffn}: expected expert:0 to expert:{EXPERTS - 1}, or mean")
    return ffn


def _built(net: Any) -> dict[str, Any]:
    """What the tower is built with, of what neither shapes nor names tell."""
    config = net.decoder.config
    values = {name: getattr(config, name) for name in NEEDED if name != "rope_theta"}
    return values | {"rope_theta": config.rope_parameters["rope_theta"]}


def _deviations(config: Mapping[str, Any], given: Mapping[str, str], built: Mapping[str, Any]) -> list[str]:
    turns = config.get("rope_parameters")
    found = dict(config) if not isinstance(turns, dict) else {"rope_theta": turns.get("rope_theta"), **config}
    faults = []
    for name, wanted in built.items():
        value = found.get(name)
        if value is None and name not in given:
            faults.append(
                f"no {name}, which no tensor tells; the tower has {wanted!r}: where that is known to hold, state {name}={wanted}"
            )
        elif value is not None and name in given:
            faults.append(f"{name} {value!r}, so {name}={given[name]} is not yours to state")
        elif (_number(given[name]) if value is None else value) != wanted:
            faults.append(f"{name} {given[name] if value is None else value!r} instead of {wanted!r}")
    # How often the Q-Former attends to the sound is told by its names too: blocks that do not have no such tensors.
    fixed = FIXED | {"cross_attention_frequency": 2}
    faults += [f"{k} {config[k]!r} instead of {v!r}" for k, v in fixed.items() if k in config and config[k] != v]
    if isinstance(turns, dict) and turns.get("rope_type", "default") != "default":
        faults.append(f"rope_parameters.rope_type {turns['rope_type']!r} instead of 'default'")
    return faults


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


CONVERTER = FolderConverter(
    "av_llama",
    lambda names: {"model.mm_audio_aligner.query_tokens", "model.mm_projector.0.weight"} <= names,
    plan,
    ("ffn", *NEEDED),
)
