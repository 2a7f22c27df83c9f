"""Options of the segmentation task, and of reading its published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt, model_validator

from avcl_core.config.options import Options


def _known_head(name: str) -> str:
    if name in ("tpavi", "avsbench", "upsampling") or (name.startswith("mmseg:") and len(name) > len("mmseg:")):
        return name
    raise ValueError(f"{name!r} is unknown; expected tpavi, avsbench, upsampling or mmseg:<decode head>")


class SegmentationOptions(Options):
    """Options of the task.

    Attributes:
        setting: ``s4``, one source and one annotated training frame, or ``ms3``, several sources and all frames annotated.
        head: ``tpavi``; ``avsbench``, the baseline's for a convolutional tower and VGGish; ``mmseg:<name>``, a decode head
            of mmsegmentation; or ``upsampling``, for a tower with a class token and one grid of patches (CLIP).
        width: channels of the head; all its sizes follow. The published one is 256.
        mask_size: edge of the decoded mask in pixels, which is then enlarged to 224: a multiple of 32, or with ``upsampling`` the
            edge of the grid doubled any number of times. The published one is 224.
        match_weight: λ₁, the weight of the audio-visual match loss of ``ms3`` (tasks.md 3.4). The published one is 0.5.
        fusion_norm: what TPAVI's batch norm learns from: the whole ``batch``, as published, which then can be divided neither
            into micro-batches nor among processes; or each ``clip`` by itself, which can. ``upsampling`` has no TPAVI; its batch
            norms always learn from each clip.
    """

    setting: Literal["s4", "ms3"] = "s4"
    head: Annotated[str, AfterValidator(_known_head)] = "tpavi"
    width: Annotated[int, Field(gt=0, multiple_of=8)] = 256
    mask_size: PositiveInt = 224
    match_weight: NonNegativeFloat = 0.5
    fusion_norm: Literal["batch", "clip"] = "batch"

    @model_validator(mode="after")
    def _consistent(self) -> SegmentationOptions:
        if self.head != "upsampling" and self.mask_size % 32:
            raise ValueError(f"mask_size: {self.mask_size} is not a multiple of 32, as head: {self.head} needs it")
        if self.head == "upsampling" and self.setting == "ms3" and self.match_weight:
            raise ValueError("head: upsampling has no maps for the match loss of setting: ms3; set match_weight: 0")
        return self


class SourceOptions(Options):
    """Options of reading the published layout.

    Attributes:
        waves: folder that `avs unpack` wrote, where it is not inside the data set.
    """

    waves: Path | None = None
