"""The hardest users of the core keep its contract: stopped anywhere and resumed they end bit for bit the same."""

import json
import random
from dataclasses import replace

import pytest
import torch
from toys.anchors import AnchorMethod
from toys.users import USERS

from avcl_core.ownership import Owners
from avcl_core.testing import check_model, check_ownership, check_pieces, check_state, toy_task
from avcl_core.testing.toy_run import differences, run_interrupted, run_straight
from avcl_core.training.session_data import SessionData

PHASES = ("before", "train", "after", "evaluate")


@pytest.mark.parametrize("user", USERS)
def test_a_run_stopped_at_a_random_point_and_resumed_ends_the_same(user, folder):
    toy = USERS[user]
    straight, asked = run_straight(toy, folder / "straight")
    check_state(toy, folder / "straight")
    draw = random.Random(user)
    # Every user is stopped in training and in one other phase; over the users every phase has its turn, some with workers.
    other = PHASES[list(USERS).index(user) % len(PHASES)]
    late = [i for i, stop in enumerate(asked) if stop.session > 0 or len(straight.sessions) == 1]
    places = [draw.choice([i for i in late if asked[i].phase == phase]) for phase in dict.fromkeys(("train", other))]
    for at in places:
        workers = 2 if at == places[0] and list(USERS).index(user) % 5 == 0 else 0
        resumed = run_interrupted(toy, folder / f"stopped{at}", at, workers)
        assert differences(straight, resumed, folder / "straight", folder / f"stopped{at}") == [], (asked[at], workers)


@pytest.mark.parametrize("user", [name for name in USERS if "single" not in name])
def test_each_session_changes_only_its_active_owners(user, folder):
    check_ownership(USERS[user], folder)


MODELS = {USERS[user].model: user for user in reversed(USERS)}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_models_keep_the_contract(model):
    toy = USERS[MODELS[model]]

    def fill_anchors(method, stream, loader):
        hooks = AnchorMethod(method.model, toy.tasks, toy.method.Config(), 0)
        for experience in stream.experiences:
            hooks.before(experience, SessionData(loader, experience, 4, lambda: None))

    prepare = fill_anchors if toy.method is AnchorMethod else None
    check_model(toy.model, toy.towers, toy.tasks, toy.model_options, toy.task_id, prepare)


@pytest.mark.parametrize("user", ["ewc", "lwf", "der++", "er"])
def test_micro_batches_add_up_to_the_full_batch(user, folder):
    tasks = {kind: toy_task(kind, 2) for kind in ("tokens", "labels")}
    check_pieces(replace(USERS[user], tasks=tasks), folder)


@pytest.mark.parametrize("user", ["regression", "generated heads", "prompts", "cross experts", "anchor experts"])
def test_toys_learn(user, folder):
    """The toy users learn at all: the training loss falls, or the tests above would compare noise."""
    toy = USERS[user]
    longer = toy.training.model_copy(update={"epochs": 10, "selection": "last", "lr": 2e-2})
    trainer = replace(toy, training=longer).trainer(folder)
    trainer.run()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = [sum(r["loss"].values()) for r in records if r["session"] == 0]
    assert sum(first[-2:]) < 0.95 * sum(first[:2]), first


def test_two_snapshots_of_another_scope_are_method_state_and_not_owned(folder):
    toy = USERS["generated heads"]
    trainer, _ = run_straight(toy, folder)
    state = trainer.method.state()
    assert set(state["generator"]) < {n.removeprefix("hyper.") for n in state["teacher"]}
    assert not [row for row in Owners(trainer.method.model).rows if "teacher" in row or "generator" in row]


def test_key_frames_are_replayed_with_another_number_of_frames(folder):
    trainer, _ = run_straight(USERS["regression"], folder)
    frames = [exemplar.stored["frames"] for exemplar in trainer.method.kept]
    assert len(frames) == 9
    assert {tuple(f.shape) for f in frames} == {(3,)}
    assert all(torch.equal(f, f.sort().values) for f in frames)
