"""Every trainable tensor has a declared owner; freezing, optimiser groups, checkpoints and growth reports read this table."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from avcl_core.batch import Batch, Outputs

if TYPE_CHECKING:
    from avcl_core.walk import Ctx

M = TypeVar("M", bound=nn.Module)
_OWNER = "_avcl_owner"
_VALID = re.compile(r"^(shared|router|(shared|task|expert|head):.+)$")


def own(module: M, owner: str) -> M:
    """Declare ``owner`` of every parameter and buffer of ``module`` that no inner module declares otherwise.

    Args:
        module: the module; it is returned for chaining.
        owner: ``shared``, ``router``, ``task:<name>``, ``expert:<k>`` or ``head:<name>``; ``shared:<part>`` is a part of what is
            shared that only some experiences train (PHP's CLIP-Adapters serve tasks with a text classifier).

    Raises:
        ValueError: the owner has another form.
    """
    if not _VALID.match(owner):
        raise ValueError(
            f"owner {owner!r}: expected shared, shared:<part>, router, task:<name>, expert:<k> or head:<name>"
        )
    setattr(module, _OWNER, owner)
    return module


def declared_owner(module: nn.Module) -> str | None:
    """Return the owner that was declared on exactly this module, if any."""
    return module.__dict__.get(_OWNER)


def matches(owner: str, patterns: Iterable[str]) -> bool:
    """Whether ``owner`` matches one of the shell-style patterns."""
    return any(fnmatch.fnmatchcase(owner, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Owned:
    """One row of the ownership table. ``kind`` is ``parameter`` or ``buffer``."""

    name: str
    owner: str
    tensor: Tensor
    kind: str


class Owners:
    """The ownership table of a model as it is now; build it again after growth.

    The owner of a tensor is the one declared on the nearest enclosing module. Tensors without one are frozen parts.

    Raises:
        ValueError: a parameter that requires a gradient has no owner.
    """

    def __init__(self, model: nn.Module) -> None:
        declared = {name: owner for name, module in model.named_modules() if (owner := declared_owner(module))}

        def find(name: str) -> str | None:
            while name:
                name = name.rpartition(".")[0]
                if name in declared:
                    return declared[name]
            return None

        self.rows: dict[str, Owned] = {}
        self.frozen: dict[str, Tensor] = {}
        orphans = []
        for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
            for name, tensor in tensors:
                owner = find(name)
                if owner is not None:
                    self.rows[name] = Owned(name, owner, tensor, kind)
                    continue
                self.frozen[name] = tensor
                if tensor.requires_grad:
                    orphans.append(name)
        if orphans:
            raise ValueError(f"trainable tensors without an owner: {orphans}; declare one with own(module, owner)")

    def match(self, patterns: Iterable[str] = ("*",)) -> dict[str, nn.Parameter]:
        """Return the owned parameters whose owner matches, by name in table order."""
        patterns = tuple(patterns)
        return {
            row.name: row.tensor  # type: ignore[misc]
            for row in self.rows.values()
            if row.kind == "parameter" and matches(row.owner, patterns)
        }

    def set_trainable(self, patterns: Iterable[str]) -> None:
        """Let exactly the parameters whose owner matches require a gradient."""
        live = self.match(patterns)
        for row in self.rows.values():
            if row.kind == "parameter":
                row.tensor.requires_grad_(row.name in live)

    def state(self, patterns: Iterable[str] = ("*",)) -> dict[str, Tensor]:
        """Return copies of owned parameters and buffers whose owner matches."""
        patterns = tuple(patterns)
        rows = (row for row in self.rows.values() if matches(row.owner, patterns))
        return {row.name: row.tensor.detach().clone(memory_format=torch.contiguous_format) for row in rows}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy ``state`` into the owned tensors.

        Raises:
            ValueError: names or shapes differ from the table; the message lists them.
        """
        missing, extra = sorted(self.rows.keys() - state.keys()), sorted(state.keys() - self.rows.keys())
        if missing or extra:
            raise ValueError(f"owned tensors differ: missing {missing}, unexpected {extra}")
        for name, value in state.items():
            own_shape = tuple(self.rows[name].tensor.shape)
            if own_shape != tuple(value.shape):
                raise ValueError(f"owned tensor {name}: shape {tuple(value.shape)}, expected {own_shape}")
        with torch.no_grad():
            for name, value in state.items():
                self.rows[name].tensor.copy_(value)

    def report(self) -> list[dict[str, Any]]:
        """Return name, owner, number of elements, bytes and kind of every owned tensor: the content of ``ownership.json``."""
        return [
            {
                "name": row.name,
                "owner": row.owner,
                "numel": row.tensor.numel(),
                "bytes": row.tensor.nbytes,
                "kind": row.kind,
            }
            for row in self.rows.values()
        ]

    def frozen_digests(self) -> dict[str, str]:
        """Return name → SHA-256 of every frozen tensor: equal before and after every experience."""
        return {name: digest_tensors({name: tensor}) for name, tensor in self.frozen.items()}


def train_mode(model: nn.Module, patterns: Iterable[str]) -> None:
    """Put ``model`` into train mode, except what does not learn: modules of other owners, and tensors without an owner.

    Otherwise dropout would wake and batch-norm statistics would move in parts that are frozen for this experience.
    """
    patterns = tuple(patterns)
    model.train()
    owners: dict[str, str | None] = {}
    for name, module in model.named_modules():
        owner = declared_owner(module) or owners.get(name.rpartition(".")[0])
        owners[name] = owner
        holds = any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
        if holds if owner is None else not matches(owner, patterns):
            module.training = False


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors, in order of name."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{tuple(value.shape)}|{value.dtype}|".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


class Snapshot:
    """A teacher: copies of owned tensors, called functionally through the live model; frozen towers are shared.

    Args:
        state: owned tensors as :meth:`Owners.state` returns them; tensors it does not list are taken from the model.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = {name: value.detach() for name, value in state.items()}

    def call(self, model: nn.Module, batch: Batch, ctx: Ctx) -> Outputs:
        """Return the outputs of ``model`` with the snapshot's tensors, in eval mode, without gradients."""
        with torch.no_grad(), evaluation_mode(model):
            return functional_call(model, dict(self.state), (batch, ctx))


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Let no parameter require a gradient, and none be recorded; restore the flags afterwards.

    Not recording alone is not enough: torch folds a product of a batch with a matrix in another order where one of them requires a
    gradient, so the last bits of a prediction would depend on what happens to be training.
    """
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in live:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for parameter in live:
            parameter.requires_grad_(True)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode and restore the mode of every module afterwards."""
    modes: list[tuple[nn.Module, bool]] = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
