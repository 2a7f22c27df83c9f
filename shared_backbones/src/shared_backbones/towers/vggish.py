"""VGGish (Hershey et al., ICASSP 2017): four convolutional stages and three linear layers, one embedding per second of sound."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from shared_backbones.registry import register
from shared_backbones.tower import Prefix, Sub, Swap, Tower, TowerInfo, refuse, refuse_hiding
from shared_backbones.vggish_patches import LogMelPatches

# Convolutions per stage; every stage ends by halving both sides of its map.
DEPTHS = (1, 1, 2, 2)


@register("vggish")
def vggish(size: str) -> Vggish:
    """Full: widths 64…512, hidden layers of 4,096, 128-d embedding; tiny: widths 8…32, hidden layers of 128, 32-d embedding."""
    if size == "tiny":
        return Vggish(size, VggishBody((8, 16, 32, 32), 128, 32))
    return Vggish(size, VggishBody((64, 128, 256, 512), 4096, 128))


class VggishBody(nn.Module):
    """The network with the parameter names of its published PyTorch port, for any widths.

    ``features``: 3×3 convolutions, ReLU, 2×2 max pooling on a [B, 1, 96, 64] patch. ``embeddings``: linear layers, each with a
    ReLU (also the last), on the map's values in the order rows, columns, channels.
    """

    def __init__(self, widths: tuple[int, ...], hidden: int, embedding: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width, depth in zip(widths, DEPTHS, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(6 * 4 * before, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, embedding), nn.ReLU(),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))


class Vggish(Tower):
    """Sublayers of kind stage: four convolutional ones, then the embedding layers, whose one token has no place.

    One waveform is one second and gives one patch: of the 98 frames of a second the first 96 (0.96 s).
    """

    net: VggishBody

    def __init__(self, size: str, net: VggishBody) -> None:
        patches = LogMelPatches()
        options = patches.options
        self.convolutions = _stages(net.features)
        widths = [cast(nn.Conv2d, stage[0]).out_channels for stage in self.convolutions]
        grid = (options.frames, options.mels)
        subs = []
        for i, width in enumerate(widths):
            grid = (grid[0] // 2, grid[1] // 2)
            subs.append(Sub("stage", i, i, grid, width))
        last = Sub("stage", len(subs), len(subs), (1, 1), cast(nn.Linear, net.embeddings[-2]).out_features)
        super().__init__(
            TowerInfo(
                name="vggish", size=size, variant="tiny" if size == "tiny" else "vggish", modality="audio",
                width=last.width, class_tokens=0, grid=last.grid, depths=(1,) * (len(subs) + 1),
                sample_rate=options.sample_rate, max_samples=options.sample_rate,
            ),
            net,
            (*subs, last),
        )  # fmt: skip
        self.patches = patches

    @property
    def frontend_options(self) -> dict[str, Any]:
        return self.patches.describe()

    def frontend(self, x: Tensor) -> Tensor:
        limit = cast(int, self.info.max_samples)
        if x.ndim == 2 and x.shape[1] > limit:
            raise ValueError(
                f"vggish: {x.shape[1]} samples; at most {limit} (1 s), so cut the waveform into seconds first"
            )
        return self.patches(x)

    def embed(self, features: Tensor, hide: Tensor | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Patches [B, 1, 96, 64] to one token of width 1 per frame and mel. ValueError for another shape."""
        refuse_hiding("vggish", hide)
        expected = (1, self.patches.options.frames, self.patches.options.mels)
        if features.ndim != 4 or tuple(features.shape[1:]) != expected:
            raise ValueError(
                f"vggish: patches of shape {tuple(features.shape)}; expected [B, {', '.join(map(str, expected))}]"
            )
        return features.flatten(2).transpose(1, 2), {}

    def run(
        self, sub: Sub, tokens: Tensor, aux: dict[str, Any], prefix: Prefix | None = None, swap: Swap | None = None
    ) -> Tensor:
        refuse(sub, self.info.name, prefix, swap)
        if sub.stage == len(self.convolutions):
            # Tokens are row-major with channels last: flattened, they have the order that the linear layers expect.
            return self.net.embeddings(tokens.flatten(1)).unsqueeze(1)
        rows, columns = sub.grid
        maps = tokens.transpose(1, 2).unflatten(2, (2 * rows, 2 * columns))
        return self.convolutions[sub.stage](maps).flatten(2).transpose(1, 2)


def _stages(features: nn.Sequential) -> list[nn.Sequential]:
    """The convolutional layers cut behind every pooling; plain references, `net` alone registers the weights."""
    ends = [i + 1 for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    return [features[start:end] for start, end in zip([0, *ends], ends, strict=False)]
