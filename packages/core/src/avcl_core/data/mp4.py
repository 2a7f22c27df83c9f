"""Writing and probing mp4 files: H.264 pictures with AAC sound."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np

from avcl_core.data.problems import broken

_REPLACE = "replace the file or remove its clip"


def write_mp4(path: Path, frames: np.ndarray, fps: int, wave: np.ndarray | None = None, rate: int = 32000) -> None:
    """Write uint8 RGB frames [n, H, W, 3] (H and W even) and float32 sound [samples], atomically.

    The same input gives the same bytes with the same FFmpeg: one encoder thread, no time stamps.
    """
    import av

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    with av.open(
        str(staged), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}
    ) as container:
        video = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "23", "threads": "1"})
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        video.codec_context.thread_count = 1
        sound = None
        if wave is not None:
            sound = container.add_stream("aac", rate=rate, options={"aac_coder": "fast"})
            sound.codec_context.layout, sound.codec_context.bit_rate = "mono", 96000
        tick = Fraction(1, fps)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, tick
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None and wave is not None:
            block = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(wave, dtype=np.float32)[None], format="fltp", layout="mono"
            )
            block.sample_rate, block.pts, block.time_base = rate, 0, Fraction(1, rate)
            container.mux(sound.encode(block))  # cut to the encoder's frames inside
            container.mux(sound.encode(None))
    os.replace(staged, path)


def check_complete(path: Path) -> None:
    """MediaError when a file is missing, or is an mp4 that is shorter than its boxes say: decoders play what is left of it."""
    if not path.is_file():
        raise broken(path, "file", "no such file", "a video file", _REPLACE)
    size, place = path.stat().st_size, 0
    with open(path, "rb") as file:
        if file.read(8)[4:] != b"ftyp":
            return  # another container: the decoder's word has to do
        while place + 8 <= size:
            file.seek(place)
            head = file.read(16)
            extent = int.from_bytes(head[:4], "big")
            if extent == 1:  # a 64-bit size follows
                extent = int.from_bytes(head[8:16], "big")
            if extent == 0:  # the box goes to the end of the file
                return
            place += max(extent, 8)
    if place != size:
        raise broken(path, "length", f"{size} bytes", f"{max(place, size + 1)} or more as its boxes say", _REPLACE)


def probe(path: Path, *, picture: bool, sound: bool) -> None:
    """Open the headers of a video file and check that the wanted streams are there; MediaError otherwise."""
    import av
    from av.error import FFmpegError

    check_complete(path)
    try:
        with av.open(str(path)) as container:
            if picture and not container.streams.video:
                raise broken(path, "picture stream", "none", "one picture stream", _REPLACE)
            if sound and not container.streams.audio:
                raise broken(path, "sound stream", "none", "one sound stream", _REPLACE)
    except FFmpegError as error:
        raise broken(path, "container", str(error), "a video file that opens", _REPLACE) from None
