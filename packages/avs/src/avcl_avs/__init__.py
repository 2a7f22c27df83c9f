"""AVS: audio-visual segmentation as a task package."""

from avcl_avs.options import SegmentationOptions, SourceOptions
from avcl_core.plugins import TaskPackage, late
from avcl_core.world.writer import WorldSize

plugin = TaskPackage(
    name="avs",
    title="Audio-visual segmentation (AVSBench): which pixels show an object that is heard, second by second",
    options=SegmentationOptions,
    build=late("avcl_avs.task:build"),
    layout=late("avcl_avs.layout:layout"),
    compose=late("avcl_avs.world:compose"),
    world_size=WorldSize(train=160, val=40, test=60, seconds=5, size=112),
    source=SourceOptions,
    exports={"save_masks": late("avcl_avs.task:export_masks")},
    published={"avs_s4": late("avcl_avs.authors:s4"), "avs_ms3": late("avcl_avs.authors:ms3")},
)
