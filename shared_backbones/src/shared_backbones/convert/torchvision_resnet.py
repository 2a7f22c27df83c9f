"""torchvision's ResNet-18 to tower `resnet18`: the same names, the class head dropped (asal.md 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared_backbones.convert import Converter

if TYPE_CHECKING:
    from shared_backbones.convert import Tensors

DROPPED = {"fc.weight", "fc.bias"}


def translate(tensors: Tensors) -> tuple[str | None, Tensors, list[str]]:
    """Everything but the class head."""
    found = {name: tensor for name, tensor in tensors.items() if name not in DROPPED}
    return None, found, sorted(DROPPED & tensors.keys())


CONVERTER = Converter(
    "resnet18",
    lambda names: (
        {"conv1.weight", "bn1.weight", "layer4.1.conv2.weight"} <= names and "layer1.0.conv3.weight" not in names
    ),
    translate,
)
