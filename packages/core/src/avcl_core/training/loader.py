"""Loads batches by key, in worker processes where asked for; the result never depends on who loads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avcl_core.batch import Batch
from avcl_core.data.corruptions import Corrupted, Corruption
from avcl_core.seeding import numpy_generator, ordered
from avcl_core.stream import Experience
from avcl_core.task import Task
from avcl_core.training.inputs import AnswerInput, Input


@dataclass(frozen=True)
class Request:
    """Which samples to load.

    Attributes:
        augment: coordinates of the augmentation draw (seed, epoch, …), ``None`` for none; the key is added to them.
        stored: tensors that a memory kept beside the samples, already stacked.
    """

    experience: Experience
    split: str
    keys: tuple[str, ...]
    augment: tuple[object, ...] | None = None
    stored: Mapping[str, Tensor] = field(default_factory=dict)


class Loader:
    """Turns requests into batches.

    Args:
        tasks: task name → task.
        inputs: tower name → transformation of the raw input of that name; other raw inputs pass as tensors.
        device: where batches end up.
        workers: worker processes that load ahead; 0 loads in this process.
        shuffled: seed with which each training and validation sample gets another one's targets: a control that must stay at
            chance; ``None`` leaves them as they are.
        modalities: those that the run sees; of every other one ``Batch.present`` denies all samples. ``None``: all.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        inputs: Mapping[str, Input],
        device: torch.device | str = "cpu",
        workers: int = 0,
        shuffled: int | None = None,
        modalities: Collection[str] | None = None,
    ) -> None:
        self.tasks, self.inputs, self.device, self.workers = dict(tasks), dict(inputs), device, workers
        self.shuffled, self.modalities = shuffled, modalities
        self.corruption: Corruption | None = None
        self._datasets = {}
        self._dealt: dict[tuple[str, str], dict[str, str]] = {}

    @property
    def seen(self) -> tuple[str, ...]:
        """The modalities that prediction sees: those of the towers that are not denied."""
        return tuple(name for name in self.inputs if self.modalities is None or name in {*self.modalities, "language"})

    @contextmanager
    def corrupted(self, corruption: Corruption | None) -> Iterator[None]:
        """Within the block, give all samples with this corruption, for evaluation; ``None``: as they are."""
        self.corruption = corruption
        try:
            yield
        finally:
            self.corruption = None

    def raw(self, experience: Experience, split: str) -> Mapping[str, np.ndarray]:
        """Return the uncorrupted raw inputs of the first sample of a split, to know their shapes."""
        return self._dataset(experience.task, split).inputs(experience.keys(split)[0], None)

    def media(self, experience: Experience, key: str) -> str:
        """Return the digest of a training sample's media."""
        return self._dataset(experience.task, "train").digest(key)

    def _dataset(self, task: str, split: str):
        if (task, split) not in self._datasets:
            self._datasets[task, split] = self.tasks[task].dataset(split)
        return self._datasets[task, split]

    def _targets(self, experience: Experience, split: str, key: str) -> Mapping[str, np.ndarray]:
        if self.shuffled is not None and split != "test":
            place = (experience.name, split)
            if place not in self._dealt:
                order = ordered(experience.keys(split), self.shuffled, "shuffled labels", experience.name)
                self._dealt[place] = dict(zip(order, [*order[1:], order[0]], strict=True))
            key = self._dealt[place][key]
        return self._dataset(experience.task, split).targets(key)

    def read(self, request: Request) -> Batch:
        """Load a batch into host memory."""
        task = self.tasks[request.experience.task]
        dataset = self._dataset(task.name, request.split)
        if self.corruption is not None and request.augment is not None:
            raise ValueError(f"corruption {self.corruption.text}: training samples are never corrupted")
        rows = []
        for key in request.keys:
            rng = None
            if request.augment is not None and dataset.drawn:
                rng = numpy_generator(*request.augment, key)
            digest = dataset.digest(key)
            inputs, raw = {}, dataset.inputs(key, rng)
            given = Corrupted(raw, {}) if self.corruption is None else self.corruption(raw, key)
            for name, value in given.inputs.items():
                transform = self.inputs.get(task.plain.get(name, name))
                if transform is not None:
                    # Plain inputs are other media than the sample's own, and drawn ones differ from draw to draw.
                    known = name not in task.plain and (rng is None or name not in dataset.drawn)
                    # The digest is that of the sample as it is stored.
                    known = known and value is raw[name]
                    inputs[name] = transform(value, digest if known else None)
                elif name not in task.modalities:
                    inputs[name] = torch.from_numpy(np.asarray(value))
            targets = {
                name: self._target(name, value)
                for name, value in self._targets(request.experience, request.split, key).items()
            }
            rows.append((inputs, targets, {name: torch.from_numpy(value) for name, value in given.present.items()}))
        stack = [{n: torch.stack([row[part][n] for row in rows]) for n in rows[0][part]} for part in (0, 1, 2)]
        # Further media beside the sample's own, and draws, differ between samples whose own media are equal.
        drawn = request.augment is not None and dataset.drawn & {*task.modalities, *task.plain}
        media = () if self.corruption is not None or drawn else tuple(map(dataset.digest, request.keys))
        denied = {n: torch.zeros(len(request.keys), dtype=torch.bool) for n in self.inputs if n not in self.seen}
        return Batch(
            task.name,
            request.keys,
            stack[0],
            stack[1],
            present={**stack[2], **denied},
            experience=request.experience.name,
            stored=dict(request.stored),
            media=media,
        )

    def _target(self, name: str, value: np.ndarray) -> Tensor:
        """A target as a batch has it: an answer is a text that a language tower's vocabulary reads; scores compare the text itself."""
        reads = self.inputs.get(name)
        return reads(value, None) if isinstance(reads, AnswerInput) else torch.from_numpy(np.asarray(value))

    def load(self, request: Request) -> Batch:
        """Load a batch onto the device."""
        return self.read(request).to(self.device)

    def stream(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield the batches of ``requests`` in order, loading ahead in the workers."""
        requests = list(requests)
        if self.workers == 0 or not requests:
            yield from (self.load(request) for request in requests)
            return
        ahead = DataLoader(
            _Requests(self, requests),
            batch_size=None,
            shuffle=False,
            num_workers=self.workers,
            worker_init_fn=_quiet,
            # Starting workers draws a seed; from the global generator it would change what a hook draws next.
            generator=torch.Generator(),
        )
        for batch in ahead:
            yield batch.to(self.device)

    def batches(
        self, experience: Experience, split: str, size: int, keys: Sequence[str] | None = None
    ) -> Iterator[Batch]:
        """Yield a split, or the given keys of it, in order and without augmentation."""
        wanted = experience.keys(split) if keys is None else tuple(keys)
        cuts = range(0, len(wanted), size)
        yield from self.stream(Request(experience, split, wanted[i : i + size]) for i in cuts)

    def targets(
        self, experience: Experience, split: str, keys: Sequence[str] | None = None
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return key → targets of a split, without loading media."""
        wanted = experience.keys(split) if keys is None else keys
        return {key: {n: np.asarray(v) for n, v in self._targets(experience, split, key).items()} for key in wanted}


class _Requests(Dataset):
    def __init__(self, loader: Loader, requests: Sequence[Request]) -> None:
        self.loader, self.requests = loader, requests

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index: int) -> Batch:
        return self.loader.read(self.requests[index])


def _quiet(worker: int) -> None:
    # A stop signal to the process group is for the main process, which ends its workers after the commit.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
