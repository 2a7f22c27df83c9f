"""How a model's experts are used over a test set: sums of what modules tell, by site and by group of samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avcl_core.collective import Collective
from avcl_core.evaluation.matrix import encode_number
from avcl_core.trace import ROUTER, Trace

Usage = dict[str, Any]
"""What :meth:`UsageCounter.usage` returns: JSON, and the entry of one row and test set in ``expert_usage.json``."""
Columns = list[tuple[str, int]]
"""What a site's sums are of, after the number of rows: name and width."""
_GATES, _FIRST, _ENTROPY = "gates", "first", "entropy"


class UsageCounter:
    """Adds up traces on the device; nothing is read before :meth:`usage`.

    Every row of a sample counts for each of its groups. What sites tell under other names than ``gates`` is averaged.

    Args:
        groups: sample key → names of its groups, of the whole split.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]]) -> None:
        self.groups = groups
        self.names = list(dict.fromkeys(name for names in groups.values() for name in names))
        self.columns: dict[str, Columns] = {}
        self.sums: dict[str, Tensor] = {}  # site → [1 + groups, 1 + columns]
        self.joint: dict[
            tuple[str, str], Tensor
        ] = {}  # facing sites → how often each pair of experts comes first [E, E]
        self.constants: dict[str, dict[str, list | Tensor]] = {}

    def add(self, trace: Trace, keys: Sequence[str]) -> None:
        """Add what was told of the samples ``keys``, in their order.

        Raises:
            ValueError: a value has neither one row per sample nor one per frame, or a site tells other names than before.
        """
        first: dict[str, Tensor] = {}
        members: dict[int, Tensor] = {}
        for site, told in trace.observed.items():
            parts: dict[str, Tensor] = {}
            for name, value in told.items():
                _check(site, name, value, len(keys), trace.frames)
                value = value.to(torch.float32 if value.device.type == "mps" else torch.float64)
                if name != _GATES:
                    parts[name] = value[:, None]
                    continue
                best = (value == value.amax(1, keepdim=True)).to(value.dtype)
                first[site] = best / best.sum(1, keepdim=True)  # equal weights share the first place
                parts |= {_GATES: value, _FIRST: first[site], _ENTROPY: torch.special.entr(value).sum(1, keepdim=True)}
            columns = [(name, part.shape[1]) for name, part in parts.items()]
            if self.columns.setdefault(site, columns) != columns:
                raise ValueError(f"site {site!r} tells {columns}, but told {self.columns[site]} of earlier samples")
            values = torch.cat([torch.ones_like(next(iter(parts.values()))[:, :1]), *parts.values()], 1)
            if len(values) not in members:
                members[len(values)] = self._members(keys, len(values) // len(keys), values)
            _add(self.sums, site, members[len(values)].T @ values)
        for one, other in facing(first):
            if first[one].shape == first[other].shape:
                _add(self.joint, (one, other), first[one].T @ first[other])
        self.constants.update(trace.constants)

    def _members(self, keys: Sequence[str], repeat: int, like: Tensor) -> Tensor:
        """Which rows count for all samples (first column) and for each group ``[rows, 1 + groups]``."""
        table = torch.tensor([[True, *(name in self.groups[key] for name in self.names)] for key in keys])
        return table.to(like, non_blocking=True).repeat_interleave(repeat, 0)

    def usage(self, collective: Collective) -> Usage | None:
        """Return the statistics over the samples of all ranks; ``None`` where nothing was told. Every rank must call it."""
        columns: dict[str, Columns] = {}
        sums: dict[Any, np.ndarray] = {}
        constants: dict[str, dict[str, list]] = {}
        for part in collective.join((self.columns, self._read(), self._constants())):
            columns, constants = part[0] | columns, part[2] | constants
            for name, value in part[1].items():
                sums[name] = sums[name] + value if name in sums else value
        return _report(columns, sums, constants, self.groups, self.names) if columns else None

    def _read(self) -> dict[Any, np.ndarray]:
        """Copy all sums to the host in one transfer."""
        held: dict[Any, Tensor] = {**self.sums, **self.joint}
        if not held:
            return {}
        flat = torch.cat([value.reshape(-1) for value in held.values()]).cpu()
        parts = flat.split([value.numel() for value in held.values()])
        return {name: part.view(value.shape).numpy() for (name, value), part in zip(held.items(), parts, strict=True)}

    def _constants(self) -> dict[str, dict[str, list]]:
        return {
            site: {name: v.tolist() if isinstance(v, Tensor) else list(v) for name, v in told.items()}
            for site, told in self.constants.items()
        }


def routing_accuracy(usage: Usage | None, slot: str) -> dict[str, float]:
    """Return ``routing_accuracy``, the percentage of samples that were sent to ``slot``; nothing where nothing was routed."""
    told = None if usage is None else usage["sites"].get(ROUTER)
    if told is None:
        return {}
    return {"routing_accuracy": 100 * told["first"][told["constants"]["experts"].index(slot)] / told["rows"]}


def tower_of(site: str) -> str:
    """Return the first word of a site's label: the tower, which is the modality that it reads."""
    return site.partition(" ")[0]


