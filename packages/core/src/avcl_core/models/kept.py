"""Features that never change, kept by the content of what they were computed from, in a bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable

import torch
import torch.nn.functional as F
from torch import Tensor

from avcl_core.features import Features
from avcl_core.precision import unmixed
from avcl_core.walk import Ctx, DualStream
from shared_backbones.tower import Tower


class Kept:
    """Features of a frozen tower's plain walk, each computed once while there is room.

    The bits of a feature must not depend on who else needed one at the same time. Kernels choose their order of summation by
    the shape of a batch, not by its content, so rows go through the tower in batches of one fixed size; the last one is filled up
    with copies of its last row. Nothing is ever dropped: when the memory is full, features are computed again each time, with
    the same bits.

    Args:
        limit: bytes of features to keep; 0 keeps none.
        rows: rows per batch of the tower; ten are the frames of most clips, so that one clip alone fills nothing up.
    """

    def __init__(self, limit: int, rows: int = 10) -> None:
        self.left, self.rows = limit, rows
        self._entries: dict[tuple[Hashable, ...], tuple[Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def features(self, walk: DualStream, values: Tensor, stages: bool = True) -> Features:
        """Return the features of every row of an input, without gradient and in the tower's own precision.

        What is returned does not depend on autocast either: a feature outlives the step that first needed it.

        Args:
            walk: one tower alone; with ``walk.unnormed`` its final tokens are those of the last stage.
            values: front-end features ``[n, …]``, one frame or second a row, n > 0.
            stages: whether the maps of all stages are wanted too; without them an entry holds the final tokens alone, a sixteenth
                of it for Swin-V2-L.

        Returns:
            Features with ``final[tower]`` ``[n, N, C]`` and ``stages[tower]`` a tuple of ``[n, N_s, C_s]``, empty unless wanted.

        A tower that learns (``trainable``) is computed every time: its features do change.
        """
        ((name, tower),) = walk.towers.items()
        kind = (name, name in walk.unnormed, stages)
        final, *maps = self.parts(kind, tower, values, lambda rows: self._compute(walk, rows, stages))
        return Features({name: final}, {name: tuple(maps)})

    def joint(self, walk: DualStream, values: Tensor) -> Tensor:
        """Return the normalised features ``[n, D]`` of every row in the space that a tower shares with text, as above.

        An entry is one vector: a hundredth of the final tokens of CLIP ViT-B/32.
        """
        ((name, tower),) = walk.towers.items()

        def project(rows: Tensor) -> tuple[Tensor, ...]:
            final, *_ = self._compute(walk, rows, stages=False)
            with torch.no_grad(), unmixed(rows):
                return (F.normalize(tower.project(final), dim=-1),)

        (found,) = self.parts((name, "joint"), tower, values, project)
        return found

    def parts(
        self, kind: tuple[Hashable, ...], tower: Tower, values: Tensor, compute: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Return what ``compute`` makes of every row, from the memory where it is known.

        Args:
            kind: what is computed, apart from the rows; the same kind is always computed alike.
            tower: whose features they are.
            values: ``[n, …]``.
            compute: rows → tensors that begin with as many rows; called with rows of a fixed number.
        """
        if values.is_meta:  # shapes only, to count with: no content by which to know a row again
            return compute(values)
        keys = [(*kind, content) for content in _contents(values)]
        known = {} if tower.trainable else self._entries
        found = {key: known[key] for key in keys if key in known}
        missing = {key: row for row, key in enumerate(keys) if key not in found}
        order = list(missing)
        for start in range(0, len(order), self.rows):
            batch = order[start : start + self.rows]
            filled = batch + batch[-1:] * (self.rows - len(batch))
            made = compute(values[[missing[key] for key in filled]])
            for row, key in enumerate(batch):
                found[key] = tuple(part[row] for part in made)
                if not tower.trainable:
                    self._keep(key, found[key])
        return tuple(torch.stack(parts) for parts in zip(*(found[key] for key in keys), strict=True))

    def _compute(self, walk: DualStream, values: Tensor, stages: bool) -> tuple[Tensor, ...]:
        ((name, tower),) = walk.towers.items()
        with torch.no_grad(), unmixed(values):
            tokens, aux = tower.embed(values)
            made = walk.walk({name: tokens}, {name: aux}, {}, Ctx())
        maps = made.stages[name] if stages else ()
        return tuple(part.squeeze(1) for part in (made.final[name], *maps))

    def _keep(self, key: tuple[Hashable, ...], parts: tuple[Tensor, ...]) -> None:
        size = sum(part.numel() * part.element_size() for part in parts)
        if size <= self.left:
            self.left -= size
            # A row of a batch would keep the whole batch alive.
            self._entries[key] = tuple(part.clone() for part in parts)


def _contents(values: Tensor) -> list[bytes]:
    """One digest per row, of its type, shape and bytes; one copy to the host for all of them."""
    host = values.detach().cpu().contiguous()
    kind = f"{host.dtype}{tuple(host.shape[1:])}".encode()
    rows = host.reshape(len(host), -1).view(torch.uint8).numpy()
    digests = [hashlib.blake2b(kind, digest_size=16) for _ in rows]
    for digest, row in zip(digests, rows, strict=True):
        digest.update(row)
    return [digest.digest() for digest in digests]
