"""ResNet-18: basic blocks, four stages of 64 to 512 channels; the tiny one is ASAL's (asal.md 10)."""

from __future__ import annotations

from torchvision.models.resnet import BasicBlock

from shared_backbones.registry import register
from shared_backbones.resnet import ResNet


@register("resnet18")
def resnet18(size: str) -> ResNet18:
    """Full: widths 64…512, two blocks per stage; tiny: widths 8, 16, 32, one block per stage."""
    if size == "tiny":
        return ResNet18(size, (8, 16, 32), (1, 1, 1), 64)
    return ResNet18(size, (64, 128, 256, 512), (2, 2, 2, 2), 224)


class ResNet18(ResNet):
    """Residual network of basic blocks; ``widths`` are the channels of its stages."""

    def __init__(self, size: str, widths: tuple[int, ...], depths: tuple[int, ...], image_size: int) -> None:
        super().__init__("resnet18", size, BasicBlock, widths, depths, image_size)
