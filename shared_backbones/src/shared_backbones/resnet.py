"""Residual networks (He et al., CVPR 2016) from torchvision's blocks, walked stage by stage, for frozen and trained use."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from shared_backbones.tower import Prefix, Sub, Swap, Tower, TowerInfo, refuse, refuse_hiding

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ResNetBody(nn.Module):
    """The convolutional part with torchvision's parameter names and initialisation, for any block, planes and depths.

    A stage of ``planes`` returns ``planes · block.expansion`` channels; the stem has as many as the first stage has planes.
    """

    def __init__(self, block: type[BasicBlock | Bottleneck], planes: tuple[int, ...], depths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, planes[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = planes[0]
        for i, (inner, depth) in enumerate(zip(planes, depths, strict=True)):
            stride, width = 1 if i == 0 else 2, inner * block.expansion
            down = None
            if stride > 1 or before != width:
                down = nn.Sequential(conv1x1(before, width, stride), nn.BatchNorm2d(width))
            rest = [block(width, inner) for _ in range(depth - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(block(before, inner, stride, down), *rest))
            before = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNet(Tower):
    """Sublayers of kind stage; any image size is taken, grids in ``info`` and ``subs`` are those of ``info.image_size``."""

    net: ResNetBody

    def __init__(
        self,
        name: str,
        size: str,
        block: type[BasicBlock | Bottleneck],
        planes: tuple[int, ...],
        depths: tuple[int, ...],
        image_size: int,
    ) -> None:
        side = image_size // 4
        grids = [(side // 2**i, side // 2**i) for i in range(len(planes))]
        widths = [inner * block.expansion for inner in planes]
        subs = tuple(Sub("stage", i, i, grid, width) for i, (grid, width) in enumerate(zip(grids, widths, strict=True)))
        super().__init__(
            TowerInfo(
                name=name, size=size, variant="tiny" if size == "tiny" else name, modality="visual",
                width=widths[-1], class_tokens=0, grid=grids[-1], depths=depths, image_size=image_size,
                mean=IMAGENET_MEAN, std=IMAGENET_STD,
            ),
            ResNetBody(block, planes, depths),
            subs,
        )  # fmt: skip

    def frontend(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"{self.info.name}: images of shape {tuple(x.shape)}; expected [B, 3, H, W]")
        return x

    def embed(self, features: Tensor, hide: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        refuse_hiding(self.info.name, hide)
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
