"""AudioSet's post-processing of VGGish embeddings: whitening by principal components, clipping, eight bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared_backbones.errors import WeightsError
from shared_backbones.weights import converted, read_header

LIMIT = 2.0
"""Whitened values are cut at plus and minus this."""


@dataclass(frozen=True)
class Pca:
    """``vectors`` [128, 128], one component per row, already divided by its deviation; ``means`` [128]."""

    vectors: Tensor
    means: Tensor


def load_pca(path: str | Path) -> Pca:
    """Parameters from ``vggish_pca_params-970ea276.pth`` (converted first, beside the file) or a file converted before.

    Raises WeightsError where the file is absent or holds something else.
    """
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; expected the parameters of VGGish's post-processing")
    header = read_header(path)
    if header is None or "tower" not in header:
        path = converted(path, "vggish")
        header = read_header(path) or {}
    found = (header.get("tower"), header.get("variant"))
    if found != ("vggish", "pca"):
        raise WeightsError(
            f"{path}: holds {found[0]} {found[1]}; expected vggish pca, the post-processing's parameters"
        )
    tensors = load_file(path)
    return Pca(tensors["pca_eigen_vectors"], tensors["pca_means"].flatten())


def postprocess(embeddings: Tensor, pca: Pca) -> Tensor:
    """VGGish embeddings [..., 128] to AudioSet's released form, uint8 [..., 128] (vggish_postprocess of AudioSet).

    v = vectors · (e - means), cut to -2…2, mapped to 0…255 and truncated. The PyTorch port rounds instead and so differs by
    at most one. Computed in float64.
    """
    whitened = (embeddings.double() - pca.means.double()) @ pca.vectors.double().T
    return ((whitened.clamp(-LIMIT, LIMIT) + LIMIT) * (255 / (2 * LIMIT))).to(torch.uint8)
