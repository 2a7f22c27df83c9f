"""One optimiser step from its samples: shards, micro-batches and ranks in lock-step add up to the whole batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from avcl_core.batch import Batch
from avcl_core.collective import Collective
from avcl_core.errors import ConfigError, RunError
from avcl_core.methods.base import Method, Update
from avcl_core.ownership import Owners, train_mode
from avcl_core.replay.memory import Exemplar
from avcl_core.seeding import derive, seed_step, torch_generator
from avcl_core.stream import Stream
from avcl_core.task import Task
from avcl_core.training.loader import Loader, Request
from avcl_core.training.optimizers import NamedOptimizer
from avcl_core.training.options import TrainingOptions
from avcl_core.training.order import Portion, shards


@dataclass(frozen=True)
class Work:
    """What one backward pass sees: current samples and the replayed ones beside them."""

    current: Batch
    replayed: tuple[Batch, ...]


class Stepper:
    """Carries out the optimiser steps of a session.

    Args:
        live: patterns of the owners that learn in this session.
        autocast: context manager factory for mixed precision.

    ``gradients`` holds optimiser → norm of the gradient of the latest step before clipping, on the device: reading it waits.
    """

    def __init__(
        self,
        method: Method,
        tasks: Mapping[str, Task],
        stream: Stream,
        loader: Loader,
        options: TrainingOptions,
        live: Sequence[str],
        optimizers: Mapping[str, NamedOptimizer],
        collective: Collective,
        seed: int,
        autocast,
    ) -> None:
        self.method, self.tasks, self.stream, self.loader, self.options = method, tasks, stream, loader, options
        self.optimizers, self.collective, self.seed, self.autocast = optimizers, collective, seed, autocast
        self.live, self.owners = tuple(live), Owners(method.model)
        self.gradients: dict[str, Tensor] = {}
        train_mode(method.model, self.live)
        # Asking every module for its owner at every step would cost a tiny model a tenth of it.
        self.modes = [(module, module.training) for module in method.model.modules()]
        self.norms = [
            name for name, module in method.model.named_modules() if isinstance(module, _BatchNorm) and module.training
        ]

    def my_requests(self, portion: Portion, augment: tuple[object, ...]) -> list[Request]:
        """Return this rank's share of a portion, one request per micro-batch.

        Raises:
            ConfigError: the loss is over the whole batch, so micro-batches would change it; or learnt batch-norm statistics
                are, which neither micro-batches nor ranks may divide.
        """
        count = len(portion.keys)
        mine = shards(count, self.collective.world)[self.collective.rank]
        pieces = self._pieces(-(-count // self.collective.world))
        task = portion.experience.task
        if pieces > 1 and self._coupled(task):
            model = "" if self.tasks[task].coupled else f" with model {type(self.method.model).__name__}"
            raise ConfigError(
                f"task {task}{model} has a loss over the whole batch; leave training.micro_batch empty, or set it for other tasks "
                "alone (training.tasks)"
            )
        if self.norms and (pieces > 1 or self.collective.world > 1):
            raise ConfigError(
                f"batch norm {self.norms[0]} learns statistics of the whole batch, which micro-batches and ranks would divide; "
                "leave training.micro_batch empty and run one process"
            )
        return [
            Request(portion.experience, "train", tuple(portion.keys[mine.start + i] for i in part), augment)
            for part in shards(len(mine), pieces)
            if part
        ]

    def _pieces(self, count: int) -> int:
        return 1 if self.options.micro_batch is None else -(-count // self.options.micro_batch)

    def step(
        self, batches: Sequence[Batch], count: int, coordinates: tuple[object, ...], index: int
    ) -> dict[str, Tensor]:
        """Do one step and return the loss parts of all its updates, by name (this rank's share of them).

        Args:
            batches: this rank's micro-batches of current samples.
            count: current samples in the whole step.
            coordinates: what every draw of this step is seeded with.
            index: number of the step within the session, for the schedule.

        Raises:
            RunError: a loss or gradient is not finite; nothing was changed.
        """
        seed_step(*coordinates, self.collective.rank)
        self.gradients = {}
        for module, mode in self.modes:
            module.training = mode
        works = [_seeded(work, coordinates) for work in self._works(batches, count, coordinates)]
        generators = [self.method.step(work.current, work.replayed) for work in works]
        logged: dict[str, Tensor] = {}
        while True:
            updates: list[Update] = []
            live: dict[str, nn.Parameter] = {}
            for generator in generators:
                with self.autocast():
                    update = next(generator, None)
                if update is None:
                    continue
                if not updates:
                    live = {n: p for n, p in self.owners.match(update.owners).items() if p.requires_grad}
                    for parameter in live.values():
                        parameter.grad = None
                updates.append(update)
                update.loss.backward(inputs=list(live.values()))
                for name, value in update.parts.items():
                    logged[name] = logged.get(name, 0) + value.detach()
            if not updates:
                return logged
            if len(updates) != len(generators):
                raise RunError(
                    f"{type(self.method).__name__}.step yields {len(updates)} updates for some micro-batches, more for others"
                )
            self._apply(updates[0], live, logged, works, index)

    def _apply(
        self, update: Update, live: Mapping[str, nn.Parameter], logged, works: Sequence[Work], index: int
    ) -> None:
        self.collective.sum_gradients(live.values())
        self.method.after_backward(update)
        grads = [p.grad for p in live.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) if grads else torch.zeros(())
        total = torch.stack([value.float() for value in logged.values()]).sum()
        finite = torch.isfinite(norm) & torch.isfinite(total)
        if self.collective.sum_number(float(~finite)) > 0:
            parts = {name: float(value) for name, value in logged.items()}
            mine = [(b.experience, key) for work in works for b in (work.current, *work.replayed) for key in b.keys]
            samples = [sample for part in self.collective.join(mine) for sample in part]
            error = RunError(
                f"loss or gradient is not finite before an optimiser step: loss parts {parts}, gradient norm {float(norm)}, "
                f"samples {samples}"
            )
            error.details = {"loss": parts, "norm": float(norm), "samples": samples}
            raise error
        # An optimiser that steps twice has one norm: of both gradients as one vector.
        earlier = self.gradients.get(update.optimizer)
        self.gradients[update.optimizer] = norm if earlier is None else torch.hypot(earlier, norm)
        if self.options.clip is not None and float(norm) > self.options.clip:
            for grad in grads:
                grad.mul_(self.options.clip / float(norm))
        self.optimizers[update.optimizer].step(index)
        self.method.model.settle(self.collective)
        for parameter in live.values():
            parameter.grad = None

    # ------------------------------------------------------------------ what one backward pass sees
    def _works(self, batches: Sequence[Batch], count: int, coordinates: tuple[object, ...]) -> list[Work]:
        current = self._shared(batches, 1.0)
        recalled = self.method.recall(count, torch_generator(*coordinates, "recall"))
        replayed = self._replayed(recalled, len(batches))
        works = []
        for piece, batch in enumerate(current):
            beside = tuple(b for group in replayed if (b := group[piece]) is not None)
            works.append(Work(batch, beside))
        return works

    def _replayed(self, recalled: Sequence[Exemplar], pieces: int) -> list[list[Batch | None]]:
        # A group may be smaller than the number of ranks. Where its loss gathers rows, all ranks must take part in it, so
        # each takes the whole group instead of a shard.
        groups: dict[str, list[Exemplar]] = {}
        for exemplar in recalled:
            groups.setdefault(exemplar.experience, []).append(exemplar)
        found = []
        for name, exemplars in groups.items():
            whole = self._coupled(self.stream.experience(name).task)
            if whole:
                parts = [exemplars, *[[]] * (pieces - 1)]
            else:
                mine = shards(len(exemplars), self.collective.world)[self.collective.rank]
                parts = [[exemplars[mine.start + i] for i in part] for part in shards(len(mine), pieces)]
            loaded = [replace(self._load(name, part), whole=whole) if part else None for part in parts]
            found.append(self._shared(loaded, len(exemplars) / len(recalled)))
        return found

    def _coupled(self, task: str) -> bool:
        return self.tasks[task].coupled or self.method.model.coupled(task)

    def _load(self, experience: str, exemplars: Sequence[Exemplar]) -> Batch:
        names = exemplars[0].stored.keys()
        stored = {name: torch.stack([e.stored[name] for e in exemplars]) for name in names}
        request = Request(self.stream.experience(experience), "train", tuple(e.key for e in exemplars), None, stored)
        return self.loader.load(request)

    def _shared(self, batches: Sequence[Batch | None], weight: float) -> list:
        """Set each batch's shares so that all micro-batches of all ranks together carry ``weight``."""
        units = [0 if b is None else self.tasks[b.task].units(b.targets) for b in batches]
        total = self.collective.sum_number(float(sum(units)))
        rows = self.collective.sum_number(float(sum(len(b) for b in batches if b is not None)))
        return [
            None
            if b is None
            else replace(b, share=weight * u / total if total else 0.0, row_share=weight * len(b) / rows)
            for b, u in zip(batches, units, strict=True)
        ]


def _seeded(work: Work, coordinates: tuple[object, ...]) -> Work:
    """Give every sample of a step a seed of its own."""

    def seeded(batch: Batch) -> Batch:
        return replace(batch, seeds=tuple(derive(*coordinates, batch.experience, key) for key in batch.keys))

    return Work(seeded(work.current), tuple(seeded(batch) for batch in work.replayed))
