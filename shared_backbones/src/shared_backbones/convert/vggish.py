"""VGGish's PyTorch port to tower `vggish`: the same names, and nothing to drop (tasks.md 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared_backbones.convert import Converter

if TYPE_CHECKING:
    from shared_backbones.convert import Tensors


def translate(tensors: Tensors) -> tuple[str | None, Tensors, list[str]]:
    """All tensors under their names; the linear layers already read rows, columns, channels."""
    return None, tensors, []


CONVERTER = Converter("vggish", lambda names: {"features.0.weight", "embeddings.4.weight"} <= names, translate)
