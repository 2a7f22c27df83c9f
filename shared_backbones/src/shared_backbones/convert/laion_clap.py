"""LAION's CLAP checkpoint to tower `clap`, built without fusion (avmoe.md 5.2, php.md 3.3)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shared_backbones.convert import Converter
from shared_backbones.convert.htsat import translate_encoder

if TYPE_CHECKING:
    from shared_backbones.convert import Tensors

# Fusion of long clips, contrastive MLPs that the embeddings do not pass, and a buffer.
DROPPED = re.compile(
    r"audio_branch\.patch_embed\.(mel_conv2d|fusion_model)\..*|(audio|text)_transform\..*|text_branch\.embeddings\.position_ids"
)
PROJECTION = re.compile(r"(audio|text)_projection\.([02])\.(weight|bias)")
LINEAR = {"0": "linear1", "2": "linear2"}


def translate(tensors: Tensors) -> tuple[str | None, Tensors, list[str]]:
    """Strip ``module.``, drop by name, then branch by branch."""
    audio: Tensors = {}
    found: Tensors = {}
    dropped: list[str] = []
    for key, tensor in tensors.items():
        name = key.removeprefix("module.")
        if DROPPED.fullmatch(name):
            dropped.append(name)
        elif name.startswith("audio_branch."):
            audio[name.removeprefix("audio_branch.")] = tensor
        elif name.startswith("text_branch."):
            found[f"text_model.{name.removeprefix('text_branch.')}"] = tensor
        elif match := PROJECTION.fullmatch(name):
            found[f"{match[1]}_projection.{LINEAR[match[2]]}.{match[3]}"] = tensor
        else:
            found[name] = tensor
    encoder, more = translate_encoder(audio)
    found |= {f"audio_model.audio_encoder.{name}": tensor for name, tensor in encoder.items()}
    return None, found, dropped + [f"audio_branch.{name}" for name in more]


CONVERTER = Converter(
    "clap", lambda names: any(name.removeprefix("module.").startswith("audio_branch.") for name in names), translate
)
