"""BEATs as a tower: 16-kHz sound of any length up to 30 s in one piece, eight tokens per 0.16 s, padding hidden from attention."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from shared_backbones.beats import BeatsBody, BeatsConfig, BeatsLayer, token_padding
from shared_backbones.kaldi import KaldiFbank
from shared_backbones.registry import register
from shared_backbones.tower import Prefix, Sub, Swap, Tower, TowerInfo, refuse, refuse_hiding

# Mean and twice the standard deviation of the log-mels that BEATs was trained on (avqacl_moe.md 3.7).
MEAN, TWO_STD = 15.41663, 2 * 6.55582
LONGEST = 30

FULL = BeatsConfig(width=768, depth=12, heads=12, hidden=3072, patch_width=512)
TINY = BeatsConfig(width=64, depth=2, heads=4, hidden=256, patch_width=64)


@register("beats")
def beats(size: str) -> Beats:
    """Full: 12 blocks of width 768, 12 heads (the cfg of `BEATs_iter3_plus_AS2M.pt`); tiny: 2 blocks of width 64, 4 heads."""
    return Beats(size, TINY if size == "tiny" else FULL)


class Beats(Tower):
    """Post-norm blocks: `run` gives a bare residual branch, `join` weighs the tokens with DeepNorm's α, adds and normalises.

    Any number of frames from one patch on is taken; grids in ``info`` and ``subs`` are those of one second. ``aux["padding"]``
    tells which tokens are padding, [B, L], or is None; ``aux["bias"]`` is the relative bias, which all blocks share.
    """

    net: BeatsBody

    def __init__(self, size: str, config: BeatsConfig) -> None:
        fbank = KaldiFbank()
        rate = fbank.options.sample_rate
        grid = (fbank.options.frames(rate) // config.patch, config.mels // config.patch)
        subs = (Sub(kind, 0, block, grid, config.width) for block in range(config.depth) for kind in ("attn", "mlp"))
        super().__init__(
            TowerInfo(
                name="beats", size=size, variant="tiny" if size == "tiny" else "beats", modality="audio",
                width=config.width, class_tokens=0, grid=grid, depths=(config.depth,), sample_rate=rate,
                max_samples=LONGEST * rate, heads=(config.heads,),
            ),
            BeatsBody(config),
            tuple(subs),
        )  # fmt: skip
        self.config = config
        self.fbank = fbank

    @property
    def frontend_options(self) -> dict[str, Any]:
        return self.fbank.describe() | {"mean": MEAN, "two_std": TWO_STD}

    def frontend(self, x: Tensor) -> Tensor:
        o, limit = self.fbank.options, cast(int, self.info.max_samples)
        if x.ndim == 2:
            least = o.window + (self.config.patch - 1) * o.hop
            if x.shape[1] < least:
                raise ValueError(f"beats: {x.shape[1]} samples; expected {least} or more, one patch of frames")
            if x.shape[1] > limit:
                raise ValueError(
                    f"beats: {x.shape[1]} samples; at most {limit} ({LONGEST} s), so cut the waveform into pieces first"
                )
        return (self.fbank(x).unsqueeze(1) - MEAN) / TWO_STD

    def embed(
        self, features: Tensor, hide: Tensor | None = None, padding: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Tokens [B, L, C] of log-mels [B, 1, F, 128], L = 8·⌊F/16⌋, time by time with the mel bands innermost.

        ``padding``: bool [B, samples] of the waveforms that gave ``features``, true where a sample is padding. Padded tokens are
        zero in front of the convolution of positions, and no token attends to them; what comes out at their places means
        nothing, so leave ``aux["padding"]`` out of every mean. ValueError for another shape or type, or for a row of nothing but padding.
        """
        refuse_hiding("beats", hide)
        patch, mels = self.config.patch, self.config.mels
        if features.ndim != 4 or features.shape[1] != 1 or features.shape[2] < patch or features.shape[3] != mels:
            raise ValueError(
                f"beats: log-mel of shape {tuple(features.shape)}; expected [B, 1, at least {patch}, {mels}]"
            )
        tokens = self.net.tokens(features)
        if padding is not None:
            padding = self._token_padding(padding, len(features), features.shape[2], tokens.shape[1])
            tokens = tokens.masked_fill(padding.unsqueeze(-1), 0.0)
        encoder = self.net.encoder
        return encoder.positioned(tokens), {"padding": padding, "bias": encoder.bias(tokens.shape[1])}

    def _token_padding(self, padding: Tensor, rows: int, frames: int, tokens: int) -> Tensor:
        right = padding.ndim == 2 and len(padding) == rows and self.fbank.options.frames(padding.shape[1]) == frames
        if padding.dtype != torch.bool or not right:
            o = self.fbank.options
            least = o.window + (frames - 1) * o.hop
            raise ValueError(
                f"beats: padding is {padding.dtype} {tuple(padding.shape)}; expected torch.bool ({rows}, {least} to "
                f"{least + o.hop - 1}), one entry per sample of the waveforms with these {frames} frames"
            )
        found = token_padding(padding, frames, tokens)
        if not found.is_meta and bool(found.all(1).any()):
            empty = found.all(1).nonzero().flatten().tolist()
            raise ValueError(f"beats: rows {empty} are nothing but padding; leave them out")
        return found

    def run(
        self, sub: Sub, tokens: Tensor, aux: dict[str, Any], prefix: Prefix | None = None, swap: Swap | None = None
    ) -> Tensor:
        refuse(sub, "beats", prefix, swap)
        if sub.kind == "mlp":
            return (swap or self.mlp(sub))(tokens)
        bias = aux["bias"] if "bias" in aux else self.net.encoder.bias(tokens.shape[1])
        return self._layer(sub).self_attn(tokens, bias, aux.get("padding"), prefix)

    def join(self, sub: Sub, tokens: Tensor, out: Tensor) -> Tensor:
        layer = self._layer(sub)
        norm = layer.self_attn_layer_norm if sub.kind == "attn" else layer.final_layer_norm
        return norm(self.config.alpha * tokens + out)

    def mlp(self, sub: Sub) -> Swap:
        return self._layer(sub).mlp

    def _layer(self, sub: Sub) -> BeatsLayer:
        return cast(BeatsLayer, self.net.encoder.layers[sub.block])
