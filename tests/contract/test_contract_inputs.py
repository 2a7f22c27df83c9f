"""What inputs may be besides a sample's own media: drawn ones, plain ones, denied ones, and heads that start elsewhere."""

import numpy as np
import pytest
import torch

from avcl_core.errors import ConfigError, IntegrityError
from avcl_core.methods.finetune import Finetune
from avcl_core.models.base import Model
from avcl_core.models.frozen import Frozen
from avcl_core.models.residual_adapters import ResidualAdapters
from avcl_core.ownership import Owners
from avcl_core.running.initial import HeadStart
from avcl_core.testing import toy_task
from avcl_core.testing.toy_run import ToyRun
from avcl_core.testing.toy_tasks import ToyClasses
from avcl_core.testing.toy_towers import clip, toy_towers
from avcl_core.training.inputs import AudioInput, make_inputs
from avcl_core.training.loader import Loader, Request
from avcl_core.walk import Ctx
from shared_backbones import create


class WithNegatives(ToyClasses):
    """Classes, with frames of another clip beside the sample's own while it trains."""

    plain = {"negative": "visual"}  # noqa: RUF012

    def dataset(self, split):
        whole = super().dataset(split)

        class Data:
            drawn = frozenset({"negative"})
            targets, digest = staticmethod(whole.targets), staticmethod(whole.digest)

            @staticmethod
            def inputs(key, rng):
                own = dict(whole.inputs(key, None))
                if rng is not None:
                    own["negative"] = rng.integers(0, 255, own["visual"].shape, dtype=np.uint8)
                return own

        return Data()


class Noticing:
    """An input transformation that remembers which content digests it was given."""

    def __init__(self, inner):
        self.inner, self.seen = inner, []

    def __call__(self, raw, digest):
        self.seen.append(digest)
        return self.inner(raw, digest)


def negatives():
    task = WithNegatives("classes")
    towers = {"visual": clip()}
    inputs = {name: Noticing(made) for name, made in make_inputs(towers, {}, task.audio_rate, None).items()}
    return task, towers, inputs, Loader({task.name: task}, inputs)


def test_only_drawn_and_plain_inputs_are_kept_out_of_the_content_cache():
    task, _, inputs, loader = negatives()
    (experience,) = task.experiences()
    loader.load(Request(experience, "train", experience.train[:1], (0, "augment")))
    own = task.dataset("train").digest(experience.train[0])
    assert inputs["visual"].seen == [own, None]


def test_a_task_without_draws_keeps_its_digest_in_training_too():
    _, _towers, inputs, _ = negatives()
    toy = toy_task("classes", 1)
    (experience,) = toy.experiences()
    loader = Loader({"classes": toy}, inputs)
    loader.load(Request(experience, "train", experience.train[:1], (0, "augment")))
    assert inputs["visual"].seen == [None], "the toy frames are drawn"
    loader.load(Request(experience, "train", experience.train[:1]))
    assert inputs["visual"].seen[-1] == toy.dataset("train").digest(experience.train[0])


def test_plain_inputs_go_through_the_plain_tower_without_gradient():
    task, towers, _, loader = negatives()
    (experience,) = task.experiences()
    model = ResidualAdapters(towers, {task.name: task}, ResidualAdapters.Config())
    model.grow(experience)
    for parameter in Owners(model).match(("shared",)).values():
        torch.nn.init.normal_(parameter, std=0.5)  # open adapters
    batch = loader.load(Request(experience, "train", experience.train[:2], (0, "augment")))
    features = model.features(batch, Ctx())
    plain = features.plain["negative"]
    frames = batch.inputs["negative"].flatten(0, 1)
    assert torch.allclose(plain.flatten(0, 1), towers["visual"].encode(frames), atol=1e-6)
    assert not plain.requires_grad
    assert features.final["visual"].requires_grad
    without = loader.load(Request(experience, "val", experience.val[:2]))
    assert model.features(without, Ctx()).plain == {}


