"""A task's recipe for its world: which classes, which scenes, which annotation files; composing is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avcl_core.data.pool import Progress
from avcl_core.errors import ConfigError
from avcl_core.world.bank import SourceBank
from avcl_core.world.scene import Scene
from avcl_core.world.writer import Places, WorldSize, write_world


@dataclass(frozen=True)
class Recipe:
    """What a task package says about its generated world.

    Attributes:
        task: name of the task.
        seconds: length of every clip.
        places: where media lie in the published layout.
        classes: the bank's classes that the task uses, in index order.
        scene: ``(bank, size, seed, split, index)`` → one clip, a pure function.
        annotations: ``(split → scenes, classes)`` → relative path → text of every annotation file.
    """

    task: str
    seconds: int
    places: Places
    classes: Callable[[SourceBank], Sequence[str]]
    scene: Callable[[SourceBank, WorldSize, int, str, int], Scene]
    annotations: Callable[[Mapping[str, Sequence[Scene]], Sequence[str]], dict[str, str]]

    def compose(
        self,
        bank: SourceBank,
        size: WorldSize,
        seed: int,
        out: Path,
        workers: int = 2,
        progress: Progress | None = None,
    ) -> None:
        """Write the world below ``out`` in the published layout; a pure function of bank, size and seed.

        Raises:
            ConfigError: the clips have another length, or the bank has too few classes.
            DataError: ``out`` holds something else.
        """
        if size.seconds != self.seconds:
            raise ConfigError(
                f"world {self.task}: seconds is {size.seconds}; clips have {self.seconds}; set seconds={self.seconds}"
            )
        bank = bank.subset(self.classes(bank))
        scenes = {
            split: [self.scene(bank, size, seed, split, i) for i in range(count)] for split, count in size.items()
        }
        write_world(
            out,
            [clip for part in scenes.values() for clip in part],
            bank,
            self.annotations(scenes, bank.classes),
            task=self.task,
            seed=seed,
            size=size,
            places=self.places,
            workers=workers,
            progress=progress,
        )
