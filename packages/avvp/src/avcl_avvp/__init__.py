"""AVVP: weakly supervised audio-visual video parsing as a task package."""

from avcl_core.config.options import Options
from avcl_core.plugins import TaskPackage, late
from avcl_core.world.writer import WorldSize


class ParsingOptions(Options):
    """Options of the task: there are none."""


plugin = TaskPackage(
    name="avvp",
    title="Audio-visual video parsing (LLP): audible and visible events from weak video labels",
    options=ParsingOptions,
    build=late("avcl_avvp.task:build"),
    layout=late("avcl_avvp.layout:layout"),
    compose=late("avcl_avvp.world:compose"),
    world_size=WorldSize(train=160, val=48, test=80),
)
