"""Heads that start from another run: the grounding stage of a question-answering head, a decoder trained on a larger set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from avcl_core.errors import IntegrityError
from avcl_core.models.base import Model
from avcl_core.ownership import Owners
from avcl_core.running.folder import RunFolder
from avcl_core.stream import Experience, Stream


@dataclass(frozen=True)
class HeadStart:
    """Gives heads their first values from other runs.

    Attributes:
        sources: task → a run folder (its latest commit) or ``RUN/checkpoints/TAG``.
        stream: the stream that is learnt; a head starts at its task's first experience.
    """

    sources: Mapping[str, Path]
    stream: Stream

    def __call__(self, model: Model, experience: Experience, fresh: bool) -> None:
        """Copy the tensors of the other head into this one, by name below the head; ``fresh``: the model was just rebuilt.

        Raises:
            IntegrityError: a tensor of the other head has no counterpart of its shape here.
        """
        task = experience.task
        first = next(e for e in self.stream.experiences if e.task == task)
        if task not in self.sources or (first.name != experience.name and not fresh):
            return
        owners, prefix = Owners(model), f"heads.{task}."
        state = owners.state()
        given = {prefix + name: tensor for name, tensor in head_tensors(self.sources[task], task).items()}
        for name, tensor in given.items():
            if name not in state or state[name].shape != tensor.shape:
                have = tuple(state[name].shape) if name in state else "no such tensor"
                raise IntegrityError(
                    f"init.{task}: {name.removeprefix(prefix)} {tuple(tensor.shape)} of {self.sources[task]} does not fit this "
                    f"head ({have}); name a run whose head has the same shape"
                )
        owners.load({**state, **given})


def head_tensors(source: Path, task: str) -> dict[str, Tensor]:
    """Return the head of another run by names below it; a run of another single task gives that task's head.

    Raises:
        IntegrityError: there is no such commit, or the run has several heads and none of this task.
    """
    run, tag = (source.parents[1], source.name) if source.parent.name == "checkpoints" else (source, None)
    if not (run / "run.json").is_file():
        raise IntegrityError(f"init.{task}: {source} is neither a run folder nor a checkpoint RUN/checkpoints/TAG")
    heads: dict[str, dict[str, Tensor]] = {}
    for owner, tensors in RunFolder.open(run).store.trained(tag, ("head:*",)).items():
        of = owner.partition(":")[2]
        heads[of] = {name.removeprefix(f"heads.{of}."): tensor for name, tensor in tensors.items()}
    if task in heads:
        return heads[task]
    if len(heads) != 1:
        raise IntegrityError(
            f"init.{task}: {source} holds the heads of {sorted(heads)}; expected {task} or a single one"
        )
    return next(iter(heads.values()))
