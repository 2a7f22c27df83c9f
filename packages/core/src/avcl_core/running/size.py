"""What a run will cost, before it starts: parameters by owner, FLOPs of a forward pass per clip, memory of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from avcl_core.batch import Batch
from avcl_core.features import Features
from avcl_core.methods.base import Method
from avcl_core.models.base import Model
from avcl_core.ownership import Owners, matches
from avcl_core.sites import Bank
from avcl_core.stream import Experience
from avcl_core.training.loader import Loader, Request
from avcl_core.walk import Ctx
from shared_backbones.tower import Tower

MOMENTS = 2
"""Tensors that Adam and AdamW keep per trained one."""
Known = dict[str, tuple[Features, "Parts"]]
Parts = dict[str, int]
"""Tower name, ``adapters`` (all modules at sites), ``prompts`` (what makes them before the walk), ``head`` or ``other`` → FLOPs."""


@dataclass(frozen=True)
class Forward:
    """FLOPs of the forward pass of one sample: twice the multiply-adds of matrix products, convolutions and attention.

    Attributes:
        task: name of the task.
        phase: ``train`` or ``test``; ``test`` only where its inputs differ from those of training (negative frames).
        parts: who computes.
    """

    task: str
    phase: str
    parts: Parts

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Size:
    """Sizes of a configured model, grown for all experiences of its stream.

    Attributes:
        frozen: tower name (or ``other``) → parameters that nothing trains.
        owners: owner → its parameters, trained or not.
        trained: owner → its parameters that learn in some session.
        peak_trained: parameters that learn in the session with most of them.
        forward: one record per task, and per phase where they differ.
        uncounted: why FLOPs could not be counted, or nothing.
    """

    frozen: Mapping[str, int]
    owners: Mapping[str, int]
    trained: Mapping[str, int]
    peak_trained: int
    forward: tuple[Forward, ...]
    uncounted: str = ""

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.frozen.values()) + sum(self.owners.values())

    @property
    def trainable(self) -> int:
        """All parameters that learn in some session."""
        return sum(self.trained.values())

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of float32 parameters, and of gradients and optimiser state in the largest session; activations come on top."""
        return {
            "parameters": 4 * self.total,
            "gradients": 4 * self.peak_trained,
            "optimizer": 4 * MOMENTS * self.peak_trained,
        }

    def to_json(self) -> dict[str, Any]:
        """Return everything with its labels, JSON-serialisable."""
        return {
            "parameters": {
                "total": self.total,
                "trainable": self.trainable,
                "trainable_percent": 100 * self.trainable / max(1, self.total),
                "frozen": dict(self.frozen),
                "owners": dict(self.owners),
                "trained": dict(self.trained),
            },
            "memory_bytes": {**self.memory, "total": sum(self.memory.values())},
            "forward_flops_per_sample": [{**asdict(record), "total": record.total} for record in self.forward],
            "uncounted": self.uncounted,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return (name, value) rows to print."""
        memory = {name: f"{value / 1e9:.2f}" for name, value in self.memory.items()}
        rows = [
            ("parameters", f"{self.total:,}, of which {_share(self.trainable, self.total)} trainable"),
            *((f"  {name} tower, frozen", _share(count, self.total)) for name, count in self.frozen.items() if count),
            *((f"  {name}", _share(count, self.total) + self._note(name)) for name, count in self.owners.items()),
            (
                "memory, GB",
                f"parameters {memory['parameters']}, gradients {memory['gradients']}, optimiser {memory['optimizer']}; "
                "activations not included",
            ),
        ]
        for record in self.forward:
            parts = ", ".join(f"{name} {flops(value)}" for name, value in record.parts.items() if value)
            rows.append((f"forward FLOPs per {record.task} sample ({record.phase})", f"{flops(record.total)}: {parts}"))
        if self.uncounted:
            rows.append(("forward FLOPs per sample", f"not counted: {self.uncounted}"))
        return rows

    def _note(self, owner: str) -> str:
        learnt = self.trained.get(owner, 0)
        return "" if learnt == self.owners[owner] else f", of which {learnt:,} trainable"


def flops(value: float) -> str:
    """Return a number of FLOPs with its unit."""
    for unit, size in (("TF", 1e12), ("GF", 1e9), ("MF", 1e6)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} F"


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / max(1, total):.2f} %)"


# ---------------------------------------------------------------------- shapes without values
def shapes_only(towers: Mapping[str, Tower]) -> dict[str, Tower]:
    """Return copies of towers whose weights have shapes and no values (the meta device); nothing is allocated."""
    known: dict[int, Any] = {}
    for tower in towers.values():
        for parameter in tower.parameters():
            empty = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
            known[id(parameter)] = empty
        for buffer in tower.buffers():
            known[id(buffer)] = torch.empty_like(buffer, device="meta")
    return {name: copy.deepcopy(tower, known) for name, tower in towers.items()}


def measure(
    outline: Callable[[], Method], experiences: Sequence[Experience], loader: Loader, seed: int, count: bool = True
) -> Size:
    """Return the sizes of a method's model.

    Args:
        outline: makes the method with a model on the meta device.
        experiences: those of the stream; the model is grown for all of them.
        loader: gives the shapes of the inputs: one sample per task and phase is read.
        seed: coordinate of what the sample's inputs draw.
        count: whether FLOPs are counted.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        method = outline()
        for experience in experiences:
            method.model.grow(experience)
    owners = Owners(method.model)
    parameters = [row for row in owners.rows.values() if row.kind == "parameter"]
    live = {e.name: tuple(method.active(e)) for e in experiences}
    trained = [row for row in parameters if any(matches(row.owner, patterns) for patterns in live.values())]
    by_session = [sum(row.tensor.numel() for row in trained if matches(row.owner, p)) for p in live.values()]
    forward, uncounted = _counted(method, experiences, loader, seed) if count else ((), "")
    return Size(
        _frozen(method, owners),
        _by_owner(parameters),
        _by_owner(trained),
        max(by_session, default=0),
        forward,
        uncounted,
    )


def _by_owner(rows: Sequence[Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        found[row.owner] = found.get(row.owner, 0) + row.tensor.numel()
    return dict(sorted(found.items()))


def _frozen(method: Method, owners: Owners) -> dict[str, int]:
    found = dict.fromkeys(method.model.towers, 0) | {"other": 0}
    parameters = dict(method.model.named_parameters())
    for name, tensor in owners.frozen.items():
        if name in parameters:
            tower = name.split(".")[1] if name.startswith("towers.") else "other"
            found[tower] += tensor.numel()
    return {name: count for name, count in found.items() if count}


# ---------------------------------------------------------------------- FLOPs
def _counted(
    method: Method, experiences: Sequence[Experience], loader: Loader, seed: int
) -> tuple[tuple[Forward, ...], str]:
    """Count every task once. A model that looks at values cannot be counted, and a sample may be unreadable: the run itself
    will say so where it matters, so neither ends a start here."""
    found: list[Forward] = []
    known: Known = {}
    try:
        for experience in {e.task: e for e in reversed(experiences)}.values():
            shapes = []
            for phase in ("train", "test"):
                keys = experience.keys(phase)
                if not keys:
                    continue
                request = Request(experience, phase, keys[:1], (seed, "size") if phase == "train" else None)
                batch = loader.read(request)
                shape = _shapes(batch)
                if shape not in shapes:
                    shapes.append(shape)
                    context = method.context(batch, training=False)
                    found.append(Forward(experience.task, phase, forward_flops(method.model, batch, context, known)))
    except Exception as error:
        return (), f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    order = [experience.task for experience in experiences]
    return tuple(sorted(found, key=lambda record: order.index(record.task))), ""


def _shapes(batch: Batch, names: Collection[str] | None = None) -> dict[str, tuple[int, ...]]:
    return {name: tuple(v.shape) for name, v in batch.inputs.items() if names is None or name in names}


def forward_flops(model: Model, batch: Batch, ctx: Ctx, known: Known | None = None) -> Parts:
    """Return the FLOPs of a forward pass of a model on the meta device, by who computes.

    Args:
        batch: on any device; all its modalities are taken as present.
        ctx: the call's context.
        known: features that were counted before, by the shapes they were made of: tasks with inputs of one shape share them.
    """
    batch = replace(batch, present={}, seeds=()).to("meta")
    ledger = _Ledger(model)
    task = model.tasks.get(batch.task)
    read = {*model.towers, *task.plain} if task is not None else None
    # What a task's features are compared with is part of them.
    shape = repr((sorted(_shapes(batch, read).items()), task.texts if task is not None else ()))
    # The fused encoder layers of eval mode are single operations that no formula covers.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with ledger.watching(), torch.no_grad(), torch.device("meta"), ledger.counter:
            if known is None or type(model).forward is not Model.forward:
                model(batch, ctx)
                return ledger.close()
            if shape not in known:
                known[shape] = model.features(batch, ctx), ledger.close()
            features, before = known[shape]
            ledger.charged = dict(before)
            model.read(features, batch, ctx)
            return ledger.close()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Counter(TorchDispatchMode):
    """Adds up torch's FLOP formulas, as its ``FlopCounterMode`` does, without that one's hooks on modules."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


class _Ledger:
    """Charges FLOPs to the innermost of those who are at work."""

    def __init__(self, model: Model) -> None:
        self.model, self.counter = model, _Counter()
        self.charged: Parts = dict.fromkeys([*model.towers, "adapters", "prompts", "head", "other"], 0)
        self.seen, self.stack = 0, ["other"]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Charge the calls of towers, site modules and heads of the model within the block."""
        calls: list[tuple[Any, str, str]] = []
        for name, tower in self.model.towers.items():
            watched = ("embed", "run", "final", "project") if isinstance(tower, Tower) else ("forward",)
            calls += [(tower, call, name) for call in watched]
        calls += [(module, "forward", "adapters") for module in self.model.parts.values()]
        calls += [(module, "forward", "head") for module in self.model.heads.values()]
        placed = {id(module) for module in self.model.parts.modules()}
        banks = [module for module in self.model.modules() if isinstance(module, Bank) and id(module) not in placed]
        calls += [(module, "forward", "prompts") for module in banks]  # what generates or selects before the walk
        for owner, call, name in calls:
            owner.__dict__[call] = self._charging(getattr(owner, call), name)
        try:
            yield
        finally:
            for owner, call, _ in calls:
                owner.__dict__.pop(call, None)

    def _charging(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def charging(*arguments: Any, **named: Any) -> Any:
            self._settle()
            self.stack.append(name)
            try:
                return call(*arguments, **named)
            finally:
                self._settle()
                self.stack.pop()

        return charging

    def _settle(self) -> None:
        now = self.counter.total
        self.charged[self.stack[-1]] += now - self.seen
        self.seen = now

    def close(self) -> Parts:
        """Return who was charged how much."""
        self._settle()
        return dict(self.charged)
