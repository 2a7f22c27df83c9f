"""ResNet-50: bottleneck blocks, four stages of 256 to 2,048 channels (the visual baseline of AVSBench, tasks.md 3.3)."""

from __future__ import annotations

from torchvision.models.resnet import Bottleneck

from shared_backbones.registry import register
from shared_backbones.resnet import ResNet


@register("resnet50")
def resnet50(size: str) -> ResNet:
    """Full: widths 256…2048, 3, 4, 6, 3 blocks; tiny: 64 pixels, widths 16…128, one block per stage."""
    if size == "tiny":
        return ResNet("resnet50", size, Bottleneck, (4, 8, 16, 32), (1, 1, 1, 1), 64)
    return ResNet("resnet50", size, Bottleneck, (64, 128, 256, 512), (3, 4, 6, 3), 224)
