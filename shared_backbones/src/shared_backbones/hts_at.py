"""HTS-AT (Chen et al., ICASSP 2022), the windowed audio transformer of the towers `htsat` and `clap`, through transformers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import ClapAudioConfig, ClapAudioModel
from transformers.models.clap.modeling_clap import ClapAudioAttention, ClapAudioEncoder, ClapAudioLayer, ClapAudioStage

from shared_backbones.logmel import LogMel, LogMelOptions
from shared_backbones.tower import Prefix, Sub, Swap, Tower, TowerInfo, refuse
from shared_backbones.windows import from_windows, to_windows, window_attention


def audio_config(
    size: int, mels: int, width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, joint: int
):
    """The library's configuration from the few numbers that vary; ``size``: side of the square folded spectrogram."""
    return ClapAudioConfig(
        spec_size=size, num_mel_bins=mels, patch_size=4, patch_stride=[4, 4], patch_embeds_hidden_size=width,
        depths=list(depths), num_attention_heads=list(heads), window_size=window, projection_dim=joint,
        hidden_size=width * 2 ** (len(depths) - 1), num_hidden_layers=len(depths),
        hidden_dropout_prob=0.0, drop_path_rate=0.0,
    )  # fmt: skip


def fit_windows(model: ClapAudioModel) -> ClapAudioModel:
    """Settle window and shift of every block once, as the library would at its first forward.

    Where the grid is smaller than the window the library shrinks the window but not the relative position table and then
    fails; such a block gets an attention of the grid's size here.
    """
    encoder = model.audio_encoder
    for stage, grid in zip(encoder.layers, encoder.input_resolutions, strict=True):
        for block in cast("Any", stage).blocks:
            block.set_shift_and_window_size(grid)
            if block.window_size < model.config.window_size:
                heads = block.attention.self.num_attention_heads
                block.attention = ClapAudioAttention(
                    model.config, block.layernorm_before.weight.numel(), heads, block.window_size
                )
                block.attention.apply(model._init_weights)
    return model


