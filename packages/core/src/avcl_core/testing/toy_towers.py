"""Towers of the real classes in their smallest sizes, with random weights, for tests that run many models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from avcl_core.testing.toy_data import RATE
from shared_backbones.tower import Tower


def swin(size: int = 32, seed: int = 0) -> Tower:
    """Return a Swin-V2 of two stages with two blocks each."""
    from shared_backbones.towers.swin_v2 import SwinV2

    geometry = {"img_size": size, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
    return _drawn(seed, lambda: SwinV2("tiny", "toy", geometry))


def htsat(seed: int = 0) -> Tower:
    """Return an HTS-AT of two stages with two blocks each, for a second of sound at 8 kHz."""
    from transformers import ClapAudioModel

    from shared_backbones.hts_at import HtsAt, audio_config, fit_windows
    from shared_backbones.logmel import LogMelOptions

    front = LogMelOptions(sample_rate=RATE, hop=160, mels=16, scale="slaney", n_fft=256, high=4000.0)

    def make() -> Tower:
        net = fit_windows(ClapAudioModel(audio_config(32, 16, 8, (2, 2), (1, 2), 4, 16)))
        return HtsAt("htsat", "tiny", net, net, front)

    return _drawn(seed, make)


def clip(seed: int = 0) -> Tower:
    """Return a CLIP image transformer of four blocks."""
    from shared_backbones.towers.clip_vit import ClipVit

    return _drawn(seed, lambda: ClipVit("tiny", "toy", (16, 4, 2, 8, 32, 16, 1, 2, 16, 259), None))


def resnet(seed: int = 0) -> Tower:
    """Return a ResNet of two stages with one block each."""
    from shared_backbones.towers.resnet18 import ResNet18

    return _drawn(seed, lambda: ResNet18("tiny", (8, 16), (1, 1), 32))


def toy_towers() -> Mapping[str, Tower]:
    """Return the default pair: Swin-V2 and HTS-AT."""
    return {"visual": swin(), "audio": htsat()}


def aligned_towers() -> Mapping[str, Tower]:
    """Return CLIP and CLAP with their text sides, four blocks each, in the sizes that are shipped as tiny."""
    from shared_backbones.registry import build

    return {"visual": stir(build("clip_vit", "tiny", {})), "audio": stir(build("clap", "tiny", {}))}


def stir(tower: Tower, seed: int = 0) -> Tower:
    """Add noise to every weight and return the tower: some start at zero (Swin-V2's norms) and would silence their blocks."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return tower


def _drawn(seed: int, make: Callable[[], Tower]) -> Tower:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return stir(make(), seed)


def talking_towers() -> Mapping[str, Tower]:
    """Return CLIP, BEATs and a language model in the sizes that are shipped as tiny, with random weights."""
    from shared_backbones.registry import build

    names = {"visual": "clip_vit", "audio": "beats", "language": "av_llama"}
    return {name: _drawn(0, lambda tower=tower: build(tower, "tiny", {})) for name, tower in names.items()}
