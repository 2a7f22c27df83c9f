"""PHP's behaviour (php.md 9.2): identity with nothing open, what prefixes do, and who depends on whom."""

import importlib.util
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from avcl_core.ownership import train_mode

_spec = importlib.util.spec_from_file_location("php_toys", Path(__file__).with_name("php_toys.py"))
toys = importlib.util.module_from_spec(_spec)
sys.modules["php_toys"] = toys
_spec.loader.exec_module(toys)
replace = toys.replace

NO_PROMPTS = frozenset({"prefix", "input"})
EVERY = frozenset({"prefix", "input", "add"})
BOTH = toys.BOTH


# ------------------------------------------------------------------ 9.2-1, shapes with values
@BOTH
@pytest.mark.parametrize("frames", [10, 5])
def test_shapes_at_every_block(towers, frames):
    run = toys.toy(towers=towers)
    method = toys.grown(run, double=False)
    o, walks = method.model.options, method.model.walks[0]
    seen = {}
    for name, tower in walks.towers.items():
        run_sub = tower.run

        def told(sub, tokens, aux, run_sub=run_sub, name=name, **more):
            prefix = more.get("prefix")
            seen[name, sub.block, sub.kind] = tokens.shape, None if prefix is None else prefix[0].shape[1]
            return run_sub(sub, tokens, aux, **more)

        tower.__dict__["run"] = told
    one = toys.samples(run, "spoken0", 1, double=False)
    inputs = {n: v[:, :1].expand(-1, frames, *v.shape[2:]) for n, v in one.inputs.items()}
    found = toys.features(method, replace(one, inputs=inputs))
    for name, tower in walks.towers.items():
        for sub in tower.subs:
            if sub.kind == "merge":
                continue
            shape, rows = seen[name, sub.block, sub.kind]
            assert shape == (frames, sub.grid[0] * sub.grid[1] + tower.info.class_tokens, sub.width)
            expected = None
            if sub.kind == "attn" and name == "visual" and sub.block in o.mid.blocks:
                expected = o.mid.rows // 2
            elif sub.kind == "attn" and sub.block in set(o.deep.blocks) - set(o.mid.blocks):
                expected = o.deep.length
            assert rows == expected
    assert {n: v.shape for n, v in found.similarity.items()} == dict.fromkeys(("visual", "audio"), (1, frames, 5))


# ------------------------------------------------------------------ 9.2-2, identity
def library(method, batch):
    """What the library's own models make of the inputs."""
    frames, mels = (batch.inputs[name].flatten(0, 1) for name in ("visual", "audio"))
    clip, clap = (method.model.towers[name].net for name in ("visual", "audio"))
    with torch.no_grad():
        seen = clip.vision_model(pixel_values=frames)
        heard = clap.audio_model(input_features=mels, is_longer=torch.zeros(len(mels), 1, dtype=torch.bool))
        return seen, heard, clip.get_image_features(pixel_values=frames), clap.audio_projection(heard.pooler_output)


