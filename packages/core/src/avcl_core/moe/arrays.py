"""One MoE adapter from named numpy arrays: what notebooks and checks call to see every intermediate result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avcl_core.errors import nearest
from avcl_core.moe.adapter import MoeAdapter
from avcl_core.moe.experts import HEADS, ExpertShape, UniAttention
from avcl_core.walk import Ctx

ATTENTIONS: Mapping[str, UniAttention] = {
    "none": "none",
    "latent": "latent",
    "latents": "latent",
    "latent tokens": "latent",
    "temporal": "temporal",
    "self over frames": "temporal",
    "self, over frames": "temporal",
    "dense": "dense",
    "self transposed": "dense",
    "self, transposed": "dense",
}
"""Spellings of ``uni_attention``, in lower case, words apart by single spaces."""

SPEC = ("experts", "batch_norm", "output_gate", "groups", "uni_attention", "uni_activation", "frames")

_ADAPTER = {
    "align_token_weight": "align.token.weight",
    "align_token_bias": "align.token.bias",
    "align_channel_weight": "align.channel.weight",
    "align_channel_bias": "align.channel.bias",
    **{f"router_fc{i}_{part}": f"router.fc{i}.{part}" for i in (1, 2, 3) for part in ("weight", "bias")},
}
_NORM = ("weight", "bias", "running_mean", "running_var")
_EXPERT = {
    "latent_tokens": "latents",
    "attention_gate": "inner_gate",
    "in_proj_weight": "attention.in_proj_weight",
    "in_proj_bias": "attention.in_proj_bias",
    "out_proj_weight": "attention.out_proj.weight",
    "out_proj_bias": "attention.out_proj.bias",
    **{f"ln_in_{part}": f"norm_before.{part}" for part in ("weight", "bias")},
    "down_weight": "down.weight",
    **{f"bn1_{part}": f"bottleneck_in.{part}" for part in _NORM},
    "up_weight": "up.weight",
    **{f"bn2_{part}": f"bottleneck_out.{part}" for part in _NORM},
    **{f"ln_out_{part}": f"norm_after.{part}" for part in ("weight", "bias")},
    "output_gate": "output_gate",
}
_UNREAD = ("latent_tokens", "attention_gate")
"""Arrays that an expert may come with although its attention reads none."""


def mixture_from_arrays(
    name: str,
    spec: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    x: np.ndarray,
    other: np.ndarray,
) -> dict[str, Any]:
    """Run one MoE adapter (AVMOE, avmoe.md 3.3 to 3.6 and 8.2) in eval mode and double precision.

    Args:
        name: a label for messages; it changes nothing.
        spec: ``experts``: list of ``"cross"`` and ``"uni"``, cross-modal ones first; ``batch_norm`` (false): batch norms in the
            bottlenecks; ``output_gate`` (true): false where there is no gate tensor, as if it were 1; ``groups`` (1) of the
            bottleneck's maps; ``uni_attention`` (``"none"``): ``none``, ``latent tokens``, ``temporal`` or
            ``self, transposed`` (:data:`ATTENTIONS`); ``uni_activation`` (``"none"``): ``none`` or ``relu``; ``frames``
            (N): consecutive rows of one clip, for ``temporal``.
        weights: ``align_token_weight`` [L, L′], ``align_token_bias`` [L], ``align_channel_weight`` [D, D′],
            ``align_channel_bias`` [D]; ``router_fc1_weight`` [·, 2D] to ``router_fc3_bias`` [E]; per expert, with the prefix
            ``cross0_``, …, ``uni0_``, …: ``latent_tokens`` [t, D], ``attention_gate``, ``ln_in_{weight,bias}`` [D],
            ``down_weight`` [D/r, D/g], ``up_weight`` [D, D/(r·g)], ``ln_out_{weight,bias}`` [D], ``output_gate``; with
            ``batch_norm`` also ``bn1_*`` [D/r] and ``bn2_*`` [D] (``weight``, ``bias``, ``running_mean``, ``running_var``);
            with ``temporal`` also ``in_proj_{weight,bias}`` [3D, D], [3D] and ``out_proj_{weight,bias}`` [D, D], [D].
        x: own tokens [N, L, D].
        other: tokens of the other modality [N, L′, D′].

    Returns:
        Arrays in float64: ``aligned_other`` ô [N, L, D]; ``experts``, a list of y_e [N, L, D] with the output gate and without the
        router's weight; ``gates`` [N, E]; ``mixed`` Σ_e w_e y_e [N, L, D]; ``load_balancing`` −Σ_e log p̄_e (the released form),
        p̄ the mean of the gates over all N rows.

    Raises:
        ValueError: an unknown or unsupported entry of ``spec``, an unknown or missing array, or a shape that does not fit.
    """
    who = f"mixture {name!r}"
    experts, attention = _experts(who, spec), _attention(who, spec)
    own, source = (_array(who, label, value) for label, value in (("x", x), ("other", other)))
    if own.ndim != 3 or source.ndim != 3 or len(own) != len(source):
        raise ValueError(
            f"{who}: x has shape {tuple(own.shape)} and other {tuple(source.shape)}, expected [N, L, D] and [N, L', D']"
        )
    frames = len(own) if spec.get("frames") is None else int(spec["frames"])
    if frames < 1 or len(own) % frames:
        raise ValueError(f"{who}: spec['frames'] is {frames}, which does not divide the {len(own)} rows of x")
    given = {key: _array(who, f"array {key!r}", value) for key, value in weights.items()}
    shape = _shape(who, spec, experts, attention, own.shape[2], given)
    with torch.device("meta"):  # shapes only: no random number is drawn for values that are replaced
        adapter = MoeAdapter(
            name, (source.shape[1], source.shape[2]), own.shape[1], shape, experts.count("cross"), experts.count("uni")
        )
    ungated = not bool(spec.get("output_gate", True))
    adapter.load_state_dict(_state(who, adapter, experts, given, ungated), assign=True)
    adapter.double().eval()
    with torch.no_grad():
        found = adapter.mixture(own, source, Ctx(frames=frames))
        assert adapter.align is not None
        aligned = adapter.align(source) if found.aligned is None else found.aligned
        balancing = -found.gates.mean(0).log().sum()
    return {
        "aligned_other": aligned.numpy(),
        "experts": [value.numpy() for value in found.experts.unbind(1)],
        "gates": found.gates.numpy(),
        "mixed": found.mixed.numpy(),
        "load_balancing": float(balancing),
    }


def _experts(who: str, spec: Mapping[str, Any]) -> list[str]:
    unknown = [key for key in spec if key not in SPEC]
    if unknown:
        raise ValueError(f"{who}: spec[{unknown[0]!r}] is unknown{nearest(str(unknown[0]), SPEC)}")
    experts = [str(kind) for kind in spec.get("experts", ())]
    if not experts or set(experts) - {"cross", "uni"} or experts != sorted(experts):
        raise ValueError(
            f"{who}: spec['experts'] is {experts}, expected a list of 'cross' and 'uni' with all cross-modal experts first"
        )
    return experts


def _attention(who: str, spec: Mapping[str, Any]) -> UniAttention:
    value = spec.get("uni_attention")
    plain = "none" if value is None else " ".join(str(value).lower().replace("_", " ").replace("-", " ").split())
    if plain not in ATTENTIONS:
        raise ValueError(
            f"{who}: spec['uni_attention'] is {value!r}, which is not supported; expected one of {', '.join(ATTENTIONS)}"
        )
    return ATTENTIONS[plain]


def _shape(
    who: str,
    spec: Mapping[str, Any],
    experts: list[str],
    attention: UniAttention,
    width: int,
    given: Mapping[str, Tensor],
) -> ExpertShape:
    first = f"{experts[0]}0_"
    down = _need(who, given, f"{first}down_weight")
    latents = next((given[key].shape for key in _prefixed(experts, "latent_tokens") if key in given), (1,))
    activation = spec.get("uni_activation", "none")
    if activation not in ("none", "relu"):
        raise ValueError(f"{who}: spec['uni_activation'] is {activation!r}, expected 'none' or 'relu'")
    narrow = down.shape[0] if down.ndim else 0
    if not narrow or width % narrow or (attention == "temporal" and width % HEADS):
        what = (
            f"array '{first}down_weight' has {narrow} rows" if not narrow or width % narrow else f"{HEADS} heads attend"
        )
        raise ValueError(f"{who}: {what}, which does not divide the {width} channels of x")
    try:
        return ExpertShape(
            width,
            width // narrow,
            int(spec.get("groups", 1)),
            latents[0] if latents else 1,
            bool(spec.get("batch_norm", False)),
            attention,
            activation == "relu",
        )
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{who}: spec['groups'] is {spec.get('groups', 1)!r}: {error}") from error


def _state(
    who: str, adapter: MoeAdapter, experts: list[str], given: Mapping[str, Tensor], ungated: bool
) -> dict[str, Tensor]:
    """Return the adapter's state from named arrays, each checked."""
    expected = adapter.state_dict()
    prefixes = _prefixed(experts, "")
    known = {key: f"experts.{e}.{inner}" for e, p in enumerate(prefixes) for key, inner in _named(p, _EXPERT)}
    known.update(_ADAPTER)
    unread = {prefix + key for prefix in prefixes for key in _UNREAD}
    state = {}
    for key, inner in known.items():
        if inner not in expected:
            continue
        if ungated and inner.endswith(".output_gate"):
            state[inner] = torch.ones((), dtype=torch.float64)
            continue
        state[inner] = _fitting(who, key, _need(who, given, key), expected[inner].shape)
    used = {key for key, inner in known.items() if inner in expected and not (ungated and key.endswith("output_gate"))}
    extra = [key for key in given if key not in used and key not in unread]
    if extra:
        raise ValueError(f"{who}: array {extra[0]!r} has no place in this adapter{nearest(extra[0], [*used])}")
    return state


def _prefixed(experts: list[str], suffix: str) -> list[str]:
    """``cross0_<suffix>``, …, ``uni0_<suffix>``, … in order of the experts."""
    return [f"{kind}{experts[:e].count(kind)}_{suffix}" for e, kind in enumerate(experts)]


def _named(prefix: str, names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(prefix + key, inner) for key, inner in names.items()]


def _need(who: str, given: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in given:
        raise ValueError(f"{who}: array {key!r} is missing; given: {', '.join(sorted(given)) or 'none'}")
    return given[key]


def _fitting(who: str, key: str, value: Tensor, shape: torch.Size) -> Tensor:
    if not shape and value.numel() == 1:  # a gate may come as [1]
        return value.reshape(())
    if value.shape != shape:
        raise ValueError(f"{who}: array {key!r} has shape {tuple(value.shape)}, expected {tuple(shape)}")
    return value


def _array(who: str, label: str, value: Any) -> Tensor:
    try:
        return torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{who}: {label} is no array of real numbers: {error}") from error
