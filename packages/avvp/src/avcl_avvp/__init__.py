"""AVVP: weakly supervised audio-visual video parsing as a task package."""

from typing import Literal

from pydantic import Field

from avcl_core.config.options import Options
from avcl_core.plugins import TaskPackage, late
from avcl_core.world.writer import WorldSize


class ParsingOptions(Options):
    """Options of the task.

    Attributes:
        head: ``mgn``, the published grouping head; or ``mmil``, attentive multiple-instance pooling.
        width: width d of the head; 128 as published, every layer of it scales along.
        motion: r2plus1d_18 features beside the visual tower: ``null`` uses them where the prepared data have them, ``true``
            refuses data without them, ``false`` leaves them out.
    """

    head: Literal["mgn", "mmil"] = "mgn"
    width: int = Field(default=128, gt=0, multiple_of=8)
    motion: bool | None = None


plugin = TaskPackage(
    name="avvp",
    title="Audio-visual video parsing (LLP): audible and visible events from weak video labels",
    options=ParsingOptions,
    build=late("avcl_avvp.task:build"),
    layout=late("avcl_avvp.layout:layout"),
    compose=late("avcl_avvp.world:compose"),
    world_size=WorldSize(train=160, val=48, test=80),
    world_options={"motion": False},
    published={"avvp": late("avcl_avvp.authors:checkpoint")},
)