@BOTH
@pytest.mark.parametrize("how", ["no blocks", "closed gates, no prompts"])
def test_nothing_open_is_the_plain_towers_and_the_librarys_own(towers, how):
    changes = {}
    if how == "no blocks":
        run, shaken = toys.toy(towers=towers, shallow={"blocks": []}, mid={"blocks": []}, deep={"blocks": []}), 0.3
    else:
        run, shaken, changes = toys.toy(towers=towers), 0.0, {"without": NO_PROMPTS}
    method, batch = toys.grown(run, shaken, double=False), toys.samples(run, "mask0", double=False)
    method.model.eval()
    found = toys.features(method, batch, **changes)
    seen, heard, image, sound = library(method, batch)
    with torch.no_grad():
        for name, tower in method.model.towers.items():
            plain = tower.encode(batch.inputs[name].flatten(0, 1)) if name == "visual" else plain_sound(tower, batch)
            assert torch.equal(found.final[name].flatten(0, 1), plain)
        joint = {n: method.model.project(n, found.final[n].flatten(0, 1)) for n in ("visual", "audio")}
    pooled = image.pooler_output if hasattr(image, "pooler_output") else image
    torch.testing.assert_close(found.final["visual"].flatten(0, 1)[:, 0], seen.pooler_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(joint["visual"], pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.final["audio"].flatten(0, 1).mean(1), heard.pooler_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(joint["audio"], sound, rtol=0, atol=1e-5)


def plain_sound(tower, batch):
    tokens, aux = tower.embed(batch.inputs["audio"].flatten(0, 1))
    for sub in tower.subs:
        out = tower.run(sub, tokens, aux)
        tokens = tokens + out if sub.kind in ("attn", "mlp") else out
    return tower.final(tokens)


@BOTH
def test_new_adapters_and_the_control_without_them_are_the_same_bit_for_bit(towers):
    run = toys.toy(towers=towers)
    method, batch = toys.grown(run, 0.0, double=False), toys.samples(run, "spoken0", double=False)
    new = toys.flat(toys.features(method, batch))
    assert toys.gap(new, toys.flat(toys.features(method, batch, without=frozenset({"add"})))) == 0
    plain = toys.flat(toys.features(method, batch, without=EVERY))
    assert toys.gap({n: new[n] for n in ("visual", "audio")}, {n: plain[n] for n in ("visual", "audio")}) > 1e-3


def test_generated_prompts_begin_small_and_pools_do_not():
    method = toys.grown(toys.toy(), 0.0, double=False)
    batch = toys.samples(toys.toy(), "spoken0", double=False)
    ctx = method.context(batch, False)
    with torch.no_grad():
        method.model.features(batch, ctx)
    assert 0 < float(ctx.memo["visual 1"][0].abs().max()) < 0.1
    assert float(ctx.memo["visual 2"][0].abs().max()) > 0.9


# ------------------------------------------------------------------ 9.2-3, prefixes
class Attention:
    """Catches the arguments of every scaled dot-product attention and the weights they make."""

    def __init__(self, monkeypatch):
        self.weights, inner = [], F.scaled_dot_product_attention

        def caught(q, k, v, attn_mask=None, **more):
            scores = q @ k.mT * (more.get("scale") or q.shape[-1] ** -0.5)
            scores = scores if attn_mask is None else scores + attn_mask
            self.weights.append(scores.softmax(-1))
            return inner(q, k, v, attn_mask=attn_mask, **more)

        monkeypatch.setattr(F, "scaled_dot_product_attention", caught)


@BOTH
@pytest.mark.parametrize("name", ["visual", "audio"])
@pytest.mark.parametrize("part", ["keys", "values"])
def test_value_rows_leave_attention_weights_alone_and_key_rows_do_not(towers, name, part, monkeypatch):
    run = toys.toy(towers=towers)
    method = toys.grown(run)
    tower = method.model.towers[name]
    sub = next(s for s in tower.subs if s.block == 3 and s.kind == "attn")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(
        2, sub.grid[0] * sub.grid[1] + tower.info.class_tokens, sub.width, dtype=torch.float64, generator=generator
    )
    rows = [torch.randn(2, 3, sub.width, dtype=torch.float64, generator=generator) for _ in range(4)]
    other = (rows[2], rows[1]) if part == "keys" else (rows[0], rows[3])
    with torch.no_grad():
        caught = Attention(monkeypatch)
        outs = [tower.run(sub, tokens, {}, prefix=prefix) for prefix in (rows[:2], other)]
    one, two = caught.weights
    assert one.shape[-1] == one.shape[-2] + 3  # no further queries
    assert torch.equal(one, two) is (part == "values")
    assert float((outs[0] - outs[1]).abs().max()) > 1e-3


def drawn(width, generator, rows):
    return torch.randn(2, rows, width, dtype=torch.float64, generator=generator)


@BOTH
def test_prompt_slots_have_no_position_and_no_mask(towers):
    """The same rows in another order give the same output; every window sees them."""
    method = toys.grown(toys.toy(towers=towers))
    tower = method.model.towers["audio"]
    for block in range(4):
        sub = next(s for s in tower.subs if s.block == block and s.kind == "attn")
        generator = torch.Generator().manual_seed(block)
        draw = partial(drawn, sub.width, generator)
        tokens, (keys, values) = draw(sub.grid[0] * sub.grid[1]), (draw(4), draw(4))
        with torch.no_grad():
            one = tower.run(sub, tokens, {}, prefix=(keys, values))
            two = tower.run(sub, tokens, {}, prefix=(keys.flip(1), values.flip(1)))
            none = tower.run(sub, tokens, {})
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
        assert float((one - none).abs().amax(2).min()) > 1e-6  # every token of every window


@BOTH
@pytest.mark.parametrize("block", range(4))
def test_windows_do_not_meet_through_prompts(towers, block):
    tower = toys.grown(toys.toy(towers=towers)).model.towers["audio"]
    sub = next(s for s in tower.subs if s.block == block and s.kind == "attn")
    side, shift = int(tower.blocks[block].window_size), int(tower.blocks[block].shift_size)
    assert (shift > 0) is (towers is toys.shifted_towers and block % 2 == 1)
    rows, columns = sub.grid
    window = (((torch.arange(rows) - shift) % rows) // side)[:, None] * 99 + (
        (torch.arange(columns) - shift) % columns
    ) // side
    window = window.flatten()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, rows * columns, sub.width, dtype=torch.float64, generator=generator)
    prefix = tuple(torch.randn(1, 3, sub.width, dtype=torch.float64, generator=generator) for _ in range(2))
    changed = tokens.clone()
    here = window == window[0]
    changed[:, here] = changed[:, here].flip(-1)
    with torch.no_grad():
        moved = (
            (tower.run(sub, changed, {}, prefix=prefix) - tower.run(sub, tokens, {}, prefix=prefix)).abs().amax((0, 2))
        )
    assert float(moved[here].min()) > 1e-6
    assert not len(moved[~here]) or float(moved[~here].max()) == 0


@BOTH
@pytest.mark.parametrize("experience", ["spoken0", "mask0"])
def test_permuted_frames_give_permuted_features(towers, experience):
    run = toys.toy(towers=towers)
    method, batch = toys.grown(run), toys.samples(run, experience)
    many = {n: torch.cat([v, v.flip(-1), 0.5 * v], 1)[:, :5] for n, v in batch.inputs.items()}
    order = [3, 0, 4, 2, 1]
    turned = {n: v[:, order] for n, v in many.items()}
    one, two = (toys.flat(toys.features(method, replace(batch, inputs=i))) for i in (many, turned))
    assert toys.gap({n: v[:, order] for n, v in one.items()}, two) < 1e-4
    assert toys.gap(one, two) > 1e-2


@BOTH
@pytest.mark.parametrize("experience", ["spoken0", "mask0"])
def test_a_sample_does_not_depend_on_the_others_of_its_batch(towers, experience):
    run = toys.toy(towers=towers)
    method, batch = toys.grown(run), toys.samples(run, experience, 4, "test")
    for training in (False, True):
        train_mode(method.model, ["*"]) if training else method.model.eval()
        whole = toys.flat(toys.features(method, batch, training))
        turned = toys.flat(toys.features(method, batch.select([2, 0, 3, 1]), training))
        assert toys.gap({n: v[[2, 0, 3, 1]] for n, v in whole.items()}, turned) < 1e-11
        for row in range(4):
            alone = toys.flat(toys.features(method, batch.select([row]), training))
            assert toys.gap({n: v[[row]] for n, v in whole.items()}, alone) < 1e-11


def test_frames_of_a_clip_meet_only_in_the_choice_from_the_pool():
    run = toys.toy(deep={"pool_size": 1})
    method, batch = toys.grown(run), toys.samples(run, "spoken0", 2)
    before = toys.flat(toys.features(method, batch))
    inputs = {n: v.clone() for n, v in batch.inputs.items()}
    for value in inputs.values():
        value[0, 1] = value[0, 1].flip(-1) * 0.9
    after = toys.flat(toys.features(method, replace(batch, inputs=inputs)))
    for name, value in before.items():
        far = (after[name] - value).abs().flatten(2).amax(2)
        assert float(far[0, 1]) > 1e-4
        assert float(far[0, 0]) == float(far[1].max()) == 0


def test_frames_of_a_video_share_its_choice_and_videos_choose_for_themselves():
    run = toys.toy(deep={"pool_size": 8})
    method, batch = toys.grown(run), toys.samples(run, "spoken0", 4)
    ctx = method.context(batch, False)
    with torch.no_grad():
        method.model.features(batch, ctx)
    for name in ("visual", "audio"):
        pool = method.model.pools[name].slots["spoken0"]
        read = ctx.memo["embedded visual"] if name == "visual" else toys.pooled(method, ctx)
        for index, block in enumerate((2, 3)):
            keys, values = ctx.memo[f"{name} {block}"]
            for sample in range(4):
                frames = slice(2 * sample, 2 * sample + 2)
                query = read[frames].flatten(0, 1).mean(0)
                entry = int(torch.stack([F.cosine_similarity(query, key, dim=0) for key in pool.keys]).argmax())
                for got, kind in ((keys, 0), (values, 1)):
                    for row in got[frames]:
                        assert torch.equal(row, pool.rows[index][kind, entry])
            assert not torch.equal(keys, values)


def test_videos_of_one_batch_choose_different_entries():
    run = toys.toy()
    method, batch = toys.grown(run), toys.samples(run, "spoken0", 2)
    seen = method.model.towers["visual"].embed(batch.inputs["visual"].flatten(0, 1))[1]["raw"].unflatten(0, (2, 2))
    pool = method.model.pools["visual"].slots["spoken0"]
    with torch.no_grad():
        pool.keys.copy_(seen.mean((1, 2)))
        ctx = method.context(batch, False)
        method.model.features(batch, ctx)
    keys = ctx.memo["visual 2"][0].unflatten(0, (2, 2))
    for sample in (0, 1):
        assert torch.equal(keys[sample, 0], pool.rows[0][0, sample])
        assert torch.equal(keys[sample, 1], pool.rows[0][0, sample])


def test_a_block_that_is_listed_as_mid_and_as_deep_is_mid():
    method = toys.grown(toys.toy(towers=toys.shifted_towers))  # block 2 is in both lists
    sites = method.model.sites
    assert [m.key for m in sites["visual", "2.attn", "prefix"]] == ["visual 2"]
    assert ("audio", "2.attn", "prefix") not in sites
    assert [m.key for m in sites["audio", "2.attn", "input"]] == ["audio 2"]
    assert len(method.model.pools["visual"].slots["spoken0"].rows) == 2
    assert sorted(b for t, b, p in sites if t == "audio" and p == "prefix") == ["0.attn", "3.attn"]


def test_the_audio_bias_is_added_in_front_of_the_whole_swin_block_and_behind_the_merging():
    run = toys.toy(shallow={"blocks": []}, deep={"blocks": []})
    method, batch = toys.grown(run), toys.samples(run, "mask0", 2)
    ctx = method.context(batch, False)
    with torch.no_grad():
        found = method.model.features(batch, ctx)
        tower = method.model.towers["audio"]
        tokens, aux = tower.embed(batch.inputs["audio"].flatten(0, 1))
        for sub in tower.subs:
            if sub.kind == "attn" and sub.block == 1:
                tokens = tokens + ctx.memo["audio 1"]
            out = tower.run(sub, tokens, aux)
            tokens = tokens + out if sub.kind in ("attn", "mlp") else out
    torch.testing.assert_close(found.stages["audio"][-1].flatten(0, 1), tokens, rtol=0, atol=1e-12)
    bias = ctx.memo["audio 1"].unflatten(1, (8, 8))
    assert float(bias[..., 8:].abs().max()) == 0 < float(bias[..., :8].abs().min())
