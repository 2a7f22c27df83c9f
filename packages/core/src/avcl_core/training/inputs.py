"""From raw task inputs to what towers embed: normalised frames, and front-end features that are cached by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np
import torch
import torchaudio
from torch import Tensor

from avcl_core.data.frontcache import FrontendCache
from avcl_core.errors import ConfigError
from avcl_core.texts import IGNORED, text_of
from shared_backbones.tower import Tower, TowerInfo

if TYPE_CHECKING:
    from shared_backbones.language import LanguageTower

Tile = int | Literal["clip", "whole"]
"""How often each second is repeated; ``clip``: as often as the clip has seconds; ``whole``: the clip in one piece instead."""


class Input(Protocol):
    """Turns one raw input of one sample into the tensor ``[T, …]`` that ``Tower.embed`` takes."""

    def __call__(self, raw: np.ndarray, digest: str | None) -> Tensor:
        """Transform; ``digest`` identifies the content, ``None`` where it was augmented and must not be cached."""
        ...


class VisualInput:
    """uint8 frames ``[T, H, W, 3]`` → normalised float ``[T, 3, H, W]`` with the tower's own statistics."""

    def __init__(self, info: TowerInfo) -> None:
        if info.image_size is None or info.mean is None or info.std is None:
            raise ConfigError(f"towers.visual: {info.name} is no image tower")
        self.size = info.image_size
        self.mean = torch.tensor(info.mean).view(3, 1, 1)
        self.std = torch.tensor(info.std).view(3, 1, 1)

    def __call__(self, raw: np.ndarray, digest: str | None) -> Tensor:
        """Normalise; the stored frames must have the tower's size."""
        if raw.shape[1:] != (self.size, self.size, 3):
            raise ConfigError(
                f"prepared frames are {raw.shape[1:]}, towers.visual takes {(self.size, self.size, 3)}; "
                f"run avcl data prepare with --size {self.size}"
            )
        frames = torch.from_numpy(np.ascontiguousarray(raw)).permute(0, 3, 1, 2).float().div_(255)
        return frames.sub_(self.mean).div_(self.std)


class AudioInput:
    """One second of waveform per frame ``[T, rate]`` → the tower's front-end features ``[T, …]``.

    Each second is resampled to the tower's rate, repeated ``tile`` times and given to the front end. Where the front end knows
    its own period (``Tower.repetitions``), fewer repetitions go through it and into the cache, and the rest is unrolled from
    them: 0.77 MB instead of 2.56 for ten seconds repeated ten times, with the same bits.

    Args:
        tower: the audio tower.
        rate: sample rate of the raw input in Hz.
        tile: how often each second is repeated before the front end; ``clip``: as often as the clip has seconds (AVMOE).
        cache: folder that keeps the features by content, or ``None``.
    """

    def __init__(self, tower: Tower, rate: int, tile: Tile, cache: Path | None) -> None:
        if tower.info.sample_rate is None or tower.info.max_samples is None:
            raise ConfigError(f"towers.audio: {tower.info.name} is no audio tower")
        self.tower, self.rate, self.tile, self.cache = tower, rate, tile, cache
        self.target_rate, self.longest = tower.info.sample_rate, tower.info.max_samples // tower.info.sample_rate
        if tile != "clip":
            self._repeats(1)
        self._caches: dict[int, FrontendCache] = {}

    def _repeats(self, seconds: int) -> int:
        repeats = seconds if self.tile == "clip" else int(self.tile)
        if repeats > self.longest:
            raise ConfigError(
                f"towers.audio.tile is {self.tile}: {repeats} seconds; {self.tower.info.name} takes {self.longest} at most"
            )
        return repeats

    def _enough(self, repeats: int) -> int:
        return self.tower.repetitions(self.target_rate, repeats)

    def digest(self, seconds: int) -> str:
        """SHA-256 of everything that cached features of a clip of ``seconds`` depend on beside its samples.

        Repetitions count as they are stored: all that are unrolled from three share an entry.
        """
        tile = self._enough(self._repeats(seconds))
        record = {"frontend": self.tower.frontend_digest, "rate": self.rate, "tile": tile}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    def __call__(self, raw: np.ndarray, digest: str | None) -> Tensor:
        """Return features, from the cache where the content is known."""
        frames = len(raw)
        repeats = self._repeats(frames)
        if self.cache is None or digest is None:
            features = self._compute(raw)
        else:
            if frames not in self._caches:
                silence = torch.zeros(1, self._enough(repeats) * self.target_rate)
                shape = (frames, *self.tower.frontend(silence).shape[1:])
                self._caches[frames] = FrontendCache(self.cache, self.digest(frames), shape)
            features = self._caches[frames].get(digest, lambda: self._compute(raw))
        return self.tower.unroll(torch.from_numpy(features), self.target_rate, repeats)

    def _compute(self, raw: np.ndarray) -> np.ndarray:
        with one_thread(), torch.no_grad():
            wave = torch.from_numpy(np.ascontiguousarray(raw, dtype=np.float32))
            if self.target_rate != self.rate:
                wave = torchaudio.functional.resample(wave, self.rate, self.target_rate)
            return self.tower.frontend(wave.repeat(1, self._enough(self._repeats(len(wave))))).numpy()


