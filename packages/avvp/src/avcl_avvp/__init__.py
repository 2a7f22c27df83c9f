"""AVVP: weakly supervised audio-visual video parsing as a task package."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from avcl_core.config.options import Options
from avcl_core.plugins import TaskPackage, late
from avcl_core.world.writer import WorldSize


class ParsingOptions(Options):
    """Options of the task.

    Attributes:
        head: ``mgn``, the published grouping head; ``mmil``, attentive multiple-instance pooling; or ``text``, for models that
            compare features with class names (PHP).
        evaluation: ``parsing``; or ``video_level``, the score of PHP's paper: head ``text`` and protocol ``paper`` only.
        width: width d of the heads with layers; 128 as published, every layer of it scales along.
        motion: r2plus1d_18 features beside the visual tower: ``null`` uses them where the prepared data have them, ``true``
            refuses data without them, ``false`` leaves them out.
    """

    head: Literal["mgn", "mmil", "text"] = "mgn"
    evaluation: Literal["parsing", "video_level"] = "parsing"
    width: int = Field(default=128, gt=0, multiple_of=8)
    motion: bool | None = None

    @model_validator(mode="after")
    def _readable(self) -> ParsingOptions:
        if self.evaluation == "video_level" and self.head != "text":
            raise ValueError(
                "evaluation: video_level classifies videos by class names; set head: text, or evaluation: parsing"
            )
        if self.head == "text" and self.motion:
            raise ValueError("head: text reads no motion features; set motion: null, or head: mgn or mmil")
        return self


plugin = TaskPackage(
    name="avvp",
    title="Audio-visual video parsing (LLP): audible and visible events from weak video labels",
    options=ParsingOptions,
    build=late("avcl_avvp.settings:build"),
    layout=late("avcl_avvp.layout:layout"),
    compose=late("avcl_avvp.world:compose"),
    world_size=WorldSize(train=160, val=48, test=80),
    world_options={"motion": False},
    published={"avvp": late("avcl_avvp.authors:checkpoint")},
)