class HtsAt(Tower):
    """The walk owns the loop: attention with its norm and windows is one sublayer, the MLP with its norm another.

    `final` is the last LayerNorm; users that feed a head from the un-normalised tokens simply do not call it.
    """

    def __init__(
        self,
        name: str,
        size: str,
        net: nn.Module,
        audio: ClapAudioModel,
        logmel: LogMelOptions,
        joint_width: int | None = None,
    ) -> None:
        encoder = audio.audio_encoder
        config = audio.config
        frames = config.spec_size * encoder.freq_ratio
        blocks: list[ClapAudioLayer] = []
        subs: list[Sub] = []
        for i, (stage, grid) in enumerate(zip(encoder.layers, encoder.input_resolutions, strict=True)):
            at = (i, len(blocks), cast("tuple[int, int]", grid), config.patch_embeds_hidden_size * 2**i)
            if i:
                subs.append(Sub("merge", *at))
            for block in cast(ClapAudioStage, stage).blocks:
                at = (i, len(blocks), *at[2:])
                subs += [Sub("attn", *at), Sub("mlp", *at)]
                blocks.append(cast(ClapAudioLayer, block))
        last = subs[-1]
        super().__init__(
            TowerInfo(
                name=name, size=size, variant="tiny" if size == "tiny" else "htsat-tiny", modality="audio", width=last.width,
                class_tokens=0, grid=last.grid, depths=tuple(config.depths), sample_rate=logmel.sample_rate,
                max_samples=frames * logmel.hop - 1, joint_width=joint_width, spectrogram=(frames, logmel.mels),
                heads=tuple(config.num_attention_heads),
            ),
            net,
            tuple(subs),
        )  # fmt: skip
        # Plain references: `net` alone registers the weights.
        self._encoder: list[ClapAudioEncoder] = [encoder]
        self.blocks = blocks
        self.logmel = LogMel(logmel)

    @property
    def encoder(self) -> ClapAudioEncoder:
        """The library's audio encoder inside ``net``."""
        return self._encoder[0]

    @property
    def frontend_options(self) -> dict[str, Any]:
        return self.logmel.describe()

    def frontend(self, x: Tensor) -> Tensor:
        limit = cast(int, self.info.max_samples)
        if x.ndim == 2 and x.shape[1] > limit:
            raise ValueError(
                f"{self.info.name}: {x.shape[1]} samples; at most {limit} ({limit / self.logmel.options.sample_rate:.2f} s) "
                "fit the spectrogram, so cut the waveform first"
            )
        return self.logmel(x)

    def repetitions(self, samples: int, times: int) -> int:
        return self.logmel.repetitions(samples, times)

    def unroll(self, features: Tensor, samples: int, times: int) -> Tensor:
        return self.logmel.unroll(features, samples, times)

    def embed(self, features: Tensor, hide: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Log-mel [B, 1, frames, mels]: batch norm over mels, zeros where ``hide`` [B, frames, mels], bicubic stretch in time,
        four chunks stacked along frequency, patches. ValueError for another shape or more frames than the spectrogram holds."""
        encoder, mels = self.encoder, self.logmel.options.mels
        frames = encoder.spec_size * encoder.freq_ratio
        if features.ndim != 4 or features.shape[1] != 1 or features.shape[3] != mels or features.shape[2] > frames:
            raise ValueError(
                f"{self.info.name}: log-mel of shape {tuple(features.shape)}; expected [B, 1, at most {frames}, {mels}]"
            )
        normed = encoder.batch_norm(features.transpose(1, 3)).transpose(1, 3)
        if hide is not None:
            expected = (len(features), *features.shape[2:])
            if hide.dtype != torch.bool or tuple(hide.shape) != expected:
                raise ValueError(
                    f"{self.info.name}: hide is {hide.dtype} {tuple(hide.shape)}; expected torch.bool {expected}, one entry per "
                    "frame and mel"
                )
            normed = normed.masked_fill(hide.unsqueeze(1), 0.0)
        return encoder.patch_embed(encoder.reshape_mel2img(normed)), {}

    def run(
        self, sub: Sub, tokens: Tensor, aux: dict[str, Any], prefix: Prefix | None = None, swap: Swap | None = None
    ) -> Tensor:
        refuse(sub, self.info.name, prefix, swap)
        if sub.kind == "merge":
            # The library keeps a stage's down-sampling at its end.
            rows, columns = sub.grid
            stage = cast(Any, self.encoder.layers[sub.stage - 1])
            return stage.downsample(tokens, (2 * rows, 2 * columns))
        block = self.blocks[sub.block]
        if sub.kind == "mlp":
            normed = block.layernorm_after(tokens)
            return (swap or self.mlp(sub))(normed)
        return self._attention(block, sub, block.layernorm_before(tokens), prefix)

    def mlp(self, sub: Sub) -> Swap:
        block = self.blocks[sub.block]
        # One module, as other towers have: it can be copied. The library's dropout behind it is 0.
        return nn.Sequential(block.intermediate.dense, block.intermediate.intermediate_act_fn, block.output.dense)

    def _attention(self, block: ClapAudioLayer, sub: Sub, normed: Tensor, prefix: Prefix | None) -> Tensor:
        attn, window, shift = block.attention.self, int(block.window_size), int(block.shift_size)
        x = to_windows(normed, sub.grid, window, shift)
        if prefix is not None:
            prefix = (attn.key(prefix[0]), attn.value(prefix[1]))
        index = attn.relative_position_index
        bias = attn.relative_position_bias_table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)
        mask = block.get_attn_mask(*sub.grid, dtype=normed.dtype, device=normed.device)
        out = window_attention(attn.query(x), attn.key(x), attn.value(x), attn.num_attention_heads, bias, mask, prefix)
        return from_windows(block.attention.output.dense(out), sub.grid, window, shift)

    def final(self, tokens: Tensor) -> Tensor:
        return self.encoder.norm(tokens)
