"""ResNet-18 (He et al., CVPR 2016) from torchvision's blocks, walked stage by stage, for frozen and trained use."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1

from shared_backbones.registry import register
from shared_backbones.tower import Prefix, Sub, Swap, Tower, TowerInfo, refuse

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@register("resnet18")
def resnet18(size: str) -> ResNet18:
    """Full: widths 64…512, two blocks per stage; tiny: widths 8, 16, 32, one block per stage (asal.md 10)."""
    if size == "tiny":
        return ResNet18(size, (8, 16, 32), (1, 1, 1), 64)
    return ResNet18(size, (64, 128, 256, 512), (2, 2, 2, 2), 224)


class ResNetBody(nn.Module):
    """The convolutional part with torchvision's parameter names and initialisation, for any widths."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = widths[0]
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stride = 1 if i == 0 else 2
            down = nn.Sequential(conv1x1(before, width, stride), nn.BatchNorm2d(width)) if i else None
            rest = [BasicBlock(width, width) for _ in range(depth - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(BasicBlock(before, width, stride, down), *rest))
            before = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNet18(Tower):
    """Sublayers of kind stage; any image size is taken, grids in ``info`` and ``subs`` are those of ``info.image_size``."""

    net: ResNetBody

    def __init__(self, size: str, widths: tuple[int, ...], depths: tuple[int, ...], image_size: int) -> None:
        side = image_size // 4
        grids = [(side // 2**i, side // 2**i) for i in range(len(widths))]
        subs = tuple(Sub("stage", i, i, grid, width) for i, (grid, width) in enumerate(zip(grids, widths, strict=True)))
        super().__init__(
            TowerInfo(
                name="resnet18", size=size, variant="tiny" if size == "tiny" else "resnet18", modality="visual",
                width=widths[-1], class_tokens=0, grid=grids[-1], depths=depths, image_size=image_size,
                mean=IMAGENET_MEAN, std=IMAGENET_STD,
            ),
            ResNetBody(widths, depths),
            subs,
        )  # fmt: skip

    def frontend(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"resnet18: images of shape {tuple(x.shape)}; expected [B, 3, H, W]")
        return x

    def embed(self, features: Tensor) -> tuple[Tensor, dict[str, Any]]:
        net = self.net
        maps = net.maxpool(net.relu(net.bn1(net.conv1(features))))
        return _tokens(maps), {"grid": (maps.shape[2], maps.shape[3])}

    def run(
        self, sub: Sub, tokens: Tensor, aux: dict[str, Any], prefix: Prefix | None = None, swap: Swap | None = None
    ) -> Tensor:
        refuse(sub, self.info.name, prefix, swap)
        # The map this stage reads: the stem's, halved (rounded up) by every stage between them, the first keeping its size.
        rows, columns = (-(-n // 2 ** max(sub.stage - 1, 0)) for n in aux["grid"])
        stage = cast(nn.Module, getattr(self.net, f"layer{sub.stage + 1}"))
        return _tokens(stage(tokens.transpose(1, 2).unflatten(2, (rows, columns))))


def _tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)