@pytest.mark.parametrize("denied", ["visual", "audio"])
def test_a_denied_modality_is_silence_or_the_mean_image(denied):
    task, towers = toy_task("classes", 1), toy_towers()
    (experience,) = task.experiences()
    inputs = make_inputs(towers, {"audio": 1}, task.audio_rate, None)
    kept = tuple(name for name in towers if name != denied)
    loader = Loader({task.name: task}, inputs, modalities=kept)
    model = Model(towers, {task.name: task}, Model.Config())
    model.grow(experience)
    batch = loader.load(Request(experience, "train", experience.train[:2]))
    assert batch.present[denied].tolist() == [False, False]
    features = model.features(batch, Ctx())
    tower = towers[denied]
    info = tower.info
    nothing = (
        torch.zeros(1, 3, info.image_size, info.image_size) if denied == "visual" else torch.zeros(1, task.audio_rate)
    )
    expected = tower.encode(nothing)[0]
    for clip_tokens in features.final[denied].flatten(0, 1):
        assert torch.allclose(clip_tokens, expected, atol=1e-4)
    seen = Loader({task.name: task}, inputs).load(Request(experience, "train", experience.train[:2]))
    assert seen.present == {}
    other = model.features(seen, Ctx())
    assert torch.equal(other.final[kept[0]], features.final[kept[0]])
    assert not torch.allclose(other.final[denied], features.final[denied], atol=1e-3)


def frozen_run(seed=0, experiences=2):
    return ToyRun(toy_towers, Frozen, Finetune, {"classes": toy_task("classes", experiences)}, seed=seed)


def test_a_frozen_model_learns_its_heads_alone(tmp_path):
    trainer = frozen_run().trainer(tmp_path / "run")
    trainer.run()
    assert {row.owner for row in Owners(trainer.method.model).rows.values()} == {"head:classes"}


def finished(tmp_path, name="source", seed=0):
    trainer = frozen_run(seed, experiences=1).trainer(tmp_path / name)
    trainer.run()
    (tmp_path / name / "run.json").write_text("{}")
    return tmp_path / name


def test_a_head_starts_from_another_run_at_its_first_experience_only(tmp_path):
    source = finished(tmp_path)
    toy = frozen_run(seed=1)
    start = HeadStart({"classes": source}, toy.stream)
    model = toy.build().model
    for experience in toy.stream.experiences:
        model.grow(experience)
    own = Owners(model).state()
    start(model, toy.stream.experiences[1], False)
    assert all(torch.equal(own[n], t) for n, t in Owners(model).state().items())
    start(model, toy.stream.experiences[0], False)
    tag = (source / "checkpoints" / "LATEST").read_text().strip()
    there = frozen_run(experiences=1).trainer(source).store.load(tag).trained
    assert all(torch.equal(there[n], t) for n, t in Owners(model).state().items())


def test_a_head_of_another_shape_or_a_folder_that_is_no_run_is_refused(tmp_path):
    source = finished(tmp_path)
    toy = ToyRun(lambda: {"visual": clip()}, Frozen, Finetune, {"classes": toy_task("classes", 1)})
    model = toy.build().model
    model.grow(toy.stream.experiences[0])
    with pytest.raises(IntegrityError, match=r"init\.classes: pool\.linear\.weight .* does not fit this head"):
        HeadStart({"classes": source}, toy.stream)(model, toy.stream.experiences[0], False)
    with pytest.raises(IntegrityError, match="neither a run folder nor a checkpoint"):
        HeadStart({"classes": tmp_path}, toy.stream)(model, toy.stream.experiences[0], False)


def test_tiling_by_the_clip_repeats_each_second_as_often_as_the_clip_has_seconds(tmp_path):
    tower = create("htsat", size="tiny")
    rate = tower.info.sample_rate
    longest = tower.info.max_samples // rate
    sound = np.random.default_rng(0).normal(0, 0.1, (longest, rate)).astype(np.float32)
    assert longest > 1
    whole = AudioInput(tower, rate, "clip", tmp_path)
    fixed = AudioInput(tower, rate, longest, None)
    assert torch.equal(whole(sound, "content"), fixed(sound, None))
    assert torch.equal(whole(sound, "content"), fixed(sound, None)), "from the cache"
    assert whole.digest(1) != fixed.digest(1) == whole.digest(longest)
    with pytest.raises(ConfigError, match=rf"tile is clip: {longest + 1} seconds; .* takes {longest} at most"):
        whole(np.zeros((longest + 1, rate), np.float32), None)
    with pytest.raises(ConfigError, match=f"tile is {longest + 1}: {longest + 1} seconds"):
        AudioInput(tower, rate, longest + 1, None)


@pytest.mark.parametrize("kind", [Model, Frozen])
def test_a_denied_modality_is_denied_to_plain_inputs_too(kind):
    task, towers, inputs, _ = negatives()
    (experience,) = task.experiences()
    loader = Loader({task.name: task}, inputs, modalities=())
    model = kind(towers, {task.name: task}, kind.Config())
    model.grow(experience)
    batch = loader.load(Request(experience, "train", experience.train[:2], (0, "augment")))
    features = model.features(batch, Ctx())
    assert torch.allclose(features.plain["negative"], features.final["visual"], atol=1e-5), "both are the mean image"


