"""The settings of AVVP by name: what is judged, and what reads it out."""

from __future__ import annotations

from avcl_avvp import ParsingOptions
from avcl_avvp.dataset import ParsingData
from avcl_avvp.items import VideoItems
from avcl_avvp.task import VideoParsing
from avcl_avvp.text import TextVideoParsing
from avcl_avvp.video_level import VideoClassification
from avcl_core.data.prepared import Prepared
from avcl_core.errors import ConfigError


def build(options: ParsingOptions, prepared: Prepared, protocol: str) -> VideoParsing | VideoClassification:
    """Return the task over prepared data, as the package's plug-in builds it.

    Raises:
        ConfigError: video-level evaluation is asked for under protocol `clean`.
    """
    if options.evaluation == "video_level":
        if protocol != "paper":
            raise ConfigError(
                f"tasks.avvp.evaluation: video_level is the score of PHP's paper, which repeats videos and favours Speech; "
                f"stream.protocol is {protocol}: set stream.protocol=paper, or tasks.avvp.evaluation=parsing"
            )
        return VideoClassification(VideoItems(prepared))
    if options.head == "text":
        return TextVideoParsing(ParsingData(prepared, protocol, motion=False))
    return VideoParsing(ParsingData(prepared, protocol, options.motion), options.head, options.width)
