"""One clip from its sources: reading it whole for the prepared form, or only opening it to see whether it could be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avcl_core.data.frames import list_frames, read_frames, read_image
from avcl_core.data.layout import ClipSource
from avcl_core.data.mp4 import probe
from avcl_core.data.problems import MediaError, Problem, broken
from avcl_core.data.waves import check_npy, choose_seconds, is_silent, probe_sound, read_sound, read_wave


def read_clip(
    clip: ClipSource, *, frame_size: int | None, rate: int, picture: bool = True, sound: bool = True
) -> tuple[np.ndarray | None, np.ndarray | None, list[Problem]]:
    """Frames uint8 [T, S, S, 3] and wave float32 [T * rate] of a clip with its problems; an array is None when it is broken.

    Warnings (a silent sound, a sound that ends early and is padded with zeros) leave the arrays in place. A modality that is
    not asked for is None without a problem.
    """
    problems: list[Problem] = []
    frames = wave = None
    try:
        if picture:
            frames = read_frames(
                _place(clip, clip.picture, "frames"), clip.frame_rule, clip.shots or clip.seconds, frame_size
            )
    except MediaError as error:
        problems.append(_of(clip, error.problem))
    try:
        if sound:
            wave, found = _read_clip_wave(clip, _place(clip, clip.sound, "sound"), rate)
            problems += found
    except MediaError as error:
        problems.append(_of(clip, error.problem))
    return frames, wave, problems


def read_extras(clip: ClipSource) -> tuple[dict[str, np.ndarray], list[Problem]]:
    """Further arrays of a clip by name, with the problems of those that cannot be read."""
    arrays: dict[str, np.ndarray] = {}
    problems: list[Problem] = []
    for extra in clip.extras:
        try:
            arrays[extra.name] = extra.read(extra.paths)
        except MediaError as error:
            problems.append(_of(clip, error.problem))
    return arrays, problems


def open_clip(clip: ClipSource, *, rate: int, picture: bool = True, sound: bool = True) -> list[Problem]:
    """Problems that show without decoding: missing files, gaps in numbering, headers that do not open, wrong array shapes."""
    problems: list[Problem] = []
    try:
        if picture:
            path = _place(clip, clip.picture, "frames")
            if path == clip.video:
                probe(path, picture=True, sound=False)
            else:
                count = len(files := list_frames(path))
                needed = clip.shots or clip.seconds
                if clip.frame_rule == "middle" and count < needed:
                    raise broken(path, "frames", f"{count}", f"at least {needed}", "extract the frames again")
                read_image(files[0])
    except MediaError as error:
        problems.append(_of(clip, error.problem))
    for extra in clip.extras:
        for path in extra.paths:
            if not path.is_file():
                error = broken(path, extra.name, "no such file", "a file for every clip", "add it or remove the clip")
                problems.append(_of(clip, error.problem))
    try:
        if sound:
            path = _place(clip, clip.sound, "sound")
            if path.suffix == ".npy":
                check_npy(path, clip.seconds * rate)
            elif path == clip.video:
                probe(path, picture=False, sound=True)
            else:
                probe_sound(path)
    except MediaError as error:
        problems.append(_of(clip, error.problem))
    return problems


def _place(clip: ClipSource, path: Path | None, field: str) -> Path:
    if path is None:
        raise broken(clip.id, field, "no file named", "a video, or frames and a wave", "add the media of this clip")
    return Path(path)


def _of(clip: ClipSource, problem: Problem) -> Problem:
    """The problem with the clip's id as its record: quarantine is by clip."""
    return Problem(
        problem.file, clip.id, problem.field, problem.found, problem.expected, problem.action, problem.severity
    )


def _read_clip_wave(clip: ClipSource, path: Path, rate: int) -> tuple[np.ndarray, list[Problem]]:
    samples, problems = clip.seconds * rate, []
    if path.suffix == ".npy":
        wave = read_wave(path, rate=rate, samples=samples)
    else:
        whole = read_sound(path, rate)
        wave = choose_seconds(whole, clip.sound_rule, clip.seconds, rate)
        if len(whole) < samples - rate // 2:
            found, expected = f"{len(whole) / rate:.2f} s", f"{clip.seconds} s"
            problems.append(
                Problem(str(path), clip.id, "sound length", found, expected, "the rest is padded with zeros", "warning")
            )
    if is_silent(wave):
        problems.append(
            Problem(
                str(path),
                clip.id,
                "samples",
                "only zeros",
                "a sound",
                "check that the clip is meant to be silent",
                "warning",
            )
        )
    return wave, problems