def test_kept_features_do_not_depend_on_the_precision_of_the_step():
    model, _, _, experience, loader = frozen_model()
    batch = loader.load(Request(experience, "train", experience.train[:2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.features(batch, Ctx()).final["visual"]
    fresh, *_ = frozen_model()
    assert low.dtype == torch.float32
    assert torch.equal(low, fresh.features(batch, Ctx()).final["visual"])


def frozen_model(cache_mib=64):
    task, towers, _, loader = negatives()
    (experience,) = task.experiences()
    model = Frozen(towers, {task.name: task}, Frozen.Config(cache_mib=cache_mib))
    model.grow(experience)
    return model, task, towers, experience, loader


@pytest.mark.parametrize("cache_mib", [64, 0])
def test_kept_features_are_those_of_the_plain_walk_and_do_not_depend_on_the_batch(cache_mib):
    model, task, towers, experience, loader = frozen_model(cache_mib)
    keys = experience.train[:3]
    batch = loader.load(Request(experience, "train", keys, (0, "augment")))
    plain = Model(towers, {task.name: task}, Model.Config())
    once, again, expected = model.features(batch, Ctx()), model.features(batch, Ctx()), plain.features(batch, Ctx())
    for found in (once, again):
        assert torch.allclose(found.final["visual"], expected.final["visual"], atol=1e-5)
        assert all(
            torch.allclose(a, b, atol=1e-5)
            for a, b in zip(found.stages["visual"], expected.stages["visual"], strict=True)
        )
        assert torch.allclose(found.plain["negative"], expected.plain["negative"], atol=1e-5)
    assert not once.final["visual"].requires_grad
    assert bool(len(model.kept)) == bool(cache_mib)
    fresh, *_ = frozen_model(cache_mib)
    alone = fresh.features(loader.load(Request(experience, "train", keys[2:], (0, "augment"))), Ctx())
    assert torch.equal(alone.final["visual"][0], once.final["visual"][2])
    assert torch.equal(alone.plain["negative"][0], once.plain["negative"][2])


def test_features_are_computed_once_while_there_is_room_for_them(monkeypatch):
    model, _, towers, experience, loader = frozen_model()
    calls = []
    embed = towers["visual"].embed
    monkeypatch.setattr(towers["visual"], "embed", lambda value: calls.append(len(value)) or embed(value))
    batch = loader.load(Request(experience, "train", experience.train[:2]))
    model.features(batch, Ctx())
    model.features(batch, Ctx())
    assert calls == [model.kept.rows], "four frames in one batch of fixed size, once"
    assert len(model.kept) == 4
    model.kept.left = 0
    other = loader.load(Request(experience, "train", experience.train[2:3]))
    model.features(other, Ctx())
    model.features(other, Ctx())
    assert len(calls) == 3, "a full memory computes again"
    model.features(batch, Ctx())
    assert len(calls) == 3, "and forgets nothing"
    assert len(model.kept) == 4


def test_a_frozen_model_can_leave_out_a_final_norm():
    task, towers = toy_task("classes", 1), toy_towers()
    (experience,) = task.experiences()
    loader = Loader({task.name: task}, make_inputs(towers, {"audio": 1}, task.audio_rate, None))
    batch = loader.load(Request(experience, "train", experience.train[:2]))
    found = {}
    for unnormed in ((), ("audio",)):
        model = Frozen(towers, {task.name: task}, Frozen.Config.model_validate({"unnormed": list(unnormed)}))
        model.grow(experience)
        found[unnormed] = model.features(batch, Ctx())
    bare, normed = found[("audio",)], found[()]
    assert torch.equal(bare.final["audio"], bare.stages["audio"][-1])
    assert torch.equal(
        normed.final["audio"], towers["audio"].final(bare.final["audio"].flatten(0, 1)).view_as(bare.final["audio"])
    )
    assert not torch.allclose(normed.final["audio"], bare.final["audio"], atol=1e-3)
    assert torch.equal(normed.final["visual"], bare.final["visual"])
    with pytest.raises(
        ConfigError, match=r"model\.unnormed names \['sound'\], which are no towers; configured: \['audio', 'visual'\]"
    ):
        Frozen(towers, {task.name: task}, Frozen.Config(unnormed=("sound",)))
