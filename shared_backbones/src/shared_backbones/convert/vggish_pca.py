"""The parameters of VGGish's post-processing, which come beside its weights as arrays of numpy (see `vggish_pca`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared_backbones.convert import Converter

if TYPE_CHECKING:
    from shared_backbones.convert import Tensors

SHAPES = {"pca_eigen_vectors": (128, 128), "pca_means": (128, 1)}


def translate(tensors: Tensors) -> tuple[str | None, Tensors, list[str]]:
    """The means may come flat; they are a column here."""
    column = {name: t.reshape(-1, 1) if name == "pca_means" else t for name, t in tensors.items()}
    return "pca", column, []


CONVERTER = Converter("vggish", lambda names: names >= SHAPES.keys(), translate, SHAPES)
