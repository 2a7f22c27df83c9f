"""What the hooks around a session see of an experience: its samples in key order, without augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from avcl_core.batch import Batch
from avcl_core.stream import Experience
from avcl_core.training.loader import Loader


class SessionData:
    """The data of one experience as hooks see it; a stop request ends the pass, which is then run again from its start.

    Args:
        size: samples per batch where a hook does not say.
        check: raises to stop; called for every batch.
    """

    def __init__(self, loader: Loader, experience: Experience, size: int, check: Callable[[], None]) -> None:
        self.loader, self.experience, self.size, self.check = loader, experience, size, check

    def keys(self, split: str = "train") -> tuple[str, ...]:
        """Return the keys of a split."""
        return self.experience.keys(split)

    def batches(
        self, split: str = "train", keys: Sequence[str] | None = None, size: int | None = None
    ) -> Iterator[Batch]:
        """Yield batches in key order without augmentation."""
        for batch in self.loader.batches(self.experience, split, size or self.size, keys):
            self.check()
            yield batch
