"""The one place that knows mmsegmentation: its decode heads in place of our decoder, where they can be imported."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from avcl_core.errors import ConfigError, nearest

INSTALL = "install avcl-avs[mmseg]"
BUILD = (
    "mmcv-lite has metrics only; build full mmcv in its place: "
    "pip uninstall mmcv-lite && MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary mmcv mmcv==2.1.0"
)


def decode_head(name: str, in_channels: Sequence[int], channels: int, **options: Any) -> nn.Module:
    """Return a decode head of mmsegmentation with one logit per pixel, over maps from fine to coarse.

    A head for a single map gets all maps, resized to the finest and concatenated. Normalisation layers are left out, unless
    ``norm_cfg`` is among the options: they would couple the samples of a batch.

    Args:
        name: class of the head, for example ``FCNHead`` or ``UPerHead``.
        in_channels: channels of every map.
        channels: inner width of the head.
        options: further arguments of the class.

    Raises:
        ConfigError: mmsegmentation or the compiled operators of mmcv are missing, the name is unknown, or the class refuses
            the arguments.
    """
    registry = _registry(name)
    found = registry.get(name)
    if found is None:
        known = sorted(key for key in registry.module_dict if key.endswith("Head"))
        raise ConfigError(f"tasks.avs.head: mmseg:{name} is unknown{nearest(name, known)}")
    maps = list(range(len(in_channels)))
    settings = {"num_classes": 2, "out_channels": 1, "threshold": 0.5, "align_corners": False, "norm_cfg": None}
    settings |= {"in_channels": list(in_channels), "in_index": maps, "channels": channels, **options}
    try:
        try:
            head = found(**settings)
        except (AssertionError, TypeError):  # a head for a single map
            head = found(**{"input_transform": "resize_concat", **settings})
    except (AssertionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"tasks.avs.head: mmseg:{name} cannot read {len(in_channels)} maps: {reason}") from error
    _quietly(head.init_weights)
    return head


def _quietly(work: Callable[[], Any]) -> None:
    """Run ``work`` without its log lines: mmengine reports every initialised tensor."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        work()
    finally:
        logging.disable(before)


def _registry(name: str) -> Any:
    """Return the registry of mmsegmentation's models, or say what is missing for it."""
    asked = f"tasks.avs.head: mmseg:{name}"
    try:
        from mmseg.registry import MODELS  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(f"{asked} needs mmsegmentation ({error}); {INSTALL}") from error
    try:
        import mmseg.models  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{asked} needs the compiled operators of mmcv ({error}); {BUILD}") from error
    return MODELS


class MmsegDecoder(nn.Module):
    """A decode head as decoder of four maps of one width.

    Args:
        name: class of the head.
        width: channels of the maps and of the head.
        mask_size: edge of the logits in pixels.
    """

    def __init__(self, name: str, width: int, mask_size: int) -> None:
        super().__init__()
        self.head = decode_head(name, [width] * 4, width)
        self.mask_size = mask_size

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits ``[n, S, S]`` for maps ``[n, width, H, W]`` from fine to coarse."""
        logits = self.head(list(maps))
        if isinstance(logits, (list, tuple)):
            logits = logits[0]
        if not torch.is_tensor(logits) or logits.ndim != 4 or logits.shape[1] != 1:
            raise ConfigError(
                f"tasks.avs.head: {type(self.head).__name__} gives no map of one channel; choose another head"
            )
        size = (self.mask_size, self.mask_size)
        return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False).squeeze(1)
