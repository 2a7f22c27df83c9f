"""AVE: audio-visual event localisation as a task package."""

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


class EventOptions(Options):
    """Options of the task: there are none."""


# What needs torch or media libraries is imported when it is called: listing the tasks stays fast.
def _build(options: EventOptions, prepared: Prepared, protocol: str) -> Task:
    from avcl_ave.dataset import EventData
    from avcl_ave.task import EventLocalisation

    return EventLocalisation(EventData(prepared, protocol))


def _layout(root: Path) -> Layout:
    from avcl_ave.layout import layout

    return layout(root)


def _compose(
    bank: SourceBank, size: WorldSize, seed: int, out: Path, workers: int, progress: Progress | None = None
) -> None:
    from avcl_ave.world import compose

    compose(bank, size, seed, out, workers, progress)


plugin = TaskPackage(
    name="ave",
    title="Audio-visual event localisation (AVE): which event is audible and visible, second by second",
    options=EventOptions,
    build=_build,
    layout=_layout,
    compose=_compose,
    world_size=WorldSize(train=160, val=48, test=80),
)
