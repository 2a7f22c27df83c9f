"""From a scene to pixels, samples and true masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from avcl_core.world.bank import SourceBank
from avcl_core.world.scene import Scene, Source, mask_of
from avcl_core.world.seeds import rng_for

LOUDNESS = 0.08
"""Root mean square of a source of gain 1 while it sounds."""
_PEAK = 0.7
"""Largest sample of a source of gain 1: clicks stay below the loudness of other sounds instead of clipping."""
_FADE = 0.01  # seconds
_CONTRAST = 38.0  # mean difference to the background in 8-bit steps below which an object would be hard to see


def frame_times(scene: Scene, fps: int | None = None) -> np.ndarray:
    """Seconds at which frames are taken: the middle of each frame's interval, float [seconds * fps]."""
    rate = scene.fps if fps is None else fps
    return (np.arange(scene.seconds * rate) + 0.5) / rate


def frames(
    scene: Scene, bank: SourceBank, size: int | None = None, times: Sequence[float] | np.ndarray | None = None
) -> np.ndarray:
    """Pictures of the scene, uint8 RGB [n, size, size, 3]; by default at its own size and frame rate.

    A source is painted in exactly those frames whose time lies in one of its visible spans.
    """
    side = scene.size if size is None else size
    moments = frame_times(scene) if times is None else np.asarray(times, dtype=np.float64)
    canvas, margin = _background(scene, side)
    drift = _drift(scene, margin)
    grain = _grain(scene, side)
    shots = np.empty((len(moments), side, side, 3), dtype=np.float32)
    corners = margin + drift * np.stack([np.cos(0.5 * moments), np.sin(0.4 * moments)], axis=1)
    for shot, (x, y) in zip(shots, corners.round().astype(int), strict=True):
        shot[:] = canvas[y : y + side, x : x + side]
    for source in scene.sources:
        cut = _cut_out(bank, source, side)
        alpha, colour = np.repeat(cut[..., 3:], 3, axis=2), None  # spreading a last axis in every frame is slow
        for number, rows, columns in _boxes(source, scene, moments, side, cut.shape):
            behind = shots[number, rows, columns]
            if colour is None:
                colour = np.ascontiguousarray(_stand_out(cut, behind))
            behind += alpha * (colour - behind)
    for number, shot in enumerate(shots):
        across, down = (7 * number) % side, (13 * number) % side
        shot += grain[down : down + side, across : across + side]
    np.clip(shots, 0, 255, out=shots)
    return np.rint(shots, out=shots).astype(np.uint8)


def masks(
    scene: Scene, bank: SourceBank, size: int | None = None, times: Sequence[float] | np.ndarray | None = None
) -> np.ndarray:
    """Pixels that each source really shows, bool [sources, n, size, size]: its alpha above one half, less what hides it."""
    side = scene.size if size is None else size
    moments = frame_times(scene) if times is None else np.asarray(times, dtype=np.float64)
    shown = np.zeros((len(scene.sources), len(moments), side, side), dtype=bool)
    for index, source in enumerate(scene.sources):
        solid = _cut_out(bank, source, side)[..., 3] > 0.5
        for number, rows, columns in _boxes(source, scene, moments, side, solid.shape):
            shown[:index, number, rows, columns] &= ~solid
            shown[index, number, rows, columns] = solid
    return shown


def sound_track(scene: Scene, bank: SourceBank, rate: int = 32000) -> np.ndarray:
    """The mixed sound, float32 [seconds * rate] in [-1, 1]: every source during its audible spans over background noise."""
    mix = _background_sound(scene, rate)
    for index, source in enumerate(scene.sources):
        if source.audible:
            mix += _track(scene, bank, index, rate)
    # by sample: scaling the whole mix would betray a loud source in quiet seconds
    return np.clip(mix, -1, 1, out=mix)