def place_of(site: str) -> str:
    """Return a site's label without its tower: where in depth it stands, equal for sites that face each other."""
    return site.partition(" ")[2]


def facing(sites: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of sites that stand at the same place of different towers, towers in alphabetical order."""
    at: dict[str, list[str]] = {}
    for site in sites:
        at.setdefault(place_of(site), []).append(site)
    return [pair for place, found in at.items() if place for pair in combinations(sorted(found), 2)]


def _check(site: str, name: str, value: Tensor, samples: int, frames: int) -> None:
    expected = 2 if name == _GATES else 1
    if value.ndim != expected or len(value) not in (samples, samples * frames):
        form = "[rows, experts]" if expected == 2 else "[rows]"
        raise ValueError(
            f"site {site!r} tells {name!r} of shape {tuple(value.shape)}; expected {form} with {samples} rows (samples) "
            f"or {samples * frames} (frames)"
        )


def _add(sums: dict[Any, Tensor], name: Any, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


def _report(
    columns: Mapping[str, Columns],
    sums: Mapping[Any, np.ndarray],
    constants: Mapping[str, Mapping[str, list]],
    groups: Mapping[str, Sequence[str]],
    names: Sequence[str],
) -> Usage:
    sites = {site: _statistics(sums[site][0], found) for site, found in columns.items()}
    for site, told in constants.items():
        if site in sites:
            sites[site]["constants"] = {name: [_number(v) for v in values] for name, values in told.items()}
    samples = {name: sum(name in of for of in groups.values()) for name in names}
    return {
        "samples": len(groups),
        "sites": sites,
        "agreement": [
            _agreement(sums[pair], int(sums[pair[0]][0, 0]), *pair) for pair in facing(columns) if pair in sums
        ],
        "total": _total(columns, sums, 0, constants),
        "groups": {
            name: {"samples": samples[name], "total": _total(columns, sums, index, constants)}
            for index, name in enumerate(names, start=1)
        },
    }


def _statistics(sums: np.ndarray, columns: Columns) -> dict[str, Any]:
    """Means over rows, counts of the largest gate, and the entropy as a share of log E (none for one expert)."""
    rows, at = float(sums[0]), 1
    found: dict[str, Any] = {"rows": int(rows)}
    for name, width in columns:
        part, at = sums[at : at + width], at + width
        if name == _FIRST:
            found[name] = [_count(value) for value in part]
        elif name == _GATES:
            found[name] = [_number(value / rows) for value in part]
        else:
            found[name] = _number(part[0] / rows)
        if name == _ENTROPY:
            experts = len(found[_GATES])
            found["evenness"] = _number(part[0] / rows / math.log(experts)) if experts > 1 else None
    return found


def _agreement(joint: np.ndarray, rows: int, one: str, other: str) -> dict[str, Any]:
    """How often both choose the expert of the same index, and how often they would if each chose by its own frequencies."""
    chance = (joint.sum(1) / rows) @ (joint.sum(0) / rows)
    return {
        "place": place_of(one),
        "towers": [tower_of(one), tower_of(other)],
        "rows": rows,
        "agreement": _number(np.trace(joint) / rows),
        "chance": _number(chance),
    }


def _total(
    columns: Mapping[str, Columns],
    sums: Mapping[Any, np.ndarray],
    index: int,
    constants: Mapping[str, Mapping[str, list]],
) -> dict[str, Any]:
    """Return tower → statistics over its sites with gates, of which ``rows`` counts each; sites unlike the first are left out."""
    totals: dict[str, Any] = {}
    for tower in dict.fromkeys(map(tower_of, columns)):
        gated = [site for site, found in columns.items() if tower_of(site) == tower and _GATES in dict(found)]
        alike = [site for site in gated if columns[site] == columns[gated[0]]]
        if alike:
            experts = constants.get(alike[0], {}).get("experts")
            named = {} if experts is None else {"experts": list(experts)}
            total = np.sum([sums[site][index] for site in alike], axis=0)
            totals[tower] = {"sites": len(alike), **named, **_statistics(total, columns[alike[0]])}
    return totals


def _count(value: float) -> float:
    """Sums of shares are whole but where weights were equal."""
    return int(value) if float(value).is_integer() else _number(value)


def _number(value: Any) -> Any:
    """Six significant digits: more would be rounding of the sums; a number that is not finite becomes its name."""
    return value if isinstance(value, (str, int)) else encode_number(float(f"{float(value):.6g}"))
