"""Sizes of PHP to the unit (php.md 9.1) and shapes of every block (3.1), at full size on the meta device."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from avcl_core.batch import Batch
from avcl_core.errors import ConfigError
from avcl_core.models.php import Php, PhpOptions
from avcl_core.ownership import Owners
from avcl_core.stream import concatenation
from avcl_core.walk import Ctx
from shared_backbones.registry import build

_spec = importlib.util.spec_from_file_location("php_toys", Path(__file__).with_name("php_toys.py"))
toys = importlib.util.module_from_spec(_spec)
sys.modules["php_toys"] = toys
_spec.loader.exec_module(toys)

WORDS = {"tokenizer": "stand-in"}


def towers(**visual):
    return {
        "visual": build("clip_vit", "full", {**WORDS, **visual}, device="meta"),
        "audio": build("clap", "full", WORDS, device="meta"),
    }


@pytest.fixture(scope="module")
def full():
    return towers()


def on_meta(given, *tasks, **options):
    """A grown model without values, and its experiences."""
    known = toys.tasks_of(*tasks)
    with torch.device("meta"):
        model = Php(given, known, PhpOptions(**options))
        stream = concatenation("meta", [e for task in known.values() for e in task.experiences()], "given")
        for experience in stream.experiences:
            model.grow(experience)
    return model, stream.experiences


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_every_part(full):
    model, _ = on_meta(full, "spoken", "labels")
    shallow = {name: count(part) for name, part in model.parts.items() if count(part)}
    assert len(shallow) == 8
    for name, size in shallow.items():
        assert size == (324_772 if name.startswith("audio") else 2_744_630), name
    assert sum(shallow.values()) == 12_277_608
    for slot in ("spoken0", "labels0"):
        assert count(model.mid_prompts.slots[slot]) == 35_243_008
        assert count(model.pools["visual"].slots[slot]) == 324_864
        assert count(model.pools["audio"].slots[slot]) == 209_664
    assert count(model.text["visual"]) + count(model.text["names"]) == 262_144
    assert count(model.text["contrast"]) == 262_656
    assert list(model.contexts) == ["spoken"]
    assert count(model.contexts["spoken"]) == 2_048


def test_parameters_of_every_owner_and_what_an_experience_teaches(full):
    model, experiences = on_meta(full, "spoken", "labels")
    by_owner = Counter()
    for row in Owners(model).rows.values():
        by_owner[row.owner] += row.tensor.numel()
    head = count(model.heads["labels"])
    assert by_owner == {
        "shared": 12_277_608,
        "shared:text": 262_144 + 262_656,
        "task:spoken0": 35_243_008 + 324_864 + 209_664,
        "task:spoken": 2_048,
        "task:labels0": 35_243_008 + 324_864 + 209_664,
        "head:labels": head,
    }
    live = {e.name: sum(p.numel() for p in Owners(model).match(model.active(e)).values()) for e in experiences}
    assert live == {"spoken0": 48_581_992, "labels0": 48_055_144 + head}
    assert count(model.heads["spoken"]) == 0
    frozen = sum(t.numel() for n, t in Owners(model).frozen.items() if n.startswith("towers."))
    assert 300e6 < frozen < 320e6


def test_a_stream_without_texts_has_no_text_parts(full):
    model, (experience,) = on_meta(full, "labels")
    assert not len(model.text)
    assert not model.coupled("labels")
    assert model.active(experience) == ("shared", "router", "task:labels0", "expert:labels0", "head:labels")


GRIDS = {0: (64, 96), 1: (64, 96), 2: (32, 192), 3: (32, 192), 10: (8, 768), 11: (8, 768)}


@pytest.mark.parametrize("frames", [10, 5])
@pytest.mark.parametrize("variant", ["b32", "b16"])
def test_shapes_at_every_block(frames, variant):
    given = towers(variant=variant)
    model, _ = on_meta(given, "spoken")
    seen = {"visual": {}, "audio": {}}
    for name, tower in given.items():
        run = tower.run

        def told(sub, tokens, aux, run=run, name=name, **more):
            out = run(sub, tokens, aux, **more)
            assert out.shape == tokens.shape or sub.kind == "merge"
            rows = more.get("prefix")
            assert rows is None or rows[0].shape == rows[1].shape
            seen[name][sub.block, sub.kind] = tuple(tokens.shape), None if rows is None else tuple(rows[0].shape)
            return out

        tower.__dict__["run"] = told
    inputs = {
        "visual": torch.zeros(2, frames, 3, 224, 224, device="meta"),
        "audio": torch.zeros(2, frames, 1, 1001, 64, device="meta"),
    }
    ctx = Ctx(("spoken0",) * 2, training=True)
    with torch.device("meta"), torch.no_grad():
        found = model.features(Batch("spoken", ("a", "b"), inputs, experience="spoken0"), ctx)
    n, tokens = 2 * frames, 50 if variant == "b32" else 197
    for block in range(12):
        prefix = {3: 16, 4: 16}.get(block, 10 if block > 4 else None)
        side, width = GRIDS.get(block, (16, 384))
        for kind in ("attn", "mlp"):
            given_rows = prefix if kind == "attn" else None
            expected = (n, tokens, 768), given_rows and (n, given_rows, 768)
            assert seen["visual"][block, kind] == expected
            expected = (n, side * side, width), (n, 10, width) if kind == "attn" and block > 4 else None
            assert seen["audio"][block, kind] == expected
    assert {key for key in seen["audio"] if key[1] == "merge"} == {(2, "merge"), (4, "merge"), (10, "merge")}
    for block, (side, filled) in {3: (32, 24), 4: (16, 96)}.items():
        bias = ctx.memo[f"audio {block}"]
        assert bias.shape == (n, side * side, GRIDS.get(block, (16, 384))[1])
        assert filled == 2 * 16 * 768 // side**2
    assert ctx.memo["visual 3"][0].shape == (n, 16, 768)
    assert found.final["visual"].shape == found.stages["visual"][-1].shape == (2, frames, tokens, 768)
    assert found.final["audio"].shape == found.stages["audio"][-1].shape == (2, frames, 64, 768)
    for value in found.similarity.values():
        assert value.shape == (2, frames, 5)
    assert sorted(ctx.aux) == ["audio pool pull", "audio to visual", "visual pool pull", "visual to audio"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deep": {"blocks": [12]}}, r"model\.deep\.blocks: \[12\]; the towers have blocks 0 to 11"),
        (
            {"mid": {"blocks": [3], "rows": 6}},
            "6 rows of 768 channels are 4608 numbers, which 1024 tokens do not divide",
        ),
        ({"mid": {"blocks": [0], "rows": 1024}}, "fill 192 channels, but the tokens have 96"),
        ({"shallow": {"reduction": 7}}, "width 96 cannot be reduced by 7"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(full, options, message):
    with pytest.raises(ConfigError, match=message):
        on_meta(full, "spoken", **options)