@lru_cache(maxsize=64)
def _cached_cut_out(bank: SourceBank, cls: str, sprite: str, angle: float, length: int) -> np.ndarray:
    picture = np.asarray(bank.sprite(cls, sprite), dtype=np.float32)
    alpha = picture[..., 3:] / 255.0
    layers = np.concatenate([picture[..., :3] * alpha, alpha], axis=2)  # premultiplied: no fringe of hidden colour
    height, width = picture.shape[:2]
    factor = length / max(height, width)
    target = (max(1, round(width * factor)), max(1, round(height * factor)))
    resized = []
    for layer in np.moveaxis(layers, 2, 0):
        image = Image.fromarray(np.ascontiguousarray(layer)).resize(target, Image.Resampling.BILINEAR)
        resized.append(np.asarray(image.rotate(angle, Image.Resampling.BILINEAR, expand=True)))
    warped = np.stack(resized, axis=2)
    alpha = np.clip(warped[..., 3:], 0, 1)
    colour = np.divide(warped[..., :3], alpha, out=np.zeros_like(warped[..., :3]), where=alpha > 1e-3)
    return np.concatenate([np.clip(colour, 0, 255), alpha], axis=2)


def _cut_out(bank: SourceBank, source: Source, side: int) -> np.ndarray:
    """The source's sprite at its size and angle, float32 [h, w, 4]: colour 0..255, alpha 0..1; never larger than the frame."""
    cut = _cached_cut_out(bank, source.cls, source.sprite, source.angle, max(4, round(source.scale * side)))
    return cut[:side, :side]


