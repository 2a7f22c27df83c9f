"""The generated world: classes that are seen and heard, scenes composed from them, media and labels that agree."""

from avcl_core.world.bank import SourceBank
from avcl_core.world.composer import DIFFICULTY, Difficulty, SceneBuilder, draw_span, other_classes
from avcl_core.world.digits import digits
from avcl_core.world.folder import folder
from avcl_core.world.procedural import procedural
from avcl_core.world.render import frame_times, frames, masks, sound_track
from avcl_core.world.scene import Scene, Source, Span, mask_of, spans_of
from avcl_core.world.seeds import clip_id, rng_for
from avcl_core.world.writer import Places, WorldSize, read_record, read_scenes, write_clip, write_world

__all__ = [
    "DIFFICULTY",
    "Difficulty",
    "Places",
    "Scene",
    "SceneBuilder",
    "Source",
    "SourceBank",
    "Span",
    "WorldSize",
    "clip_id",
    "digits",
    "draw_span",
    "folder",
    "frame_times",
    "frames",
    "mask_of",
    "masks",
    "other_classes",
    "procedural",
    "read_record",
    "read_scenes",
    "rng_for",
    "sound_track",
    "spans_of",
    "write_clip",
    "write_world",
]