class WholeAudioInput:
    """The sound of a clip in one piece ``[T, rate]`` → front-end features ``[n, …]`` of n equal pieces that the tower takes.

    A clip that is longer than the tower takes is cut into the fewest equal pieces of whole seconds.

    Args:
        tower: the audio tower.
        rate: sample rate of the raw input in Hz.
        cache: folder that keeps the features by content, or ``None``.
    """

    def __init__(self, tower: Tower, rate: int, cache: Path | None) -> None:
        if tower.info.sample_rate is None or tower.info.max_samples is None:
            raise ConfigError(f"towers.audio: {tower.info.name} is no audio tower")
        self.tower, self.rate, self.cache = tower, rate, cache
        self.target_rate, self.longest = tower.info.sample_rate, tower.info.max_samples // tower.info.sample_rate
        self._caches: dict[int, FrontendCache] = {}

    def pieces(self, seconds: int) -> int:
        """Return into how many pieces a clip is cut.

        Raises:
            ConfigError: there is no equal division into pieces that the tower takes.
        """
        fitting = [n for n in range(1, seconds + 1) if seconds % n == 0 and seconds // n <= self.longest]
        if not fitting:
            raise ConfigError(
                f"towers.audio: clips of {seconds} s; {self.tower.info.name} takes {self.longest} s at most"
            )
        return fitting[0]

    def digest(self, seconds: int) -> str:
        """SHA-256 of everything that cached features of a clip of ``seconds`` depend on beside its samples."""
        record = {"frontend": self.tower.frontend_digest, "rate": self.rate, "pieces": self.pieces(seconds)}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    def __call__(self, raw: np.ndarray, digest: str | None) -> Tensor:
        """Return features, from the cache where the content is known."""
        seconds = len(raw)
        if self.cache is None or digest is None:
            return torch.from_numpy(self._compute(raw))
        if seconds not in self._caches:
            silence = torch.zeros(1, seconds // self.pieces(seconds) * self.target_rate)
            shape = (self.pieces(seconds), *self.tower.frontend(silence).shape[1:])
            self._caches[seconds] = FrontendCache(self.cache, self.digest(seconds), shape)
        return torch.from_numpy(self._caches[seconds].get(digest, lambda: self._compute(raw)))

    def _compute(self, raw: np.ndarray) -> np.ndarray:
        with one_thread(), torch.no_grad():
            wave = torch.from_numpy(np.ascontiguousarray(raw, dtype=np.float32)).reshape(self.pieces(len(raw)), -1)
            if self.target_rate != self.rate:
                wave = torchaudio.functional.resample(wave, self.rate, self.target_rate)
            return self.tower.frontend(wave).numpy()


class AnswerInput:
    """The text of an answer, uint8 ``[bytes]`` → ids ``[length]`` that a language model learns, :data:`IGNORED` behind the end.

    Args:
        tower: the language tower.
        length: ids of an answer with its end, at most.
    """

    def __init__(self, tower: LanguageTower, length: int) -> None:
        self.tower, self.length = tower, length

    def __call__(self, raw: np.ndarray, digest: str | None) -> Tensor:
        """Return the ids; ConfigError where they are too many: a supervised answer is never cut."""
        ids = self.tower.dialogue.answer(text_of(raw))
        if len(ids) > self.length:
            raise ConfigError(
                f"towers.language.answer: {self.length} words; {text_of(raw)!r} has {len(ids)} with its end; set it so"
            )
        return torch.tensor([*ids, *[IGNORED] * (self.length - len(ids))])


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, so that main process and workers give the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_inputs(
    towers: Mapping[str, Tower],
    tiles: Mapping[str, Tile],
    rate: int,
    cache: Path | None,
    answers: Mapping[str, int] | None = None,
) -> dict[str, Input]:
    """Return tower name → input transformation.

    Args:
        tiles: audio tower → repetitions of each second.
        rate: sample rate of raw audio in Hz.
        cache: folder for front-end features, or ``None``.
        answers: language tower → words of an answer, at most; 32 by default.
    """

    def make(name: str, tower: Tower) -> Input:
        if tower.info.modality == "visual":
            return VisualInput(tower.info)
        if tower.info.modality == "language":
            return AnswerInput(cast("LanguageTower", tower), (answers or {}).get(name, 32))
        tile = tiles.get(name, 1)
        return WholeAudioInput(tower, rate, cache) if tile == "whole" else AudioInput(tower, rate, tile, cache)

    return {name: make(name, tower) for name, tower in towers.items()}
