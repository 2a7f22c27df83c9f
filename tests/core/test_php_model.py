"""PHP's behaviour (php.md 9.2): identity with nothing open, what prefixes do, who depends on whom, what learns and what stays."""

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avcl_core.batch import Batch
from avcl_core.errors import ConfigError
from avcl_core.features import FeatureSpec, TokenShape
from avcl_core.methods.base import Method
from avcl_core.models.php import Php, PhpOptions
from avcl_core.ownership import Owners, train_mode
from avcl_core.prompts.sites import FromMemo
from avcl_core.testing import check_model, toy_towers
from avcl_core.testing.rules import fingerprint
from avcl_core.walk import Ctx

_spec = importlib.util.spec_from_file_location("php_toys", Path(__file__).with_name("php_toys.py"))
toys = importlib.util.module_from_spec(_spec)
sys.modules["php_toys"] = toys
_spec.loader.exec_module(toys)
replace = toys.replace

NO_PROMPTS = frozenset({"prefix", "input"})
EVERY = frozenset({"prefix", "input", "add"})
TOWERS = {"tiny": toys.tiny_towers, "shifted": toys.shifted_towers}
BOTH = pytest.mark.parametrize("towers", TOWERS.values(), ids=TOWERS)


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


@BOTH
def test_prompt_slots_have_no_position_and_no_mask(towers):
    """The same rows in another order give the same output; every window sees them."""
    method = toys.grown(toys.toy(towers=towers))
    tower = method.model.towers["audio"]
    for block in range(4):
        sub = next(s for s in tower.subs if s.block == block and s.kind == "attn")
        generator = torch.Generator().manual_seed(block)
        draw = lambda n, s=sub, g=generator: torch.randn(2, n, s.width, dtype=torch.float64, generator=g)  # noqa: E731
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
        read = ctx.memo["embedded visual"] if name == "visual" else pooled(method, ctx)
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


def pooled(method, ctx):
    grid, _ = method.model.sound
    image = ctx.embedded["audio"].transpose(1, 2).unflatten(2, grid)
    return (
        F.max_pool2d(F.max_pool2d(image, 2), 2).flatten(2).transpose(1, 2).reshape(len(image), -1, method.model.width)
    )


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


# ------------------------------------------------------------------ 9.2-5, what learns
@BOTH
@pytest.mark.parametrize("experience", ["spoken0", "labels0", "mask0"])
def test_with_gates_at_a_tenth_every_parameter_learns_and_nothing_else_does(towers, experience):
    run = toys.toy("spoken", "labels", "mask", towers=towers)
    method = toys.grown(run, 0.0, gates=0.1)
    if experience == "mask0":
        method.model.heads["mask"] = toys.own(LastTokens(method.model.spec()).double(), "head:mask")
    known = run.stream.experience(experience)
    patterns = method.active(known)
    owners = Owners(method.model)
    owners.set_trainable(patterns)
    train_mode(method.model, patterns)
    totals = {}
    batch = toys.samples(run, known, 6)
    spread_keys(method, batch)
    sum(method.losses(batch).values()).backward()
    for name, parameter in owners.match(patterns).items():
        assert parameter.grad is not None, name
        totals[name] = float(parameter.grad.abs().max())
        if name.endswith("keys"):
            assert bool((parameter.grad != 0).any(1).all()), name
        if ".rows." in name:  # [keys and values, entries, rows, channels]: every entry was chosen by somebody
            assert bool((parameter.grad != 0).flatten(2).any(2).all()), name
    dead = [name for name, size in totals.items() if not size > 0]
    assert not dead
    others = [p for p in method.model.parameters() if not any(p is q for q in owners.match(patterns).values())]
    assert all(p.grad is None for p in others)
    owned = {row.owner for row in owners.rows.values() if row.name in totals}
    text = {"task:spoken", "shared:text"} if experience == "spoken0" else {f"head:{known.task}"}
    assert owned == {"shared", f"task:{experience}"} | text


