"""The shipped configurations of the published models take the released checkpoints: every tensor has its key, at full size."""

from __future__ import annotations

from typing import Any

import pytest
import released_layout as layout
import torch
from torch import nn

from avcl_ave.cmbs import EventHead
from avcl_avqa.head import AnswerHead, MatchHead
from avcl_avs.head import SegmentationHead
from avcl_avvp.mgn import GroupingHead
from avcl_core import plugins
from avcl_core.config.load import read
from avcl_core.config.presets import find_config
from avcl_core.config.run import load_run
from avcl_core.importing.adapters import DEAD, OURS, infer
from avcl_core.importing.importer import RELEASED
from avcl_core.importing.keymap import KeyMap
from avcl_core.importing.published import published, published_names
from avcl_core.ownership import Owners
from avcl_core.stream import Experience
from shared_backbones.registry import build

HEADS: dict[str, Any] = {
    "ave": lambda spec, options: EventHead(spec, 28, options.width),
    "avvp": lambda spec, options: GroupingHead(spec, 25, options.width, motion=True),
    "avs_s4": SegmentationHead,
    "avs_ms3": SegmentationHead,
    "avqa": lambda spec, options: AnswerHead(spec, 93, 42),
    "grounding": lambda spec, options: MatchHead(spec),
}
SHAPES: dict[str, layout.Shapes] = {
    "ave": layout.adapters(layout.AVE, layout.FULL) | layout.ave_head(1536, 768),
    "avvp": layout.adapters(layout.AVVP, layout.FULL) | layout.avvp_head(1536, 768),
    "avs_s4": layout.adapters(layout.S4, layout.FULL) | layout.avs_head(layout.FULL, 768),
    "avs_ms3": layout.adapters(layout.MS3, layout.FULL) | layout.avs_head(layout.FULL, 768),
    "avqa": layout.adapters(layout.AVQA, layout.FULL) | layout.avqa_head(1536, 768),
    "grounding": layout.grounding_head(1536, 768),
}


class Head:
    def __init__(self, make, options) -> None:
        self.make, self.options, self.plain = make, options, {}

    def head(self, spec, experience) -> nn.Module:
        return self.make(spec, self.options)


@pytest.fixture(scope="module")
def towers() -> dict[str, Any]:
    return {m: build(n, "full", {}, device="meta") for m, n in (("visual", "swin_v2"), ("audio", "htsat"))}


@pytest.mark.parametrize("kind", published_names())
def test_every_tensor_of_the_published_model_has_its_key(towers, kind: str) -> None:
    about = published(kind)
    settings = [f"tasks.{about.task}.{k}={str(v).lower()}" for k, v in about.settings.items()]
    options, parts = load_run(read(find_config(about.config, about.package), settings))
    assert options.stream.tasks == (about.task,)
    given = layout.meta(SHAPES[kind])
    adapters = infer(given, towers["visual"], towers["audio"], kind) if about.adapters else None
    config: dict[str, Any] = {}
    if adapters is not None:
        # A configuration is that of the released training script; dense attention is the importer's alone.
        said = parts.model.model_dump()
        unlike = {name for name, value in adapters.options.items() if said[name] != value}
        assert unlike == ({"uni_attention"} if kind == "avvp" else set())
        config = said | adapters.options | RELEASED
    model_class = plugins.load("model", "avmoe" if adapters else "frozen")
    with torch.device("meta"):
        task: Any = {about.task: Head(HEADS[kind], parts.tasks[about.task])}
        model = model_class(towers, task, model_class.Config(**config))
        model.grow(Experience(0, about.task, about.task, (), (), ()))
    rows = {name: tuple(row.tensor.shape) for name, row in Owners(model).rows.items()}
    pairs = sorted({int(match[2]) for match in map(OURS.fullmatch, rows) if match})
    used = set()
    for name, shape in rows.items():
        head = name.removeprefix(f"heads.{about.task}.")
        keys = about.head.keys(head) if head != name else adapters.keys(name, pairs) if adapters else None
        assert keys is not None, name
        if name.endswith(".output_gate") and keys[0] not in given:
            assert name.startswith("parts.audio")
            continue
        used.update(keys)
        sizes = [tuple(given[key].shape) for key in keys]
        found = (sum(size[0] for size in sizes), *sizes[0][1:]) if len(sizes) > 1 else sizes[0]
        while len(found) > len(shape):
            assert found[-1] == 1, name
            found = found[:-1]
        assert found == shape, name
    counters = KeyMap([], dead=DEAD)
    left = {key for key in given if key not in used and not about.head.is_dead(key) and not counters.is_dead(key)}
    assert left == set()
