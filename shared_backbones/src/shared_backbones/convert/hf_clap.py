"""CLAP without fusion in the transformers layout to tower `clap`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared_backbones.convert import Converter

if TYPE_CHECKING:
    from shared_backbones.convert import Tensors


def translate(tensors: Tensors) -> tuple[str | None, Tensors, list[str]]:
    """The tower keeps these names."""
    return None, dict(tensors), []


CONVERTER = Converter("clap", lambda names: "audio_model.audio_encoder.batch_norm.weight" in names, translate)
