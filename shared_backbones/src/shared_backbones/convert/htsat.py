"""HTS-AT's Lightning checkpoint to tower `htsat` (key map of avmoe.md 5.2)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shared_backbones.convert import Converter

if TYPE_CHECKING:
    from shared_backbones.convert import Tensors

PREFIX = "sed_model."
# Not part of the encoder: fixed front-end tensors, class heads, and masks that depend only on the geometry.
DROPPED = re.compile(
    r"spectrogram_extractor\.stft\.conv_(real|imag)\.weight|logmel_extractor\.melW|(tscam_conv|head)\.(weight|bias)"
    r"|layers\.\d+\.blocks\.\d+\.attn_mask"
)
RENAMED = (
    (r"^bn0\.", "batch_norm."),
    (r"(blocks\.\d+\.)norm1\.", r"\1layernorm_before."),
    (r"(blocks\.\d+\.)norm2\.", r"\1layernorm_after."),
    (r"(blocks\.\d+\.)attn\.relative_position_", r"\1attention.self.relative_position_"),
    (r"(blocks\.\d+\.)attn\.proj\.", r"\1attention.output.dense."),
    (r"(blocks\.\d+\.)mlp\.fc1\.", r"\1intermediate.dense."),
    (r"(blocks\.\d+\.)mlp\.fc2\.", r"\1output.dense."),
)
QKV = re.compile(r"(.*blocks\.\d+\.)attn\.qkv\.(weight|bias)")


def translate_encoder(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """HTS-AT names (without a prefix) to the library's audio encoder; query, key and value are thirds of the rows."""
    found: Tensors = {}
    dropped: list[str] = []
    for name, tensor in tensors.items():
        if DROPPED.fullmatch(name):
            dropped.append(name)
        elif match := QKV.fullmatch(name):
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[f"{match[1]}attention.self.{part}.{match[2]}"] = third
        else:
            for pattern, replacement in RENAMED:
                name = re.sub(pattern, replacement, name)
            found[name] = tensor
    return found, dropped


def translate(tensors: Tensors) -> tuple[str | None, Tensors, list[str]]:
    """Every key carries the prefix of the Lightning module's attribute, or none does."""
    known = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    found, dropped = translate_encoder(known)
    return None, {f"audio_encoder.{name}": tensor for name, tensor in found.items()}, dropped


CONVERTER = Converter("htsat", lambda names: {f"{PREFIX}bn0.weight", "bn0.weight"} & names != set(), translate)
