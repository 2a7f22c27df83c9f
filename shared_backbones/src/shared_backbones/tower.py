"""A tower: an encoder as an ordered list of sublayers, frozen unless declared trainable, with one token layout for all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from shared_backbones.text import TextEncoder

Prefix = tuple[Tensor, Tensor]
Swap = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sub:
    """One sublayer of a tower.

    ``kind``: attn or mlp (a residual branch), merge (down-sampling between stages) or stage (a whole convolutional stage).
    ``stage``, ``block``: indices from 0, blocks counted through the whole tower; a merge carries those of the block that
    follows it. ``grid``, ``width``: rows and columns of the patch tokens, and channels, that the sublayer returns.
    """

    kind: Literal["attn", "mlp", "merge", "stage"]
    stage: int
    block: int
    grid: tuple[int, int]
    width: int


@dataclass(frozen=True)
class TowerInfo:
    """What a caller needs to know about a tower before it has seen a tensor.

    Images: ``image_size`` (pixels, square), ``mean`` and ``std`` per channel. Audio: ``sample_rate`` (Hz) and
    ``max_samples``, the longest waveform taken in one piece. ``width``: channels of the final tokens; ``class_tokens``:
    number of leading tokens that lie on no grid; ``grid``: rows and columns of the final patch tokens; ``depths``: blocks
    per stage; ``joint_width``: width of the space shared with text, None where the tower has no text side; ``spectrogram``:
    the longest log-mel (frames, mels) whose entries `Tower.embed` can hide, None where it cannot; ``heads``: attention heads
    per stage, none without attention; ``part_of``: the variant whose weights it loads, without those that it does not build; None
    where it has weights of its own.
    """

    name: str
    size: str
    variant: str
    modality: Literal["visual", "audio", "language"]
    width: int
    class_tokens: int
    grid: tuple[int, int]
    depths: tuple[int, ...]
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    sample_rate: int | None = None
    max_samples: int | None = None
    joint_width: int | None = None
    spectrogram: tuple[int, int] | None = None
    heads: tuple[int, ...] = ()
    part_of: str | None = None


class Tower(nn.Module):
    """An encoder that is walked sublayer by sublayer; tokens are [B, N, C], row-major, class tokens first.

    ``net`` is the library's module and holds every weight. The walk ``x, aux = embed(frontend(x))``, then ``x = join(sub, x,
    run(sub, x, aux))`` for every sublayer, then ``final(x)`` equals the library's own forward.
    """

    def __init__(self, info: TowerInfo, net: nn.Module, subs: tuple[Sub, ...]) -> None:
        super().__init__()
        self.info = info
        self.net = net
        self.subs = subs
        self.text: TextEncoder | None = None
        self.trainable = False
        self.set_trainable(False)

    def set_trainable(self, trainable: bool) -> Tower:
        """Freeze (eval mode for good, no gradients) or unfreeze (train mode obeys, all parameters take gradients)."""
        self.trainable = trainable
        for parameter in self.net.parameters():
            parameter.requires_grad_(trainable)
        self.train(trainable)
        return self

    def train(self, mode: bool = True) -> Tower:
        # A frozen tower inside a model that is switched to train mode must not wake dropout or move batch-norm statistics.
        return super().train(mode and self.trainable)

    @property
    def frontend_options(self) -> dict[str, Any]:
        """All options of the parameter-free front end, JSON-like; what `frontend_digest` hashes."""
        return {
            "modality": self.info.modality,
            "size": self.info.image_size,
            "mean": self.info.mean,
            "std": self.info.std,
        }

    @property
    def frontend_digest(self) -> str:
        """sha256 (hex) of the front end's options: equal digests mean equal features for equal inputs."""
        return hashlib.sha256(json.dumps(self.frontend_options, sort_keys=True).encode()).hexdigest()

    def frontend(self, x: Tensor) -> Tensor:
        """Parameter-free features: a waveform [B, T] at ``info.sample_rate`` becomes a log-mel [B, 1, frames, mels];
        images [B, 3, H, W], float and already normalised with ``info.mean`` and ``info.std``, pass unchanged.

        Raises ValueError for another shape, size or length.
        """
        size = self.info.image_size
        if x.ndim != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"{self.info.name}: images of shape {tuple(x.shape)}; expected [B, 3, {size}, {size}]")
        return x

    def repetitions(self, samples: int, times: int) -> int:
        """How often a piece of ``samples`` samples must be repeated before `frontend`, so that `unroll` can give the features
        of ``times`` repetitions: ``times`` itself, or fewer where the front end knows its own period."""
        return times

    def unroll(self, features: Tensor, samples: int, times: int) -> Tensor:
        """Features of a piece repeated ``repetitions(samples, times)`` times to those of ``times`` repetitions, bit for bit."""
        return features

    def embed(self, features: Tensor, hide: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Tokens [B, N, C] before the first sublayer, and what later calls need to know about this batch.

        ``hide``: bool [B, frames, mels], entries of the log-mel that become zero after the input normalisation (SpecAugment,
        avmoe.md 4.1). ValueError where the tower has no such place (``info.spectrogram`` is None).
        """
        raise NotImplementedError

    def run(
        self, sub: Sub, tokens: Tensor, aux: dict[str, Any], prefix: Prefix | None = None, swap: Swap | None = None
    ) -> Tensor:
        """One sublayer of the walk, [B, N, C] in and out.

        attn and mlp return the residual branch with its norms, which `join` adds; merge and stage return the new tokens. ``prefix`` (attn only): rows for keys and for values, each [B, n, C] in token space, concatenated before the
        sequence in front of the frozen key and value projections. ``swap`` (mlp only): takes the MLP's place inside
        the sublayer, between the same norms.
        """
        raise NotImplementedError

    def join(self, sub: Sub, tokens: Tensor, out: Tensor) -> Tensor:
        """Tokens behind a sublayer, [B, N, C], from those in front of it and what `run` returned.

        attn and mlp: their sum; a post-norm tower weighs and normalises here what pre-norm towers only add. merge and stage:
        ``out``.
        """
        return tokens + out if sub.kind in ("attn", "mlp") else out

    def mlp(self, sub: Sub) -> Swap:
        """The MLP inside an mlp sublayer without its norms, [B, N, C] in and out: what ``swap`` replaces."""
        raise TypeError(f"{self.info.name} has no MLP sublayers")

    def final(self, tokens: Tensor) -> Tensor:
        """The tower's final norm over all tokens, where it has one, [B, N, C]."""
        return tokens

    def project(self, final_tokens: Tensor) -> Tensor:
        """Final tokens [B, N, C] to the space shared with text [B, D_joint], not normalised. TypeError without text side."""
        raise TypeError(f"{self.info.name} has no text side, so its tokens have no joint space to go to")

    def encode(self, x: Tensor) -> Tensor:
        """Tokens after the final norm [B, N, C] of images [B, 3, H, W] or waveforms [B, T]; eval mode, no gradients."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                tokens, aux = self.embed(self.frontend(x))
                for sub in self.subs:
                    tokens = self.join(sub, tokens, self.run(sub, tokens, aux))
                return self.final(tokens)
        finally:
            self.train(was_training)

    def weights_digest(self) -> str:
        """sha256 (hex) over the names, types, shapes and bytes of all tensors of ``net``, sorted by name."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.net.state_dict().items()):
            data = tensor.detach().cpu().contiguous()
            total.update(f"{name}:{data.dtype}:{tuple(data.shape)};".encode())
            total.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
        return total.hexdigest()


def refuse_hiding(name: str, hide: Tensor | None) -> None:
    """Raise ValueError where entries are to be hidden from a tower that has no normalised log-mel."""
    if hide is not None:
        raise ValueError(
            f"{name}: hide zeroes entries of a normalised log-mel, which this tower does not have; leave it out"
        )


def refuse(sub: Sub, name: str, prefix: Prefix | None, swap: Swap | None) -> None:
    """Raise ValueError where a prefix or a swap meets a sublayer that has no place for it."""
    if prefix is not None and sub.kind != "attn":
        raise ValueError(f"{name}: a prefix acts on attention, not on the {sub.kind} sublayer of block {sub.block}")
    if swap is not None and sub.kind != "mlp":
        raise ValueError(f"{name}: a swap replaces an MLP, not the {sub.kind} sublayer of block {sub.block}")