def _stand_out(cut: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """The sprite's colours, made lighter or darker where they would vanish in what is behind: what is labelled can be seen."""
    colour, weight = cut[..., :3], cut[..., 3:]
    total = max(float(weight.sum()) * 3, 1e-6)
    if float((np.abs(colour - behind) * weight).sum()) / total >= _CONTRAST:
        return colour
    light = float((behind * weight).sum()) / total
    return np.clip(colour + (70.0 if light < 128 else -70.0), 0, 255)


def _boxes(
    source: Source, scene: Scene, moments: np.ndarray, side: int, shape: tuple[int, ...]
) -> Iterator[tuple[int, slice, slice]]:
    """(number, rows, columns) of every frame that shows the sprite, [h, w] of ``shape``; it stays inside the frame."""
    height, width = shape[:2]
    part = moments[:, None] / scene.seconds
    centre = np.array(source.start) * (1 - part) + np.array(source.end) * part
    turn = source.phase * 6
    sway = 0.012 * np.stack([np.sin(2.1 * moments + turn), np.cos(1.7 * moments + turn)], axis=1)
    places = np.rint((centre + sway) * side - np.array([width, height]) / 2)
    corners = np.clip(places, 0, [side - width, side - height]).astype(int)
    seconds = np.minimum(moments.astype(int), scene.seconds - 1)
    for number in np.flatnonzero(mask_of(source.visible, scene.seconds)[seconds]):
        left, top = corners[number]
        yield int(number), slice(top, top + height), slice(left, left + width)


def _drift(scene: Scene, margin: int) -> np.ndarray:
    """How far the background wanders in pixels, float [2]: at most its margin."""
    return rng_for("drift", scene.seed).uniform(0.2, 0.9, 2) * margin


def _background(scene: Scene, side: int) -> tuple[np.ndarray, int]:
    """Cluttered texture, float32 RGB [side + 2 m, side + 2 m, 3], and its margin m."""
    rng = rng_for("background", scene.seed)
    margin = max(1, side // 24)
    extent = side + 2 * margin
    layers = []
    for cells, strength in (
        (int(rng.integers(3, 6)), rng.uniform(30, 55)),
        (int(rng.integers(10, 20)), rng.uniform(8, 22)),
    ):
        grid = rng.standard_normal((cells, cells, 3)) * 0.6 + rng.standard_normal((cells, cells, 1)) * 0.8
        picture = np.clip(128 + 40 * grid, 0, 255).astype(np.uint8)
        wide = Image.fromarray(picture).resize((extent, extent), Image.Resampling.BICUBIC)
        layers.append((np.asarray(wide, dtype=np.float32) - 128) / 40 * strength)
    base = rng.uniform(60, 190, 3)
    image = Image.fromarray(np.clip(base + sum(layers), 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(scene.scraps):
        _scrap(pen, rng, extent)
    return np.asarray(image, dtype=np.float32), margin


def _scrap(pen: ImageDraw.ImageDraw, rng: np.random.Generator, extent: int) -> None:
    """One meaningless piece: an irregular splinter, a line or an open curve, smaller than any object."""
    colour = tuple(int(value) for value in rng.integers(20, 236, 3))
    x, y = rng.uniform(0, extent, 2)
    reach = rng.uniform(0.04, 0.12) * extent
    kind = rng.integers(3)
    if kind == 0:
        points = np.array([x, y]) + rng.normal(0, reach * 0.6, (int(rng.integers(3, 6)), 2))
        pen.polygon([(float(a), float(b)) for a, b in points], fill=colour)
    elif kind == 1:
        dx, dy = rng.normal(0, reach, 2)
        pen.line([(x - dx, y - dy), (x + dx, y + dy)], fill=colour, width=int(rng.integers(1, 3)))
    else:
        first = float(rng.uniform(0, 360))
        pen.arc(
            [x - reach, y - reach, x + reach, y + reach],
            first,
            first + float(rng.uniform(60, 160)),
            fill=colour,
            width=2,
        )


def _grain(scene: Scene, side: int) -> np.ndarray:
    """Pixel noise, float32 [2 side, 2 side, 3], the same in all colours; every frame takes another window of it."""
    noise = rng_for("grain", scene.seed).standard_normal((2 * side, 2 * side, 1), dtype=np.float32)
    return np.repeat(noise * np.float32(scene.grain), 3, axis=2)


def _background_sound(scene: Scene, rate: int) -> np.ndarray:
    """Coloured noise at the scene's level below a source of gain 1, float32 [seconds * rate]."""
    rng = rng_for("background sound", scene.seed)
    n = scene.seconds * rate
    noise = rng.standard_normal(n, dtype=np.float32)
    # a one-pole low-pass by blocks is slow in numpy: mix white with its running mean
    colour = np.float32(rng.uniform(0.3, 0.9))
    summed = np.zeros(n + 16)
    np.cumsum(noise, dtype=np.float64, out=summed[16:])
    dull = ((summed[16:] - summed[:-16]) * 0.25).astype(np.float32)
    dull *= colour
    noise *= 1 - colour
    noise += dull
    noise *= np.float32(LOUDNESS * 10 ** (-scene.snr_db / 20) / noise.std())
    return noise


def _track(scene: Scene, bank: SourceBank, index: int, rate: int) -> np.ndarray:
    """One source alone, float32 [seconds * rate], zero outside its audible spans."""
    source = scene.sources[index]
    wave = bank.sound(source.cls, source.sound, rate)
    played = np.interp(np.arange(0, len(wave) - 1, source.pitch), np.arange(len(wave)), wave).astype(np.float32)
    level = min(
        LOUDNESS / max(float(np.sqrt(np.mean(played**2))), 1e-6), _PEAK / max(float(np.abs(played).max()), 1e-6)
    )
    played *= np.float32(level * source.gain)
    track = np.zeros(scene.seconds * rate, dtype=np.float32)
    rng = rng_for("onsets", scene.seed, index)
    for onset, offset in source.audible:
        start, stop = onset * rate, offset * rate
        if len(played) <= rate:  # a short sound (a spoken word) is heard whole, once in every second
            for second in range(start, stop, rate):
                begin = second + int(rng.uniform(0, rate - len(played) + 1))
                track[begin : begin + len(played)] = played
        else:  # a long one goes round
            begin = int(source.phase * len(played))
            track[start:stop] = np.resize(np.roll(played, -begin), stop - start)
            fade = np.linspace(0, 1, int(_FADE * rate), dtype=np.float32)
            track[start : start + len(fade)] *= fade
            track[stop - len(fade) : stop] *= fade[::-1]
    return track
