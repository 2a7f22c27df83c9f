"""Media in and out, under one name: frames, sound and mp4 files."""

from avcl_core.data.frames import FrameRule, chosen, evenly, list_frames, middle_of_seconds, read_frames, read_image
from avcl_core.data.mp4 import probe, write_mp4
from avcl_core.data.waves import is_silent, read_wave, resample

__all__ = [
    "FrameRule",
    "chosen",
    "evenly",
    "is_silent",
    "list_frames",
    "middle_of_seconds",
    "probe",
    "read_frames",
    "read_image",
    "read_wave",
    "resample",
    "write_mp4",
]
