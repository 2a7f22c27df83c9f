"""torchvision's ResNet-50 to tower `resnet50`: the same names, the class head dropped (tasks.md 3.3)."""

from __future__ import annotations

from shared_backbones.convert import Converter
from shared_backbones.convert.torchvision_resnet import translate

CONVERTER = Converter(
    "resnet50", lambda names: {"conv1.weight", "bn1.weight", "layer4.2.conv3.weight"} <= names, translate
)
