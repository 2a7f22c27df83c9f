"""The segmentation head: neck, temporal gating, audio-visual interaction at four scales, decoder; `width` scales all of it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from avcl_avs.data import EDGE, Setting
from avcl_avs.fpn import Decoder
from avcl_avs.losses import audio_visual_match
from avcl_avs.necks import DilatedNeck, LinearNeck
from avcl_avs.options import SegmentationOptions
from avcl_avs.temporal import TemporalGating
from avcl_avs.tpavi import Tpavi
from avcl_core.batch import Batch, Outputs
from avcl_core.errors import ConfigError
from avcl_core.features import Features, FeatureSpec, TokenShape

SCALES = (4, 8, 16, 32)
"""By how much each map is smaller than the decoded mask, finest first."""
GATING: dict[Setting, float] = {"s4": 0.05, "ms3": 0.1}
"""γ of the temporal gates by setting (tasks.md 3.3)."""


class SegmentationHead(nn.Module):
    """A logit per pixel and second (tasks.md 3.3).

    ``head: tpavi`` has a linear neck, a linear map of the sound and temporal gates; ``avsbench``, the baseline with a
    convolutional tower and VGGish, has a dilated neck, takes the sound as it is and has no gates. ``mmseg:<name>`` is the first
    with another decoder.

    Outputs:
        ``logits`` ``[b, T, 224, 224]``; in the setting ``ms3`` also ``avm`` ``[b, T]``, the audio-visual match loss per frame.

    Raises:
        ConfigError: a tower is missing, or the visual one has not four maps.
    """

    def __init__(self, spec: FeatureSpec, options: SegmentationOptions) -> None:
        super().__init__()
        self.shapes = stage_shapes(spec)
        self.sizes = [options.mask_size // scale for scale in SCALES]
        width, widths = options.width, [shape.width for shape in self.shapes]
        sound = spec.final["audio"].width
        gated = options.head != "avsbench"
        self.neck = LinearNeck(widths, width) if gated else DilatedNeck(widths, width)
        self.audio = nn.Linear(sound, width // 2) if gated else None
        self.gating = TemporalGating(width, len(SCALES), GATING[options.setting]) if gated else None
        self.fusion = nn.ModuleList(Tpavi(width, width // 2 if gated else sound, options.fusion_norm) for _ in SCALES)
        self.decoder = make_decoder(options)
        self.matches = options.setting == "ms3"

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs; of the batch nothing is used."""
        stages = [*features.stages["visual"][:-1], features.final["visual"]]
        b, frames = stages[0].shape[:2]
        grids = [as_grid(tokens, shape).flatten(0, 1) for tokens, shape in zip(stages, self.shapes, strict=True)]
        maps = [value.unflatten(0, (b, frames)) for value in self.neck(grids, self.sizes)]
        sound = features.final["audio"].mean(2)
        if self.audio is not None and self.gating is not None:
            maps, sound = self.gating(maps, self.audio(sound))
        fused = [fuse(value, sound) for fuse, value in zip(self.fusion, maps, strict=True)]
        logits = self.decoder([value.flatten(0, 1) for value, _ in fused]).unflatten(0, (b, frames))
        outputs = {"logits": enlarged(logits)}
        if self.matches:
            # The decoder's first step is a ReLU, which in the published models acts on the maps in place.
            shown = [functional.relu(value) for value, _ in fused]
            outputs["avm"] = audio_visual_match(logits, shown, [aligned for _, aligned in fused])
        return outputs


def make_decoder(options: SegmentationOptions) -> nn.Module:
    """Return the module that makes logits ``[n, S, S]`` of four maps."""
    kind, _, name = options.head.partition(":")
    if kind == "mmseg":
        from avcl_avs.mmseg_bridge import MmsegDecoder

        return MmsegDecoder(name, options.width, options.mask_size)
    return Decoder(options.width)


def stage_shapes(spec: FeatureSpec) -> list[TokenShape]:
    """Return the shapes of the four maps: the stages, the last one after the tower's final norm."""
    needs_both(spec)
    stages = spec.stages["visual"]
    if len(stages) != len(SCALES):
        raise ConfigError(
            f"task avs: towers.visual has {len(stages)} stage maps; the head needs {len(SCALES)}: choose a pyramid "
            "(swin_v2, pvt_v2, resnet50)"
        )
    return [*stages[:-1], spec.final["visual"]]


def needs_both(spec: FeatureSpec) -> None:
    """Raise ConfigError where ``spec`` lacks the visual or the audio tower."""
    for tower in ("visual", "audio"):
        if tower not in spec.final:
            raise ConfigError(f"task avs: its head needs a tower towers.{tower}; configured: {sorted(spec.final)}")


def as_grid(tokens: Tensor, shape: TokenShape) -> Tensor:
    """Return ``[b, T, H, W, C]`` for tokens ``[b, T, N, C]``, without class tokens."""
    return tokens[:, :, shape.class_tokens :].unflatten(2, shape.grid)


def enlarged(logits: Tensor) -> Tensor:
    """Return logits ``[b, T, 224, 224]``; the published decoder makes them at that size."""
    if logits.shape[-1] == EDGE:
        return logits
    return functional.interpolate(logits, size=(EDGE, EDGE), mode="bilinear", align_corners=False)
