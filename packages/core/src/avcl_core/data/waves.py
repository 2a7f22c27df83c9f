"""Sound of a clip: one mono float32 array in [-1, 1] at one rate and length, from .npy, .wav or the sound of a video."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from avcl_core.data.frames import evenly
from avcl_core.data.mp4 import check_complete
from avcl_core.data.problems import broken

_REPLACE = "replace the file or remove its clip"
_SOUND_FILES = (".wav", ".flac", ".ogg")
SoundRule = Literal["start", "evenly"]


def resample(wave: np.ndarray, source: int, target: int) -> np.ndarray:
    """Band-limited resampling of float32 [n] from ``source`` to ``target`` Hz (FFmpeg's resampler, deterministic)."""
    if source == target:
        return wave
    import av

    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave, dtype=np.float32)[None], format="fltp", layout="mono")
    frame.sample_rate = source
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=target)
    pieces = [piece.to_ndarray()[0] for piece in [*resampler.resample(frame), *resampler.resample(None)]]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)


def read_wave(path: Path, *, rate: int = 32000, samples: int) -> np.ndarray:
    """The sound of ``path`` as float32 [samples] at ``rate`` Hz.

    ``.npy`` holds the array of a published layout and must already have this length; every other file is decoded, mixed down
    (mean of channels, no peak normalisation), resampled, then cut or zero-padded at the end (tasks.md 0.3).
    Raises MediaError (a DataError) for a missing, unreadable, empty or truncated file, wrong rank, dtype, length or rate, NaN or
    infinity. A silent wave is returned as it is; see :func:`is_silent`.
    """
    path = Path(path)
    if path.suffix == ".npy":
        wave = _finite(path, np.asarray(check_npy(path, samples), dtype=np.float32))
    else:
        wave = read_sound(path, rate)
    return fit(wave, samples)


def fit(wave: np.ndarray, samples: int) -> np.ndarray:
    """Cut or zero-pad at the end to float32 [samples]."""
    fitted = np.zeros(samples, dtype=np.float32)
    fitted[: min(samples, len(wave))] = wave[:samples]
    return fitted


def choose_seconds(wave: np.ndarray, rule: SoundRule, seconds: int, rate: int) -> np.ndarray:
    """Seconds of a sound float32 [n], joined to float32 [seconds * rate]: the first ones, or ``evenly`` spaced ones.

    Evenly: of a sound of m whole seconds the second [k-1, k) for every k of linspace(1, m, seconds), which is where evenly spaced
    frames lie (tasks.md 4.1). What a shorter sound lacks at its end is zero.
    """
    whole = len(wave) // rate
    if rule == "start" or whole <= seconds:
        return fit(wave, seconds * rate)
    first = evenly(whole, seconds) - 1
    return np.concatenate([wave[second * rate : (second + 1) * rate] for second in first])


def read_sound(path: Path, rate: int) -> np.ndarray:
    """A whole sound file or the sound of a video as it is long, float32 [n] mono at ``rate`` Hz; errors as :func:`read_wave`."""
    _check_file(path)
    return _finite(
        path, _read_sound_file(path, rate) if path.suffix.lower() in _SOUND_FILES else _read_stream(path, rate)
    )


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise broken(path, "file", "no such file", "a sound file", _REPLACE)


def _finite(path: Path, wave: np.ndarray) -> np.ndarray:
    if not np.isfinite(wave).all():
        raise broken(
            path, "samples", f"{int((~np.isfinite(wave)).sum())} NaN or infinite values", "finite numbers", _REPLACE
        )
    return wave


def is_silent(wave: np.ndarray) -> bool:
    """True when every sample is zero: worth a warning, not an error."""
    return not wave.any()


def load_array(path: Path) -> np.ndarray:
    """Memory-map a .npy file; MediaError when it is not one (pickled objects are refused)."""
    _check_file(path)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise broken(path, "content", str(error), "a .npy array of numbers", _REPLACE) from None


def check_npy(path: Path, samples: int) -> np.ndarray:
    """Memory-map a wave array after checking rank, dtype and length; MediaError otherwise."""
    array = load_array(path)
    if array.ndim != 1:
        raise broken(path, "rank", f"shape {array.shape}", f"one dimension, ({samples},)", _REPLACE)
    if array.dtype.kind != "f":
        raise broken(path, "dtype", str(array.dtype), "float32 in [-1, 1]", "convert the samples to float")
    if len(array) != samples:
        raise broken(path, "length", f"{len(array)} samples", f"{samples} samples", "extract the sound again")
    return array


def _check_rate(path: Path, rate: int) -> None:
    if rate <= 0:
        raise broken(path, "sample rate", f"{rate} Hz", "a positive rate", _REPLACE)


def _read_sound_file(path: Path, rate: int) -> np.ndarray:
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            expected, source = file.frames, file.samplerate
            channels = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise broken(path, "content", str(error), "a readable sound file", _REPLACE) from None
    _check_rate(path, source)
    if len(channels) == 0:
        raise broken(path, "length", "0 samples", "at least one sample", _REPLACE)
    declared = _declared_frames(path)
    if len(channels) < max(expected, declared or 0):
        raise broken(
            path, "length", f"{len(channels)} samples", f"{max(expected, declared or 0)} as its header says", _REPLACE
        )
    return resample(channels.mean(axis=1, dtype=np.float32), source, rate)


def _declared_frames(path: Path) -> int | None:
    """Frames that the data chunk of a RIFF file announces; libsndfile silently shortens them to what is there."""
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF":
            return None
        file.seek(12)
        block = 0
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"fmt ":
                block = int.from_bytes(file.read(size)[12:14], "little")
                continue
            if head[:4] == b"data":
                return size // block if block and size < 0xFFFFFFFF else None  # streams of unknown length say 2^32 - 1
            file.seek(size + size % 2, 1)
    return None


def _read_stream(path: Path, rate: int) -> np.ndarray:
    import av
    from av.error import FFmpegError

    check_complete(path)
    pieces: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise broken(
                    path, "sound stream", "none", "one sound stream", "add the sound or give the clip a wave file"
                )
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise broken(path, "sound stream", "no known codec", "a sound stream that decodes", _REPLACE)
            source = int(stream.codec_context.sample_rate or 0)
            _check_rate(path, source)
            declared = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
            planar = av.AudioResampler(format="fltp")
            for frame in container.decode(stream):
                pieces += [piece.to_ndarray() for piece in planar.resample(frame)]
    except FFmpegError as error:
        raise broken(path, "sound stream", str(error), "a sound stream that decodes to its end", _REPLACE) from None
    wave = np.concatenate(pieces, axis=1).mean(axis=0, dtype=np.float32) if pieces else np.zeros(0, dtype=np.float32)
    if len(wave) == 0:
        raise broken(path, "sound stream", "0 samples", "at least one sample", _REPLACE)
    if len(wave) / source < declared - 0.2:
        raise broken(
            path, "sound stream", f"{len(wave) / source:.2f} s", f"{declared:.2f} s as its header says", _REPLACE
        )
    return resample(wave, source, rate)


def probe_sound(path: Path) -> None:
    """Open a sound file's header; MediaError when it is missing, unreadable or empty."""
    import soundfile

    _check_file(path)
    try:
        frames = soundfile.info(path).frames
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise broken(path, "content", str(error), "a readable sound file", _REPLACE) from None
    if frames == 0:
        raise broken(path, "length", "0 samples", "at least one sample", _REPLACE)
