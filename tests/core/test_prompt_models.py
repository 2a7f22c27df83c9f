"""L2P, DualPrompt, CODA-Prompt, S-Prompts and shared adapters: what is chosen by what, who owns it, what later tasks change."""

import importlib.util
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

_spec = importlib.util.spec_from_file_location("aligned_toys", Path(__file__).with_name("aligned_toys.py"))
assert _spec is not None
assert _spec.loader is not None
toys = sys.modules["aligned_toys"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toys)

from avcl_core.errors import ConfigError, RunError  # noqa: E402
from avcl_core.evaluation.evaluator import Evaluator  # noqa: E402
from avcl_core.methods.base import Method  # noqa: E402
from avcl_core.methods.derpp import DarkReplay  # noqa: E402
from avcl_core.methods.er import ExperienceReplay  # noqa: E402
from avcl_core.models.aligned import Aligned  # noqa: E402
from avcl_core.models.coda_prompt import CodaPrompt, CodaPromptOptions  # noqa: E402
from avcl_core.models.cross_modal import CrossModalAdapters, CrossModalAdaptersOptions  # noqa: E402
from avcl_core.models.dualprompt import DualPrompt, DualPromptOptions  # noqa: E402
from avcl_core.models.l2p import L2P, L2pOptions  # noqa: E402
from avcl_core.models.php import Php, PhpOptions  # noqa: E402
from avcl_core.models.s_prompts import SPrompts, SPromptsOptions  # noqa: E402
from avcl_core.ownership import Owners, without_gradients  # noqa: E402
from avcl_core.testing import ToyRun, toy_task  # noqa: E402
from avcl_core.testing.toy_run import differences, run_interrupted, run_straight  # noqa: E402
from avcl_core.testing.toy_texts import ToyTexts  # noqa: E402
from avcl_core.testing.toy_towers import aligned_towers  # noqa: E402
from avcl_core.trace import Trace  # noqa: E402

BOTH = ("visual", "audio")
PHP = {
    "shallow": {"blocks": (0,), "latents": 4, "reduction": 4},
    "mid": {"blocks": (1,), "dictionary": 16, "rows": 8, "depth": 1},
    "deep": {"blocks": (2, 3), "length": 2, "pool_size": 2},
}
MODELS = {
    "l2p": (L2P, L2pOptions(modalities=BOTH, blocks=(0, 2))),
    "dualprompt": (DualPrompt, DualPromptOptions(modalities=BOTH, general_blocks=(0,), expert_blocks=(1, 3))),
    "coda": (CodaPrompt, CodaPromptOptions(modalities=BOTH, components=7, blocks=(0, 1))),
    "s_prompts": (SPrompts, SPromptsOptions(modalities=BOTH, blocks=(0, 2))),
    "php": (Php, PhpOptions(**PHP, router="centres", task_init="fresh")),
}
OWN = {"dualprompt", "s_prompts", "php"}
"""Models of which each task has prompts of its own that its id chooses."""


