"""Corruptions of one sample: what is heard or seen gets noise, blur or a hole, or is missing; a pure function of its key."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageFilter

from avcl_core.errors import ConfigError, nearest
from avcl_core.seeding import numpy_generator

CLEAN = "clean"
"""Text form of no corruption."""
MODALITIES = ("audio", "visual")
_OTHER = {"audio": "vision only", "visual": "audio only"}
_SENSE = {"audio": "sound", "visual": "vision"}


@dataclass(frozen=True)
class Corrupted:
    """A corrupted sample.

    Attributes:
        inputs: input name → raw input; one that the corruption leaves alone is the same object.
        present: modality → bool, ``[]`` or ``[T]`` for single seconds; only of what the corruption denies.
    """

    inputs: Mapping[str, np.ndarray]
    present: Mapping[str, np.ndarray]


class Corruption(ABC):
    """A named corruption with one or two parameters, written ``name:parameter[:parameter]``.

    Attributes:
        modality: the modality that it touches, which is the name of the raw input.
    """

    name: ClassVar[str]
    form: ClassVar[str]
    """Parameters as an error message explains them."""
    modality: str

    @classmethod
    @abstractmethod
    def parse(cls, parameters: list[str]) -> Corruption:
        """Return the corruption with these parameters; ValueError where they are no such parameters."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The text form, the same for all ways to write the same corruption."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What a table calls it."""

    def check(self, modalities: tuple[str, ...], frames: int) -> None:
        """Raise ConfigError where samples with these modalities and this number of frames cannot be corrupted so."""
        if self.modality not in modalities:
            raise ConfigError(
                f"corruption {self.text}: the run does not use {self.modality}; it uses {', '.join(modalities) or 'nothing'}"
            )

    def __call__(self, inputs: Mapping[str, np.ndarray], key: str) -> Corrupted:
        """Corrupt the raw inputs of the sample ``key``: ``visual`` uint8 ``[T, H, W, 3]``, ``audio`` float32 ``[T, rate]``."""
        rng, value = numpy_generator("corruption", self.text, key), inputs[self.modality]
        changed = {**inputs, self.modality: self.change(value, rng)}
        present = self.present(len(value), rng)
        return Corrupted(changed, {} if present is None else {self.modality: present})

    def change(self, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the corrupted raw input of the modality; by default the input itself."""
        return value

    def present(self, frames: int, rng: np.random.Generator) -> np.ndarray | None:
        """Return which of the sample's frames still have the modality, bool ``[]`` or ``[T]``; ``None``: all."""
        return None