class LastTokens(nn.Module):
    """Reads what PHP's heads read: the last tokens before the final norms."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(spec.stages[n][-1].width, 64) for n in ("visual", "audio"))

    def forward(self, features, batch):
        parts = [
            layer(features.stages[n][-1].mean(2)) for layer, n in zip(self.layers, ("visual", "audio"), strict=True)
        ]
        return {"mask": sum(parts).unflatten(2, (8, 8))}


def spread_keys(method, batch):
    """Keys at the samples' own queries, so that every entry of a pool is chosen by somebody."""
    ctx = method.context(batch, False)
    with torch.no_grad():
        method.model.features(batch, ctx)
        reads = {"visual": ctx.memo["embedded visual"], "audio": pooled(method, ctx)}
        for name, read in reads.items():
            pool = method.model.pools[name].slots[batch.experience]
            queries = read.unflatten(0, (len(batch), -1)).mean((1, 2))
            pool.keys.copy_(queries[: len(pool.keys)] * 1.1)


def test_keys_learn_from_the_pull_alone():
    run = toys.toy(deep={"pull": 0.0})
    method, batch = toys.grown(run), toys.samples(run, "spoken0", 4)
    sum(method.losses(batch).values()).backward()
    for name in ("visual", "audio"):
        assert method.model.pools[name].slots["spoken0"].keys.grad is None
    assert not [n for n in method.losses(batch) if "pull" in n]


