"""Drawn objects: sixteen outline families filled with eight textures, with variation inside every family."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Polygon = np.ndarray
"""Points [n, 2] in the square [-1, 1]², y downwards."""

SIDE = 64
_OVERSAMPLE = 3


def _circle(radius: float, first: float = 0.0, last: float = 360.0, points: int = 48) -> Polygon:
    angle = np.radians(np.linspace(first, last, points))
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _polar(radius: np.ndarray) -> Polygon:
    angle = np.linspace(0, 2 * np.pi, len(radius), endpoint=False) - np.pi / 2
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _ball(rng: np.random.Generator) -> list[Polygon]:
    return [_circle(0.92) * np.array([1.0, rng.uniform(0.82, 1.0)])]


def _ring(rng: np.random.Generator) -> list[Polygon]:
    return [_circle(0.95), _circle(rng.uniform(0.42, 0.6))]


def _brick(rng: np.random.Generator) -> list[Polygon]:
    half = rng.uniform(0.42, 0.56)
    return [np.array([[-0.95, -half], [0.95, -half], [0.95, half], [-0.95, half]])]


def _wedge(rng: np.random.Generator) -> list[Polygon]:
    lean = rng.uniform(-0.3, 0.3)
    return [np.array([[lean, -0.92], [0.92, 0.8], [-0.92, 0.8]])]


def _star(rng: np.random.Generator) -> list[Polygon]:
    inner = rng.uniform(0.36, 0.46)
    return [_polar(np.tile([0.98, inner], 5))]


def _gear(rng: np.random.Generator) -> list[Polygon]:
    teeth = int(rng.integers(8, 11))
    wheel = _polar(np.tile([0.98, 0.98, 0.72, 0.72], teeth))
    return [wheel, _circle(rng.uniform(0.2, 0.3))]


def _cross(rng: np.random.Generator) -> list[Polygon]:
    w, e = rng.uniform(0.25, 0.36), 0.95
    return [
        np.array(
            [[-w, -e], [w, -e], [w, -w], [e, -w], [e, w], [w, w], [w, e], [-w, e], [-w, w], [-e, w], [-e, -w], [-w, -w]]
        )
    ]


def _moon(rng: np.random.Generator) -> list[Polygon]:
    outer = _circle(0.95, 50, 310)
    inner = _circle(rng.uniform(0.66, 0.74), 310, 50) * np.array([1.0, 1.1]) + np.array([0.28, 0.0])
    return [np.concatenate([outer, inner]) + np.array([0.2, 0.0])]


def _heart(rng: np.random.Generator) -> list[Polygon]:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [np.stack([x, y * rng.uniform(0.95, 1.1)], axis=1) / 18]


def _drop(rng: np.random.Generator) -> list[Polygon]:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    width = rng.uniform(0.6, 0.72)
    return [np.stack([1.35 * width * np.sin(t) * np.sin(t / 2) ** 1.4, -0.95 * np.cos(t)], axis=1)]


def _hourglass(rng: np.random.Generator) -> list[Polygon]:
    waist = rng.uniform(0.1, 0.22)
    return [np.array([[-0.8, -0.95], [0.8, -0.95], [waist, 0], [0.8, 0.95], [-0.8, 0.95], [-waist, 0]])]


def _arrow(rng: np.random.Generator) -> list[Polygon]:
    shaft, neck = rng.uniform(0.2, 0.32), rng.uniform(-0.05, 0.2)
    return [
        np.array(
            [[-0.95, -shaft], [neck, -shaft], [neck, -0.82], [0.97, 0], [neck, 0.82], [neck, shaft], [-0.95, shaft]]
        )
    ]


def _flower(rng: np.random.Generator) -> list[Polygon]:
    petals = int(rng.integers(5, 7))
    turn = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    return [_polar(0.66 + rng.uniform(0.26, 0.32) * np.cos(petals * turn))]


def _bolt(rng: np.random.Generator) -> list[Polygon]:
    k = rng.uniform(0.0, 0.12)
    return [
        np.array(
            [
                [0.15, -0.98],
                [-0.7, 0.12 + k],
                [-0.1, 0.12 + k],
                [-0.3, 0.98],
                [0.7, -0.25 - k],
                [0.08, -0.25 - k],
                [0.6, -0.98],
            ]
        )
    ]


def _comb(rng: np.random.Generator) -> list[Polygon]:
    spine, points = rng.uniform(-0.45, -0.3), [[-0.9, -0.9]]
    for tooth in range(4):
        top = -0.9 + tooth * 0.48
        points += [[0.92, top], [0.92, top + 0.26], [spine, top + 0.26], [spine, top + 0.48]]
    points[-1] = [-0.9, points[-2][1]]
    return [np.array(points)]


def _arch(rng: np.random.Generator) -> list[Polygon]:
    inner = rng.uniform(0.42, 0.55)
    legs = np.concatenate(
        [
            _circle(0.95, 180, 360),
            [[0.95, 0.75], [inner, 0.75]],
            _circle(inner, 360, 180),
            [[-inner, 0.75], [-0.95, 0.75]],
        ]
    )
    return [legs + np.array([0.0, 0.1])]


OUTLINES: dict[str, Callable[[np.random.Generator], list[Polygon]]] = {
    "ball": _ball, "gear": _gear, "moon": _moon, "brick": _brick, "star": _star, "arrow": _arrow, "ring": _ring, "bolt": _bolt,
    "heart": _heart, "cross": _cross, "drop": _drop, "comb": _comb, "flower": _flower, "wedge": _wedge, "arch": _arch, "hourglass": _hourglass,
}  # fmt: skip
"""Outline families. The first polygon is filled, later ones are holes."""

TEXTURES = ("plain", "stripes", "dots", "checker", "rings", "halves", "speckle", "rim")


def _pattern(texture: str, inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where the second colour goes, bool [SIDE, SIDE]."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE / 2) - 1
    turn = rng.uniform(0, np.pi)
    u, v = x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)
    period, shift = rng.uniform(0.36, 0.5), rng.uniform(0, 1)
    if texture == "stripes":
        return (u / period + shift) % 1 < 0.5
    if texture == "dots":
        du, dv = (u / period + shift) % 1 - 0.5, (v / period + shift) % 1 - 0.5
        return du**2 + dv**2 < 0.085
    if texture == "checker":
        return (np.floor(u / period + shift) + np.floor(v / period)) % 2 == 0
    if texture == "rings":
        return (np.hypot(x, y) / (period * 0.95) + shift) % 1 < 0.45
    if texture == "halves":
        return u > rng.uniform(-0.1, 0.1)
    if texture == "speckle":
        cells = Image.fromarray(rng.integers(0, 256, (11, 11), dtype=np.uint8)).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        return np.asarray(cells) > 150
    if texture == "rim":
        core = Image.fromarray((inside * 255).astype(np.uint8)).filter(ImageFilter.MinFilter(9))
        return np.asarray(core) < 128
    return np.zeros((SIDE, SIDE), dtype=bool)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, float(np.clip(saturation, 0, 1)), float(np.clip(value, 0, 1))))


def draw(outline: str, texture: str, hue: float, rng: np.random.Generator) -> np.ndarray:
    """One object, uint8 RGBA [SIDE, SIDE, 4].

    ``hue`` in [0, 1) is only the centre of a wide range, so colour helps to tell classes apart without deciding it.
    """
    side = SIDE * _OVERSAMPLE
    turn = np.radians(rng.normal(0, 12))
    stretch = np.array([rng.uniform(0.82, 1.0), rng.uniform(0.82, 1.0)])
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * stretch
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    for number, polygon in enumerate(OUTLINES[outline](rng)):
        points = (polygon + rng.normal(0, 0.012, polygon.shape)) @ matrix.T * 0.94
        pen.polygon([(float(x), float(y)) for x, y in (points + 1) * (side / 2)], fill=255 if number == 0 else 0)
    alpha = np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.BOX))
    hue += rng.normal(0, 0.08)
    first = _colour(hue, rng.uniform(0.5, 0.95), rng.uniform(0.65, 1.0))
    second = _colour(hue + rng.normal(0.0, 0.2), rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.4))
    if rng.random() < 0.3:  # light on dark as often as not would make textures an easier cue than outlines
        second = _colour(hue + rng.normal(0.0, 0.1), rng.uniform(0.0, 0.25), rng.uniform(0.9, 1.0))
    pattern = _pattern(texture, alpha > 127, rng)[..., None]
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE / 2) - 1
    light = rng.uniform(0, 2 * np.pi)
    shade = 1 + rng.uniform(0.05, 0.2) * (x * np.cos(light) + y * np.sin(light))
    colour = np.where(pattern, second, first) * shade[..., None] + rng.normal(0, 0.025, (SIDE, SIDE, 3))
    rgb = (np.clip(colour, 0, 1) * 255).astype(np.uint8)
    return np.concatenate([rgb, alpha[..., None]], axis=2)