@pytest.fixture
def folder():
    """An empty folder, in memory if possible: runs wait for the disk at every commit."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield made
    shutil.rmtree(made)


def build(name, tasks=None):
    model_class, options = MODELS[name]
    return toys.grown(model_class, options, tasks)


def prompts_of(method, given, training=False):
    """Rows of every site, by tower, block and kind."""
    ctx = method.context(given, training)
    with torch.no_grad():
        method.model.features(given, ctx)
    return {k: v for k, v in ctx.memo.items() if isinstance(v, tuple)}, ctx


def two():
    return {"labels": toy_task("labels", 2), "texts": ToyTexts("texts")}


@pytest.mark.parametrize("name", MODELS)
def test_without_prefixes_the_walk_is_the_plain_one(name):
    method, plain = build(name), toys.grown(Aligned)
    given = toys.batch(method, "labels")
    with torch.no_grad():
        bare = method.model.features(
            given, replace(method.context(given, False), without=frozenset({"prefix", "input"}))
        )
        expected = plain.model.features(given, plain.context(given, False))
        acting = method.model.features(given, method.context(given, False))
    for tower, value in expected.final.items():
        assert torch.equal(bare.final[tower], value)
        assert not torch.allclose(acting.final[tower], value)


def test_new_adapters_add_nothing_and_then_something():
    options = CrossModalAdaptersOptions(adapter={"latents": 4, "reduction": 4})
    method, plain = toys.grown(CrossModalAdapters, options), toys.grown(Aligned)
    given = toys.batch(method, "labels")
    with torch.no_grad():
        expected = plain.model.features(given, plain.context(given, False)).final
        found = method.model.features(given, method.context(given, False)).final
        opened = toys.stirred(method).model.features(given, method.context(given, False)).final
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    assert not any(torch.allclose(opened[n], expected[n]) for n in expected)
    assert len(method.model.parts) == 4 * 2 * 2
    owners = {row.owner for row in Owners(method.model).rows.values()}
    assert owners == {"shared", "shared:text", "task:texts", "head:labels"}
    few = toys.grown(CrossModalAdapters, options.model_copy(update={"blocks": (1, 3)}))
    assert {site[1] for site in few.model.sites} == {"1.attn", "1.mlp", "3.attn", "3.mlp"}
    for blocks in ((4,), (1, 1)):
        with pytest.raises(ConfigError, match=r"model\.blocks: .*expected different ones of blocks 0 to 3"):
            toys.grown(CrossModalAdapters, options.model_copy(update={"blocks": blocks}))


@pytest.mark.parametrize(
    ("name", "owners"),
    [
        ("l2p", {"pools": {"shared"}}),
        ("dualprompt", {"general": {"shared"}, "experts": {"task:texts0", "task:labels0"}}),
        ("coda", {"sets": {"task:texts0", "task:labels0"}}),
        ("s_prompts", {"prefixes": {"task:texts0", "task:labels0"}, "router": {"router"}}),
    ],
)
def test_owners(name, owners):
    rows = Owners(build(name).model).rows.values()
    found: dict[str, set[str]] = {}
    for row in rows:
        part = row.name.split(".")[0]
        if part not in ("heads", "contexts", "text"):
            found.setdefault(part, set()).add(row.owner)
    assert found == owners


@pytest.mark.parametrize("name", MODELS)
def test_rows_belong_to_a_sample_and_its_frames_agree(name):
    method = build(name)
    given = toys.batch(method, "labels", 4)
    found, _ = prompts_of(method, given)
    for row in range(4):
        alone, _ = prompts_of(method, given.select([row]))
        for key, pair in found.items():
            for rows, one in zip(pair, alone[key], strict=True):
                torch.testing.assert_close(rows[2 * row : 2 * row + 2], one, atol=1e-5, rtol=1e-4)
                if name != "php":  # its generated prompts are made for every frame
                    assert torch.equal(rows[2 * row], rows[2 * row + 1])


def test_l2p_chooses_by_the_frozen_features_of_each_tower():
    method = build("l2p")
    given = toys.batch(method, "labels", 5)
    found, _ = prompts_of(method, given)
    chosen = {}
    for name in BOTH:
        pool, query = method.model.pools[name], method.model.query(given, (name,))
        cosines = query @ F.normalize(pool.keys.detach(), dim=1).T
        order = cosines.topk(5, dim=1).indices
        chosen[name] = order
        for number, block in enumerate((0, 2)):
            keys, values = found[f"{name} blocks {block}"]
            for row in range(5):
                assert torch.equal(keys[2 * row], torch.cat([pool.rows[number][0][i] for i in order[row]]))
                assert torch.equal(values[2 * row], torch.cat([pool.rows[number][1][i] for i in order[row]]))
    assert not torch.equal(chosen["visual"], chosen["audio"])
    hidden, _ = prompts_of(method, given.question(hidden=True))
    assert all(torch.equal(a, b) for key in found for a, b in zip(found[key], hidden[key], strict=True))


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_given_task_gets_its_own_prompts(name):
    method = build(name)
    given = toys.batch(method, "labels")
    own, _ = prompts_of(method, given)
    other, _ = prompts_of(method, replace(given, experience="texts0"))
    general = [key for key in own if "general" in key]
    for key in own:
        assert torch.equal(own[key][0], other[key][0]) == (key in general), key
    assert bool(general) == (name == "dualprompt")


def test_dualprompt_pulls_the_own_key_and_no_other():
    method = build("dualprompt")
    given = toys.batch(method, "labels")
    _, ctx = prompts_of(method, given, training=True)
    for name in BOTH:
        key = method.model.experts[name].slots["labels0"].keys.detach()
        cosines = F.cosine_similarity(method.model.query(given, (name,)), key, dim=1)
        torch.testing.assert_close(ctx.aux[f"{name} expert pull"].detach(), 0.1 * (1 - cosines).mean())
    toys.learn(method, given)
    before = Owners(build("dualprompt").model).state()
    after = Owners(method.model).state()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    keys = {n for n in changed if n.endswith(".keys")}
    assert keys == {f"experts.{name}.slots.labels0.keys" for name in BOTH}


def test_dualprompt_asks_the_frozen_tower_only_where_a_key_is_read(monkeypatch):
    method = build("dualprompt")
    given, asked = toys.batch(method, "labels"), []
    plain = Aligned.query
    monkeypatch.setattr(
        Aligned, "query", lambda self, batch, names: (asked.append(names), plain(self, batch, names))[1]
    )
    prompts_of(method, given)
    assert asked == []
    prompts_of(method, given, training=True)
    assert asked == [("visual",), ("audio",)]


def test_dualprompt_tells_near_keys_apart_in_mixed_precision():
    method = build("dualprompt", two())
    given = toys.batch(method, "labels", 1)
    for order in (("labels0", "labels1", "texts0"), ("texts0", "labels1", "labels0")):
        for name in BOTH:
            query, slots = method.model.query(given, (name,)), method.model.experts[name].slots
            away = F.normalize(torch.randn(query.shape, generator=torch.Generator().manual_seed(3)), dim=1)
            with torch.no_grad():
                for number, slot in enumerate(order):
                    slots[slot].keys.copy_(query + 0.01 * (1 + number) * away)
        with torch.autocast("cpu", torch.bfloat16):
            assert method.model.guess(given) == order[:1]


@pytest.mark.parametrize("replay", [ExperienceReplay, DarkReplay])
def test_the_penalty_on_components_is_not_added_again_for_replayed_samples(replay):
    plain = build("coda", two())
    method = replay(plain.model, plain.tasks, replay.Config(), 0)
    toys.calibrated(method)
    first, second = method.tasks["labels"].experiences()
    toys.stirred(method)
    Owners(method.model).set_trainable(method.active(second))
    current, old = toys.batch(method, "labels", 3, 1), toys.batch(method, "labels", 2, 0)
    outputs = method.outputs(toys.data(method, "labels", 0), list(old.keys)) if replay is DarkReplay else {}
    kinds = next(iter(outputs.values()), {})
    old = replace(old, stored={name: torch.stack([outputs[key][name] for key in old.keys]) for name in kinds})
    assert old.experience == first.name
    (update,) = method.step(current, (old,))
    found = {name: part for name, part in update.parts.items() if name.endswith("orthogonality")}
    assert found.keys() == {"visual orthogonality", "audio orthogonality"}
    assert all(float(part.detach()) > 0 for part in found.values())
    assert any(name.startswith("labels0:") for name in update.parts)


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_hidden_task_is_told_by_content_sample_by_sample(name):
    method = toys.calibrated(build(name, two()))
    given = toys.batch(method, "labels", 4)
    queries = method.model.query(given, BOTH if name == "php" else ("visual",))
    slots = ("labels0", "labels1", "texts0")
    if name == "dualprompt":
        parts = [method.model.query(given, (n,)) @ method.model.keys(n).T for n in BOTH]
        expected = tuple(slots[i] for i in (parts[0] + parts[1]).argmax(1))
    else:
        router = method.model.router
        # One sample each: the centres of the first two are moved onto two of the samples.
        with torch.no_grad():
            router.slots["texts0"].centres.fill_(50.0)
            router.slots["labels0"].centres.copy_(queries[2].expand(5, -1))
            router.slots["labels1"].centres.copy_(queries[1].expand(5, -1))
        distance = torch.stack([(queries - queries[i]).abs().sum(1) for i in (2, 1)], 1)
        expected = tuple(slots[i] for i in distance.argmin(1))
        assert expected[1:3] == ("labels1", "labels0")
    assert method.model.route(given.question(hidden=True)) == expected
    assert method.model.route(given) == ("labels0",) * 4
    hidden = toys.answers(method, given.question(hidden=True))
    for row in range(4):
        told = toys.answers(method, replace(given.select([row]), experience=expected[row]))
        torch.testing.assert_close(hidden[row], told[0], atol=1e-4, rtol=1e-4)


def test_dualprompts_nearest_key_is_that_of_the_largest_cosine_over_both_modalities():
    method = build("dualprompt")
    given = toys.batch(method, "labels", 3).question(hidden=True)
    mean = {name: method.model.query(given, (name,)).mean(0) for name in BOTH}
    aside = {name: value.flip(0) - value * (value.flip(0) @ value) / (value @ value) for name, value in mean.items()}

    def route(keys):
        with torch.no_grad():
            for name, slots in keys.items():
                for slot, key in slots.items():
                    method.model.experts[name].slots[slot].keys.copy_(key)
        return method.model.route(given)

    for slot, other in (("texts0", "labels0"), ("labels0", "texts0")):
        # Its length means nothing: the other one's product with the query is larger.
        lengths = {n: {slot: 0.01 * mean[n], other: 100 * (mean[n] + aside[n])} for n in BOTH}
        assert route(lengths) == (slot,) * 3
        # Sight alone would take the other one, by a little.
        seen = {slot: mean["visual"] + 0.2 * aside["visual"], other: mean["visual"]}
        assert route({"visual": seen, "audio": {slot: mean["audio"], other: -mean["audio"]}}) == (slot,) * 3


def test_centres_are_those_of_the_training_samples():
    method = toys.calibrated(build("s_prompts"))
    state = {n: v.clone() for n, v in Owners(method.model).state().items()}
    toys.calibrated(method)
    assert all(torch.equal(value, state[n]) for n, value in Owners(method.model).state().items())
    for slot, task in (("labels0", "labels"), ("texts0", "texts")):
        points = torch.cat([method.model.query(b, ("visual",)) for b in toys.data(method, task).batches()])
        known = method.model.router.slots[slot]
        assert float(known.samples) == len(points) == 6
        nearest = torch.cdist(points, known.centres).amin(1)
        assert float(nearest.max()) < float(torch.cdist(points, points.mean(0, keepdim=True)).max())
    assert method.model.router.width == 32
    assert build("php").model.router.width == 64


@pytest.mark.parametrize("name", ["s_prompts", "php"])
def test_centres_are_computed_where_tasks_are_hidden_alone(name):
    class Unread:
        def batches(self):
            raise AssertionError("no sample needs to be read")

    method = build(name)
    for task in method.tasks.values():
        method.model.calibrate(task.experiences()[0], Unread(), hidden=False)
    assert all(float(known.samples) == 0 for known in method.model.router.slots.values())
    with pytest.raises(RunError, match="no task has centres to compare with"):
        method.model.guess(toys.batch(method, "labels"))
    with pytest.raises(AssertionError, match="no sample needs"):
        method.model.calibrate(method.tasks["labels"].experiences()[0], Unread(), hidden=True)


@pytest.mark.parametrize("task_id", ["given", "hidden"])
def test_a_run_computes_centres_where_it_hides_its_tasks(task_id, folder):
    model_class, options = MODELS["s_prompts"]
    toy = ToyRun(aligned_towers, model_class, Method, {"labels": toy_task("labels")}, task_id, model_options=options)
    trainer = replace(toy, training=toy.training.model_copy(update={"epochs": 1})).trainer(folder)
    trainer.run()
    (known,) = trainer.method.model.router.slots.values()
    assert float(known.samples) == (6 if task_id == "hidden" else 0)


def test_centres_of_a_tower_that_learns_are_refused():
    method = build("s_prompts")
    dict(method.model._towers())["visual"].set_trainable(True)
    with pytest.raises(ConfigError, match=r"towers\.visual learns, and the router compares"):
        toys.calibrated(method)


def test_coda_sums_over_all_tasks_whichever_is_asked():
    method = build("coda")
    given = toys.batch(method, "labels")
    assert method.model.each == 3  # of 7 for two experiences
    own, _ = prompts_of(method, given)
    for other in (replace(given, experience="texts0"), given.question(hidden=True)):
        found, _ = prompts_of(method, other)
        assert all(torch.equal(a, b) for key in own for a, b in zip(own[key], found[key], strict=True))
    with torch.no_grad():
        for part in method.model.sets["visual"]["texts0"].rows:
            part.zero_()
    changed, _ = prompts_of(method, given)
    assert not torch.allclose(own["visual blocks 0"][0], changed["visual blocks 0"][0])
    keys, values = own["audio blocks 1"]
    assert keys.shape[1] == values.shape[1] == 4
    for part in method.model.sets["visual"]["labels0"].rows:
        with torch.no_grad():
            part[:, :4] = 0
    keys, values = prompts_of(method, given)[0]["visual blocks 0"]
    assert float(keys.abs().max()) == 0
    assert float(values.abs().max()) > 0


def test_codas_penalty_is_weighed_and_new_components_avoid_old_ones():
    method = toys.stirred(build("coda"))
    given = toys.batch(method, "labels")
    _, ctx = prompts_of(method, given, training=True)
    assert float(ctx.aux["visual orthogonality"]) > 0
    none = toys.grown(CodaPrompt, CodaPromptOptions(components=7, blocks=(0, 1), orthogonality=0.0))
    assert prompts_of(none, given, training=True)[1].aux == {}
    before = Owners(method.model).state()
    later = method.tasks["labels"].experiences()[0]
    method.model.calibrate(later, toys.data(method, "labels"), hidden=False)
    after = Owners(method.model).state()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed
    assert all(".labels0." in n for n in changed)
    for block in (0, 1):
        old, new = (method.model.sets["visual"][slot].keys[block] for slot in ("texts0", "labels0"))
        assert float((old @ new.T).abs().max()) < 1e-5


def test_codas_shares_are_told():
    method, trace = build("coda"), Trace()
    given = toys.batch(method, "labels")
    ctx = replace(method.context(given, False), trace=trace)
    with torch.no_grad():
        method.model.features(given, ctx)
    told = trace.observed["visual 1 components"]["gates"]
    assert told.shape == (3, 2)
    torch.testing.assert_close(told.sum(1), torch.ones(3))
    assert trace.constants["visual 1 components"]["experts"] == ["texts0", "labels0"]


@pytest.mark.parametrize("name", MODELS)
def test_what_a_task_owns_stays_bit_for_bit_when_the_next_is_learnt(name):
    method = toys.calibrated(build(name, two()))
    toys.learn(method, toys.batch(method, "labels", 3, 0))
    before = {n: v.clone() for n, v in Owners(method.model).state().items()}
    trained = toys.learn(method, toys.batch(method, "labels", 3, 1))
    after, rows = Owners(method.model).state(), Owners(method.model).rows
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed <= set(trained)
    owners = {rows[n].owner for n in changed}
    assert not {"task:labels0", "task:texts0", "task:texts", "shared:text", "router", "head:texts"} & owners
    assert ("task:labels1" in owners) == (name != "l2p")
    assert ("shared" in owners) == (name in ("l2p", "dualprompt", "php"))


# ---------------------------------------------------------------------- hidden streams as a whole
@pytest.mark.parametrize("name", sorted(OWN))
def test_the_accuracy_of_the_routing_is_reported(name):
    method = toys.calibrated(build(name, two()))
    first, second = method.tasks["labels"].experiences()
    evaluator = Evaluator(toys.loader(method), True, 3, method.collective)
    found = evaluator.evaluate(method, method.tasks["labels"], first, "test")
    chosen = [slot for b in toys.data(method, "labels").batches("test") for slot in method.model.guess(b)]
    assert found.metrics["routing_accuracy"] == pytest.approx(100 * chosen.count("labels0") / 4)
    told = found.usage["sites"]["router"]
    assert told["constants"]["experts"] == ["labels0", "labels1", "texts0"]
    assert told["first"] == [chosen.count(slot) for slot in told["constants"]["experts"]]
    of_second = evaluator.evaluate(method, method.tasks["labels"], second, "test").metrics["routing_accuracy"]
    chosen = [slot for b in toys.data(method, "labels", 1).batches("test") for slot in method.model.guess(b)]
    assert of_second == pytest.approx(100 * chosen.count("labels1") / 4)
    given = Evaluator(toys.loader(method), False, 3, method.collective)
    known = given.evaluate(method, method.tasks["labels"], first, "test")
    assert "routing_accuracy" not in known.metrics
    assert "router" not in (known.usage or {"sites": {}})["sites"]


@pytest.mark.parametrize("name", ["s_prompts", "coda"])
def test_a_hidden_run_that_is_stopped_and_resumed_ends_the_same(name, folder):
    model_class, options = MODELS[name]
    toy = ToyRun(aligned_towers, model_class, Method, two(), "hidden", model_options=options)
    straight, asked = run_straight(toy, folder / "straight")
    places = [stop for stop in asked if stop.session == 1 and stop.phase == "train"]
    resumed = run_interrupted(toy, folder / "stopped", places[len(places) // 2])
    assert differences(straight, resumed, folder / "straight", folder / "stopped") == []
    cell = straight.matrix.cell("texts0", "labels1")
    assert ("routing_accuracy" in cell.metrics) == (name == "s_prompts")


# ---------------------------------------------------------------------- what is refused
def test_which_models_can_do_without_the_task():
    for name, (model_class, options) in MODELS.items():
        assert model_class.needs(options).task_id == ("given", "hidden"), name
    assert Php.needs(PhpOptions()).task_id == ("given",)
    assert Php.needs(PhpOptions(prompts="shared")).task_id == ("given", "hidden")
    assert Aligned.requires.task_id == ("given",)
    with pytest.raises(ValidationError, match="leaves it no choice"):
        PhpOptions(router="centres", prompts="shared")


@pytest.mark.parametrize(
    ("model_class", "options", "match"),
    [
        (L2P, L2pOptions(blocks=(3, 4)), r"model\.blocks: \[4\]; the towers have blocks 0 to 3"),
        (SPrompts, SPromptsOptions(blocks=(1, 1)), r"model\.blocks names a block twice"),
        (DualPrompt, DualPromptOptions(), r"model\.expert_blocks: \[4\]"),
        (CodaPrompt, CodaPromptOptions(blocks=(0,)), r"model\.components: 50 components cannot be orthogonal in 32"),
        (CodaPrompt, CodaPromptOptions(components=1, blocks=(0,)), r"model\.components: 1 for 2 experiences"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(model_class, options, match):
    with pytest.raises(ConfigError, match=match):
        toys.grown(model_class, options)


@pytest.mark.parametrize(
    ("options", "given", "match"),
    [
        (L2pOptions, {"top_k": 11}, "top_k 11 of a pool of 10"),
        (DualPromptOptions, {"expert_blocks": (1, 2)}, r"blocks \[1\] are in general_blocks and in expert_blocks"),
        (DualPromptOptions, {"expert_blocks": (), "general_blocks": ()}, "both empty"),
        (CodaPromptOptions, {"length": 7}, "multiple of 2"),
        (CodaPromptOptions, {"orthogonality": 0.2}, "less than or equal to 0.1"),
        (L2pOptions, {"modalities": ()}, "at least 1 item"),
        (L2pOptions, {"modalities": ("visual", "visual")}, "names a modality twice"),
        (L2pOptions, {"pool_size": 1, "top_k": 1, "pull": 0.5}, "pull has no effect with pool_size: 1"),
        (SPromptsOptions, {"router": {"reads": ()}}, "at least 1 item"),
        (SPromptsOptions, {"router": {"reads": ("audio", "audio")}}, "names a modality twice"),
    ],
)  # fmt: skip
def test_options_that_contradict_themselves(options, given, match):
    with pytest.raises(ValidationError, match=match):
        options(**given)


def test_predictions_do_not_depend_on_what_is_training():
    method = toys.stirred(
        toys.grown(CrossModalAdapters, CrossModalAdaptersOptions(adapter={"latents": 4, "reduction": 4}))
    )
    given = toys.batch(method, "texts", 3).question(False)
    found = []
    for patterns in (("*",), (), ("shared",)):
        Owners(method.model).set_trainable(patterns)
        flags = [p.requires_grad for p in method.model.parameters()]
        with without_gradients(method.model):
            found.append(method.model.features(given, method.context(given, False)).final["visual"])
        assert not found[-1].requires_grad
        assert [p.requires_grad for p in method.model.parameters()] == flags
    assert all(torch.equal(found[0], other) for other in found[1:])