# ------------------------------------------------------------------ 9.2-6, evaluation
@pytest.mark.parametrize("experience", ["spoken0", "mask0"])
def test_evaluating_twice_is_equal_and_changes_nothing(experience):
    run = toys.toy()
    method, batch = toys.grown(run, double=False), toys.samples(run, experience, 4, "test", double=False)
    method.model.train()
    before, state = fingerprint(method.model), torch.get_rng_state()
    one, two = method.predict(batch), method.predict(batch)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), state)
    after = fingerprint(method.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_towers_stay_in_eval_mode_while_all_else_trains():
    method = toys.grown(toys.toy())
    train_mode(method.model, ["*"])
    for tower in method.model.towers.values():
        assert not any(module.training for module in tower.modules())
        assert not any(p.requires_grad for p in tower.parameters())
    assert method.model.text["visual"].training


# ------------------------------------------------------------------ class texts
def test_texts_are_encoded_again_exactly_when_their_context_changed(monkeypatch):
    run = toys.toy()
    method, batch = toys.grown(run), toys.samples(run, "spoken0", 2, "test")
    prompts, counted = method.model.prompts["spoken"], []
    encode = prompts.encode
    monkeypatch.setattr(prompts, "encode", lambda context: counted.append(1) or encode(context))
    one = toys.features(method, batch).similarity["visual"]
    assert torch.equal(toys.features(method, batch).similarity["visual"], one)
    assert len(counted) == 1
    with torch.no_grad():
        method.model.contexts["spoken"].vectors.mul_(-1.5)
    two = toys.features(method, batch).similarity["visual"]
    assert len(counted) == 2
    assert float((one - two).abs().max()) > 1e-3
    with torch.no_grad():
        method.model.text["names"][0].weight.add_(0.5)  # behind what is kept
    three = toys.features(method, batch).similarity["visual"]
    assert len(counted) == 2
    assert float((three - two).abs().max()) > 1e-3
    for _ in range(2):  # a step that learns encodes anew, with a gradient
        assert toys.features(method, batch, training=True, grad=True).similarity["visual"].requires_grad
    assert len(counted) == 4


def test_texts_follow_a_snapshot_of_the_context():
    from avcl_core.ownership import Snapshot

    run = toys.toy()
    method, batch = toys.grown(run), toys.samples(run, "spoken0", 2, "test")
    state = Owners(method.model).state()
    ctx = lambda: method.context(batch, False)  # noqa: E731
    with torch.no_grad():
        before = method.model.eval()(batch, ctx())["logits"]
        method.model.contexts["spoken"].vectors.mul_(-2)
        after = method.model(batch, ctx())["logits"]
    teacher = Snapshot(state).call(method.model, batch, ctx())["logits"]
    with torch.no_grad():
        again = method.model(batch, ctx())["logits"]
    torch.testing.assert_close(teacher, before, rtol=0, atol=1e-10)
    assert torch.equal(again, after)
    assert float((after - before).abs().max()) > 1e-3


def test_blanks_stand_for_underscores_and_the_context_stands_in_front_of_the_name():
    method = toys.grown(toys.toy())
    text, prompts = method.model.towers["visual"].text, method.model.prompts["spoken"]
    ids = text.tokenize(["baby cry."])
    assert torch.equal(prompts.ids[1, 5 : 5 + 10], ids[0, 1:11])
    assert int(prompts.ids[1, 0]) == int(ids[0, 0])
    assert prompts.ids.shape[1] == 1 + 4 + len("church bell, big.") + 1


# ------------------------------------------------------------------ 9.2-7, 4.4: the life of parameters
class Watch(Method):
    """Remembers the owned tensors after every experience."""

    states: ClassVar[dict] = {}

    def after(self, experience, data):
        super().after(experience, data)
        Watch.states[experience.name] = Owners(self.model).state()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two tasks with texts and one without, trained one after the other."""
    run = toys.toy("spoken", "spoken more", "labels")
    run = replace(run, method=Watch, training=run.training.model_copy(update={"epochs": 1}))
    Watch.states = {}
    trainer = run.trainer(tmp_path_factory.mktemp("run"))
    trainer.run()
    return run, trainer, Watch.states


ORDER = ("spoken0", "spoken more0", "labels0")


def test_what_a_task_owns_never_changes_after_it(trained):
    run, trainer, states = trained
    owners = {row.name: row.owner for row in Owners(trainer.method.model).rows.values()}
    for number, name in enumerate(ORDER[:-1]):
        task = run.stream.experience(name).task
        mine = [n for n, owner in owners.items() if owner in (f"task:{name}", f"task:{task}", f"head:{task}")]
        assert len(mine) > 10
        for later in ORDER[number + 1 :]:
            assert not [n for n in mine if not torch.equal(states[name][n], states[later][n])]
    text = [n for n, owner in owners.items() if owner == "shared:text"]
    shared = [n for n, owner in owners.items() if owner == "shared"]
    assert all(not torch.equal(states["spoken0"][n], states["spoken more0"][n]) for n in text)
    assert all(torch.equal(states["spoken more0"][n], states["labels0"][n]) for n in text)
    for one, two in pairwise(ORDER):
        moved = [n for n in shared if not torch.equal(states[one][n], states[two][n])]
        assert len(moved) > 0.9 * len(shared)


def test_forgetting_comes_from_what_is_shared_alone(trained):
    run, trainer, states = trained
    method, owners = trainer.method, Owners(trainer.method.model)
    batch = toys.samples(run, "spoken0", 4, "test", double=False)
    method.model.eval()

    def answers():
        with torch.no_grad():
            return method.model(batch, method.context(batch, False))["logits"]

    owners.set_trainable(())  # products of matrices are ordered by it
    latest, now = answers(), owners.state()
    then = {n: states["spoken0"].get(n, v) for n, v in now.items()}
    rows = owners.rows
    owners.load({n: then[n] if rows[n].owner.startswith("shared") else v for n, v in now.items()})
    restored = answers()
    fresh = run.build()
    for experience in run.stream.experiences:
        fresh.model.grow(experience)
    Owners(fresh.model).load(then | {n: v for n, v in now.items() if n not in states["spoken0"]})
    Owners(fresh.model).set_trainable(())
    fresh.model.eval()
    with torch.no_grad():
        at_its_time = fresh.model(batch, fresh.context(batch, False))["logits"]
    owners.load(now)
    assert torch.equal(restored, at_its_time)
    assert float((latest - restored).abs().max()) > 1e-4


@pytest.mark.parametrize("init", ["warm", "fresh"])
def test_prompts_of_a_new_task_start_from_the_last_ones_or_anew(init):
    run = toys.toy("spoken", "labels", "classes", task_init=init)
    model = run.build().model
    for experience in run.stream.experiences:
        model.grow(experience)
        with torch.no_grad():  # as training moves what was copied
            before = {n: p.clone() for n, p in Owners(model).match().items()}
            for parameter in Owners(model).match().values():
                parameter.add_(0.1 * torch.randn_like(parameter))
    for bank in (model.mid_prompts, *model.pools.values()):
        _, last, new = (dict(bank.slots[name].named_parameters()) for name in ("spoken0", "labels0", "classes0"))
        names = {id(p): n for n, p in model.named_parameters()}
        same = [torch.equal(before[names[id(last[n])]], before[names[id(new[n])]]) for n in new]
        assert all(same) if init == "warm" else not any(same)
        assert not any(p is q for p in last.values() for q in new.values())


def test_a_context_is_of_its_task_and_starts_anew():
    run = toys.toy("spoken", "spoken more", "labels")
    model = toys.grown(run, 0.0).model
    assert list(model.contexts) == ["spoken", "spoken more"]
    one, two = (model.contexts[n].vectors for n in model.contexts)
    assert not torch.equal(one, two)
    assert one.shape == (4, 32)
    drawn = torch.cat([one, two]).std()
    assert 0.015 < float(drawn) < 0.025
    shared = toys.grown(toys.toy("spoken", "labels", context={"per": "shared"})).model
    assert not len(shared.contexts)
    assert "text.context.vectors" in Owners(shared).match(["shared:text"])


# ------------------------------------------------------------------ ablations and refusals
@pytest.mark.parametrize(
    "left", [("shallow",), ("mid",), ("deep",), ("shallow", "mid"), ("mid", "deep"), ("shallow", "deep"), ()]
)
def test_every_phase_can_be_left_out(left):
    off = {phase: {"blocks": []} for phase in ("shallow", "mid", "deep") if phase not in left}
    run = toys.toy("spoken", **off)
    method, batch = toys.grown(run), toys.samples(run, "spoken0", 2)
    owners = {row.owner for row in Owners(method.model).rows.values()}
    assert ("shared" in owners) is ("shallow" in left)
    assert ("task:spoken0" in owners) is bool({"mid", "deep"} & set(left))
    terms = method.losses(batch)
    assert ("visual pool pull" in terms) is ("deep" in left)
    acts = {"shallow": {"add"}, "mid": {"prefix", "input"}, "deep": {"prefix"}}
    assert {place for _, _, place in method.model.sites} == set().union(*(acts[phase] for phase in left))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mid": {"blocks": [1, 1]}}, "mid.blocks names a block twice"),
        ({"deep": {"pool_size": 2, "top_k": 3}}, "deep.top_k 3 of a pool of 2"),
        ({"deep": {"query": "cls"}}, "deep.query: cls needs a class token"),
        ({"mid": {"rows": 7}}, "multiple of 2"),
        ({"shallow": {"num_tokens": 3}}, "num_tokens"),
        ({"deep": {"blocks": [-1]}}, "greater than or equal to 0"),
        ({"deep": {"modalities": []}}, "at least 1 item"),
        ({"deep": {"modalities": ["audio", "audio"]}}, "names a modality twice"),
        ({"centres": {"reads": ["visual", "visual"]}, "router": "centres"}, "names a modality twice"),
        ({"deep": {"pool_size": 1, "pull": 0.2}}, "pull has no effect with pool_size: 1"),
        ({"deep": {"pool_size": 1, "key_init": "zero"}}, "key_init has no effect with pool_size: 1"),
        ({"prompts": "shared", "task_init": "fresh"}, "task_init has no effect with prompts: shared"),
        ({"centres": {"count": 3}}, "centres has no effect with router: none"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PhpOptions(**options)


@pytest.mark.parametrize("changed", [{}, {"deep": {"pool_size": 1}}, {"prompts": "shared"}])
def test_a_complete_record_of_options_is_accepted(changed):
    options = PhpOptions(**changed)
    assert PhpOptions(**options.model_dump()) == options


def test_pools_for_sound_that_cannot_be_pooled_are_refused_when_the_model_is_built():
    towers = lambda: {"visual": toys.tiny_towers()["visual"], "audio": wide_sound()}  # noqa: E731
    off = {"mid": {"blocks": []}, "shallow": {"blocks": []}}
    with pytest.raises(ConfigError, match="width 64 is no multiple of the tokens' width 12"):
        toys.toy("labels", towers=towers, **off).build()
    toys.toy("labels", towers=towers, **off, deep={"modalities": ["visual"]}).build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deep": {"blocks": [4]}}, r"model\.deep\.blocks: \[4\]; the towers have blocks 0 to 3"),
        ({"mid": {"rows": 1024}}, "fill 1024 channels, but the tokens have 32"),
        ({"context": {"tokens": 70}}, "the text encoder reads 77"),
    ],
)
def test_geometry_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        toys.grown(toys.toy(**options))


def test_towers_without_texts_or_of_other_depths_are_refused():
    run = toys.toy("labels", towers=toy_towers)
    with pytest.raises(ConfigError, match=r"towers\.visual: swin_v2 has no text side"):
        run.build()
    short = lambda: {"visual": toys.tiny_towers()["visual"], "audio": three_blocks()}  # noqa: E731
    with pytest.raises(ConfigError, match="have 4 and 3 blocks; they are walked block by block"):
        toys.toy("labels", towers=short).build()
    hidden = replace(toys.toy("labels"), task_id="hidden")
    with pytest.raises(ConfigError, match="task"):
        Php.requires.check("php", hidden.towers(), hidden.tasks, hidden.stream)


def three_blocks():
    return sound_tower(8, (2, 1))


def wide_sound():
    """Four blocks on tokens 12 wide."""
    return sound_tower(12, (2, 2))


def sound_tower(width, depths):
    from shared_backbones.hts_at import audio_config
    from shared_backbones.logmel import LogMelOptions
    from shared_backbones.towers.clap import Clap
    from shared_backbones.vocabulary import byte_vocabulary

    known = toys.shifted_towers()["audio"]
    front = LogMelOptions(sample_rate=8000, hop=80, mels=16, scale="htk", n_fft=256, high=4000.0)
    text = known.net.config.text_config
    return Clap("tiny", audio_config(64, 16, width, depths, (1, 2), 4, 16), text, front, byte_vocabulary(0, 2, 1))


def test_sites_hold_no_parameters_of_prompts():
    model = toys.grown(toys.toy()).model
    for (_, _, place), modules in model.sites.items():
        assert all(isinstance(m, FromMemo) is (place != "add") for m in modules)
    assert not [n for n, m in model.parts.items() if isinstance(m, FromMemo) and list(m.parameters())]


def test_rows_of_two_tasks_in_one_batch_use_their_own_copies():
    run = toys.toy("spoken", experiences=2)
    method = toys.grown(run)
    one, two = (toys.samples(run, name, 2, "test") for name in ("spoken0", "spoken1"))
    apart = [toys.flat(toys.features(method, b)) for b in (one, two)]
    inputs = {
        n: torch.stack([one.inputs[n][0], two.inputs[n][0], one.inputs[n][1], two.inputs[n][1]]) for n in one.inputs
    }
    mixed = Batch("spoken", ("a", "b", "c", "d"), inputs)
    slots = ("spoken0", "spoken1", "spoken0", "spoken1")
    with torch.no_grad():
        found = toys.flat(method.model.features(mixed, Ctx(slots)))
    for name, value in found.items():
        expected = torch.stack([apart[0][name][0], apart[1][name][0], apart[0][name][1], apart[1][name][1]])
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)


def test_model_contract():
    check_model(Php, toys.tiny_towers, toys.tasks_of("spoken", "labels", "mask", "tokens"), PhpOptions(**toys.TINY))


def test_spec_names_class_tokens_and_similarity():
    spec = toys.grown(toys.toy()).model.spec()
    assert spec.similarity == ("visual", "audio")
    assert spec.final["visual"] == TokenShape((4, 4), 64, 1)
    assert spec.stages["audio"][-1] == TokenShape((4, 4), 64, 0)
