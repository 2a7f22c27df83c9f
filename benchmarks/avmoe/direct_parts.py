"""Plain formulations beside the adapters: quadratic TPAVI, the log-mel of a tiled second, M_F by 255 passes.

A benchmark's reference only, from avmoe.md 3.9 and tasks.md 3.3 and 3.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from avcl_avs.tpavi import Tpavi
from shared_backbones.tower import Tower


def tpavi(block: Tpavi, grid: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Compare every place of a clip with the sound at every place: an N × N matrix, N = T·H·W."""
    b, frames, channels, height, width = grid.shape
    aligned = block.align(audio)
    places = grid.movedim(2, -1).flatten(1, 3)
    sound = aligned[:, :, None, None].expand(b, frames, height, width, channels).flatten(1, 3)
    scores = torch.bmm(block.query(places), block.key(sound).transpose(1, 2)) / places.shape[1]
    mixed = block.out(torch.bmm(scores, block.value(places)))
    if isinstance(block.batch_norm, nn.BatchNorm1d):
        normed = block.batch_norm(mixed.flatten(0, 1)).view_as(places)
    else:
        normed = block.batch_norm(mixed.unflatten(1, (frames, -1)).flatten(0, 1), frames).view_as(places)
    z = block.norm(normed + places).view(b, frames, height, width, channels).movedim(-1, 2)
    return z, aligned


@contextmanager
def direct_tpavi(model: nn.Module) -> Iterator[None]:
    """Let every TPAVI block of ``model`` compute the quadratic form within the block."""
    blocks = [module for module in model.modules() if isinstance(module, Tpavi)]
    for block in blocks:
        block.__dict__["forward"] = lambda grid, audio, block=block: tpavi(block, grid, audio)
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]


def log_mel(tower: Tower, seconds: Tensor, tile: int) -> Tensor:
    """Front end of ``seconds`` ``[T, rate]``, each repeated ``tile`` times and transformed whole."""
    return tower.frontend(seconds.repeat(1, tile))


def f_score(prob: Tensor, target: Tensor) -> float:
    """M_F of ``[N, H, W]``: 255 passes over every frame with a non-empty target, mean of the curves, largest value."""
    thresholds = torch.linspace(0, 1, 255)
    total, frames = torch.zeros(255, dtype=torch.float64), 0
    for values, truth in zip(prob, target, strict=True):
        if not truth.any():
            continue
        frames += 1
        for index, threshold in enumerate(thresholds):
            predicted = values >= threshold
            hits = (predicted & truth).sum().double()
            precision = hits / predicted.sum() if predicted.any() else hits.new_zeros(())
            recall = hits / truth.sum()
            if 0.3 * precision + recall > 0:
                total[index] += 1.3 * precision * recall / (0.3 * precision + recall)
    return float((total / max(1, frames)).max())
