"""AVE: audio-visual event localisation as a task package."""

from avcl_core.config.options import Options
from avcl_core.plugins import TaskPackage, late
from avcl_core.world.writer import WorldSize


class EventOptions(Options):
    """Options of the task: there are none."""


plugin = TaskPackage(
    name="ave",
    title="Audio-visual event localisation (AVE): which event is audible and visible, second by second",
    options=EventOptions,
    build=late("avcl_ave.task:build"),
    layout=late("avcl_ave.layout:layout"),
    compose=late("avcl_ave.world:compose"),
    world_size=WorldSize(train=160, val=48, test=80),
)
