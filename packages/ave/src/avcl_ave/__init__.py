"""AVE: audio-visual event localisation as a task package."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from avcl_core.config.options import Options
from avcl_core.plugins import TaskPackage, late
from avcl_core.world.writer import WorldSize


class EventOptions(Options):
    """Options of the task.

    Attributes:
        setting: ``supervised``: training knows the event of every second; ``weak``: the clip's class alone.
        head: ``cmbs``, the published head; or ``text``, for models that compare features with class names (PHP): supervised only.
        width: width of the head ``cmbs``; 256 as published, every layer of it scales along.
    """

    setting: Literal["supervised", "weak"] = "supervised"
    head: Literal["cmbs", "text"] = "cmbs"
    width: int = Field(default=256, gt=0, multiple_of=4)

    @model_validator(mode="after")
    def _supervised(self) -> EventOptions:
        if self.head == "text" and self.setting == "weak":
            raise ValueError("head: text learns from the event of every second; set setting: supervised, or head: cmbs")
        return self


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
