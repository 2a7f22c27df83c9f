"""AVVP: weakly supervised audio-visual video parsing as a task package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from avcl_core.config.options import Options
from avcl_core.plugins import TaskPackage
from avcl_core.world.writer import WorldSize

if TYPE_CHECKING:
    from avcl_core.data.layout import Layout
    from avcl_core.data.pool import Progress
    from avcl_core.data.prepared import Prepared
    from avcl_core.task import Task
    from avcl_core.world.bank import SourceBank


class ParsingOptions(Options):
    """Options of the task: there are none."""


# What needs torch or media libraries is imported when it is called: listing the tasks stays fast.
def _build(options: ParsingOptions, prepared: Prepared, protocol: str) -> Task:
    from avcl_avvp.dataset import ParsingData
    from avcl_avvp.task import VideoParsing

    return VideoParsing(ParsingData(prepared, protocol))


def _layout(root: Path) -> Layout:
    from avcl_avvp.layout import layout

    return layout(root)


def _compose(
    bank: SourceBank, size: WorldSize, seed: int, out: Path, workers: int, progress: Progress | None = None
) -> None:
    from avcl_avvp.world import compose

    compose(bank, size, seed, out, workers, progress)


plugin = TaskPackage(
    name="avvp",
    title="Audio-visual video parsing (LLP): audible and visible events from weak video labels",
    options=ParsingOptions,
    build=_build,
    layout=_layout,
    compose=_compose,
    world_size=WorldSize(train=160, val=48, test=80),
)