@dataclass(frozen=True)
class AudioNoise(Corruption):
    """White Gaussian noise over the whole clip, with 10·log10(P_clip / P_noise) = ``snr`` exactly.

    P is the mean square over all samples of the clip, so loud and quiet clips lose equally much. A silent clip has no ratio
    to any noise and stays silent. The sum is not clipped, which would change the ratio.
    """

    name: ClassVar[str] = "audio_noise"
    form: ClassVar[str] = "the signal-to-noise ratio in dB, -60 to 120"
    modality: str = field(default="audio", init=False)
    snr: float

    @classmethod
    def parse(cls, parameters: list[str]) -> AudioNoise:
        """Read the ratio."""
        (snr,) = _numbers(parameters, -60, 120)
        return cls(snr)

    @property
    def text(self) -> str:
        """``audio_noise:<dB>``."""
        return f"{self.name}:{_short(self.snr)}"

    @property
    def title(self) -> str:
        """Name with the ratio."""
        return f"white noise, SNR {_short(self.snr)} dB".replace("-", "−")

    def change(self, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the noisy sound."""
        clip = np.asarray(value, dtype=np.float64)
        noise = rng.standard_normal(clip.shape)
        noise *= math.sqrt(np.square(clip).mean() / np.square(noise).mean()) * 10 ** (-self.snr / 20)
        return (clip + noise).astype(np.float32)


@dataclass(frozen=True)
class FrameBlur(Corruption):
    """Gaussian blur of every frame; the standard deviation is ``sigma`` times the frame's shorter edge, in pixels.

    Relative to the edge, a blur is the same for frames that were stored at different sizes. Pillow's filter comes close to a
    Gaussian by three box filters of its variance.
    """

    name: ClassVar[str] = "frame_blur"
    form: ClassVar[str] = "the standard deviation as a fraction of the frame's edge, above 0 and up to 1"
    modality: str = field(default="visual", init=False)
    sigma: float

    @classmethod
    def parse(cls, parameters: list[str]) -> FrameBlur:
        """Read the standard deviation."""
        (sigma,) = _numbers(parameters, 0, 1, above=True)
        return cls(sigma)

    @property
    def text(self) -> str:
        """``frame_blur:<fraction>``."""
        return f"{self.name}:{_short(self.sigma)}"

    @property
    def title(self) -> str:
        """Name with the width."""
        return f"blur, σ = {100 * self.sigma:.4g} % of the edge"

    def change(self, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the blurred frames."""
        blur = ImageFilter.GaussianBlur(self.sigma * min(value.shape[1:3]))
        return np.stack([np.asarray(Image.fromarray(frame).filter(blur)) for frame in value])


@dataclass(frozen=True)
class FrameOcclusion(Corruption):
    """A rectangle of the frame's proportions over ``share`` of its area, in the clip's mean colour.

    Its place is drawn for the clip, and the same in all of its frames.
    """

    name: ClassVar[str] = "frame_occlusion"
    form: ClassVar[str] = "the fraction of the frame that is covered, above 0 and up to 1"
    modality: str = field(default="visual", init=False)
    share: float

    @classmethod
    def parse(cls, parameters: list[str]) -> FrameOcclusion:
        """Read the fraction."""
        (share,) = _numbers(parameters, 0, 1, above=True)
        return cls(share)

    @property
    def text(self) -> str:
        """``frame_occlusion:<fraction>``."""
        return f"{self.name}:{_short(self.share)}"

    @property
    def title(self) -> str:
        """Name with the area."""
        return f"{100 * self.share:.4g} % of each frame covered"

    def change(self, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the frames with the rectangle."""
        height, width = value.shape[1:3]
        down = max(1, round(math.sqrt(self.share) * height))
        # The second side makes up for the rounding of the first, so that the area is as close as whole pixels allow.
        across = min(width, max(1, round(self.share * height * width / down)))
        top, left = int(rng.integers(height - down + 1)), int(rng.integers(width - across + 1))
        covered = np.array(value)
        covered[:, top : top + down, left : left + across] = np.rint(value.mean((0, 1, 2))).astype(value.dtype)
        return covered


@dataclass(frozen=True)
class Missing(Corruption):
    """A modality that no sample has; the model puts its stand-in (silence, the mean image)."""

    name: ClassVar[str] = "missing"
    form: ClassVar[str] = "a modality, audio or visual"
    modality: str

    @classmethod
    def parse(cls, parameters: list[str]) -> Missing:
        """Read the modality."""
        (modality,) = parameters
        return cls(_modality(modality))

    @property
    def text(self) -> str:
        """``missing:<modality>``."""
        return f"{self.name}:{self.modality}"

    @property
    def title(self) -> str:
        """What is left, as tables say it."""
        return f"{_OTHER[self.modality]} (no {_SENSE[self.modality]})"

    def present(self, frames: int, rng: np.random.Generator) -> np.ndarray:
        """Return that it is not."""
        return np.zeros((), dtype=bool)


@dataclass(frozen=True)
class MissingSegments(Corruption):
    """Some seconds of each sample have no ``modality``: a given one, or a number or fraction of them drawn for the sample.

    Attributes:
        which: ``3`` is three drawn seconds, ``0.3`` is three tenths of them (at least one), ``@3`` is the second number 3,
            counted from 0.
    """

    name: ClassVar[str] = "missing_segments"
    form: ClassVar[str] = (
        "a modality, and a number of drawn seconds (3), a fraction of them (0.3) or one second counted from 0 (@3)"
    )
    modality: str
    which: str

    @classmethod
    def parse(cls, parameters: list[str]) -> MissingSegments:
        """Read modality and seconds."""
        modality, which = parameters
        if which.startswith("@"):
            return cls(_modality(modality), f"@{_whole(which[1:], 0)}")
        if "." not in which:
            return cls(_modality(modality), str(_whole(which, 1)))
        (share,) = _numbers([which], 0, 1, above=True)
        return cls(_modality(modality), repr(share))

    @property
    def text(self) -> str:
        """``missing_segments:<modality>:<which>``."""
        return f"{self.name}:{self.modality}:{self.which}"

    @property
    def title(self) -> str:
        """Name with the number of seconds."""
        sense = _SENSE[self.modality]
        if self.which.startswith("@"):
            return f"second {self.which[1:]} without {sense}"
        if "." in self.which:
            return f"{100 * float(self.which):.4g} % of the seconds without {sense}"
        return f"{self.which} second{'s' if self.which != '1' else ''} without {sense}"

    def check(self, modalities: tuple[str, ...], frames: int) -> None:
        """Raise ConfigError also where a sample has fewer seconds."""
        super().check(modalities, frames)
        needed = int(self.which[1:]) + 1 if self.which.startswith("@") else 0 if "." in self.which else int(self.which)
        if needed > frames:
            last = f"; the last is @{frames - 1}" if self.which.startswith("@") else ""
            raise ConfigError(f"corruption {self.text}: the clips have {frames} seconds{last}")

    def present(self, frames: int, rng: np.random.Generator) -> np.ndarray:
        """Return which seconds are left, bool ``[T]``."""
        left = np.ones(frames, dtype=bool)
        if self.which.startswith("@"):
            left[int(self.which[1:])] = False
            return left
        count = max(1, math.floor(float(self.which) * frames + 0.5)) if "." in self.which else int(self.which)
        left[rng.permutation(frames)[:count]] = False
        return left


KINDS: dict[str, type[Corruption]] = {
    kind.name: kind for kind in (Missing, AudioNoise, FrameBlur, FrameOcclusion, MissingSegments)
}
STANDARD = "standard"
"""Text form of :data:`LIST`, as far as a run uses the modalities."""
LIST = (
    "missing:audio",
    "missing:visual",
    "audio_noise:20",
    "audio_noise:10",
    "audio_noise:0",
    "frame_blur:0.02",
    "frame_occlusion:0.25",
    "missing_segments:audio:1",
    "missing_segments:visual:1",
)
"""The shipped list, in the order of a table."""


def parse_corruption(text: str) -> Corruption:
    """Return the corruption that ``name:parameter[:parameter]`` says.

    Raises:
        ConfigError: unknown name, or parameters that it does not take.
    """
    name, *parameters = text.split(":")
    if name not in KINDS:
        raise ConfigError(f"corruption {text!r}: unknown{nearest(name, [*KINDS, CLEAN, STANDARD])}")
    kind = KINDS[name]
    try:
        return kind.parse(parameters)
    except ValueError as error:
        reason = str(error) if "values to unpack" not in str(error) else f"found {len(parameters)} parameters"
        raise ConfigError(f"corruption {text!r}: {reason}; expected {name}:PARAMETERS with {kind.form}") from error


def parse_corruptions(text: Any, modalities: tuple[str, ...]) -> tuple[Corruption, ...]:
    """Return the corruptions of a list ``[a, b]``, ``a,b`` or its items, each once; ``clean`` is understood, as it always comes.

    Args:
        modalities: what the run uses; ``standard`` leaves out what touches another modality.

    Raises:
        ConfigError: the list is empty, or an item is wrong.
    """
    items = text.strip().removeprefix("[").removesuffix("]").split(",") if isinstance(text, str) else list(text)
    names = [str(item).strip().strip("'\"") for item in items]
    if not any(names):
        raise ConfigError(
            f"corruptions={text}: is empty; expected {STANDARD} or a list such as [missing:audio, audio_noise:10]"
        )
    found: dict[str, Corruption] = {}
    for name in names:
        if name == STANDARD:
            for corruption in map(parse_corruption, LIST):
                if corruption.modality in modalities:
                    found.setdefault(corruption.text, corruption)
        elif name != CLEAN:
            corruption = parse_corruption(name)
            found.setdefault(corruption.text, corruption)
    return tuple(found.values())


def _numbers(parameters: list[str], low: float, high: float, above: bool = False) -> tuple[float]:
    (text,) = parameters
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
    if not (low < value if above else low <= value) or not value <= high:
        raise ValueError(f"{text} is out of range")
    return (value,)


def _short(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _whole(text: str, low: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < low:
        raise ValueError(f"{text!r} is no whole number of at least {low}")
    return int(text)


def _modality(text: str) -> str:
    name = "visual" if text == "vision" else text
    if name not in MODALITIES:
        raise ValueError(f"modality {text!r}: unknown{nearest(text, [*MODALITIES, 'vision'])}")
    return name
