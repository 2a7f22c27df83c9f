"""AVE: audio-visual event localisation as a task package."""

from typing import Literal

from pydantic import Field

from avcl_core.config.options import Options
from avcl_core.plugins import TaskPackage, late
from avcl_core.world.writer import WorldSize


class EventOptions(Options):
    """Options of the task.

    Attributes:
        setting: ``supervised``: training knows the event of every second; ``weak``: the clip's class alone.
        width: width of the head; 256 as published, every layer of it scales along.
    """

    setting: Literal["supervised", "weak"] = "supervised"
    width: int = Field(default=256, gt=0, multiple_of=4)


plugin = TaskPackage(
    name="ave",
    title="Audio-visual event localisation (AVE): which event is audible and visible, second by second",
    options=EventOptions,
    build=late("avcl_ave.settings:build"),
    layout=late("avcl_ave.layout:layout"),
    compose=late("avcl_ave.world:compose"),
    world_size=WorldSize(train=160, val=48, test=80),
    published={"ave": late("avcl_ave.authors:checkpoint")},
)
