"""The hardest users of the core keep its contract: stopped anywhere they end bit for bit the same; methods keep their promises."""

import gzip
import json
import random
from dataclasses import replace

import pytest
import torch
from toys.anchors import AnchorMethod
from toys.users import USERS, tasks

from avcl_core.ownership import Owners
from avcl_core.testing import check_model, check_ownership, check_pieces, check_state
from avcl_core.testing.toy_run import differences, run_interrupted, run_straight
from avcl_core.training.session_data import SessionData

PHASES = ("before", "train", "after", "evaluate")


@pytest.fixture(scope="module")
def straight(memory):
    """Return the trainer, the stops and the folder of a user's uninterrupted run, made when first asked for; not to be changed."""
    made = {}

    def run(user):
        if user not in made:
            made[user] = (*check_ownership(USERS[user], memory / user), memory / user)
        return made[user]

    return run


@pytest.mark.parametrize("user", USERS)
def test_a_run_stopped_at_random_points_and_resumed_ends_the_same(user, straight, folder):
    trainer, asked, place = straight(user)
    check_state(USERS[user], place)
    draw = random.Random(user)
    # Every user is stopped in training and in one other phase; over the users every phase has its turn, some with workers.
    index = list(USERS).index(user)
    late = [i for i, stop in enumerate(asked) if stop.session > 0 or len(trainer.sessions) == 1]
    phases = dict.fromkeys(("train", PHASES[index % len(PHASES)]))
    drawn = sorted(draw.choice([i for i in late if asked[i].phase == phase]) for phase in phases)
    stops, workers = [asked[i] for i in drawn], 0 if index % 5 else 2
    resumed = run_interrupted(USERS[user], folder, *stops, workers=workers)
    assert differences(trainer, resumed, place, folder) == [], (stops, workers)


def test_records_and_results_do_not_depend_on_the_number_of_workers(straight, folder):
    alone, _, place = straight("ewc")
    helped, _ = run_straight(USERS["ewc"], folder, workers=2)
    assert differences(alone, helped, place, folder) == []


@pytest.mark.parametrize("user", [name for name in USERS if "single" not in name])
def test_each_session_changes_only_its_active_owners(user, straight):
    """The trainer refuses any other change (test_contract_broken.py has one)."""
    trainer, _, _ = straight(user)
    assert trainer.at.phase == "done"


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
    check_pieces(replace(USERS[user], tasks=tasks(tokens=2, labels=1)), folder)


@pytest.mark.parametrize("user", ["regression", "generated heads", "prompts", "cross experts", "anchor experts"])
def test_toys_learn(user, folder):
    """The toy users learn at all: the training loss of the first session falls, or the tests above would compare noise."""
    toy = USERS[user]
    longer = toy.training.model_copy(update={"epochs": 10, "selection": "last", "lr": 2e-2})
    replace(toy, training=longer, order=(toy.stream.experiences[0].name,)).trainer(folder).run()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = [sum(r["loss"].values()) for r in records]
    assert sum(first[-2:]) < 0.95 * sum(first[:2]), first


def test_two_snapshots_of_another_scope_are_method_state_and_not_owned(straight):
    trainer, _, _ = straight("generated heads")
    state = trainer.method.state()
    assert set(state["generator"]) < {n.removeprefix("hyper.") for n in state["teacher"]}
    assert not [row for row in Owners(trainer.method.model).rows if "teacher" in row or "generator" in row]


def test_key_frames_are_replayed_with_another_number_of_frames(straight):
    trainer, _, _ = straight("regression")
    frames = [exemplar.stored["frames"] for exemplar in trainer.method.kept]
    assert len(frames) == 9
    assert {tuple(f.shape) for f in frames} == {(3,)}
    assert all(torch.equal(f, f.sort().values) for f in frames)


# ---------------------------------------------------------------- what methods promise beyond that
def predictions(folder, test):
    found = sorted(folder.glob(f"predictions/*/{test}.jsonl.gz"))
    return [gzip.decompress(path.read_bytes()) for path in found]


def logged(folder, session):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in records if r["session"] == session and "loss" in r]


def test_snapshots_of_shared_parts_forget_nothing_where_each_experience_has_its_own_head(straight):
    trainer, _, folder = straight("snapshot")
    found = predictions(folder, "labels0")
    assert len(found) == 1  # the last experience
    shared = trainer.method.state()["kept"]
    assert set(shared) == {"classes0", "classes1", "labels0"}
    assert any(not torch.equal(shared["classes0"][name], value) for name, value in shared["classes1"].items())
    before, after = predictions(folder, "classes1")
    assert before == after


def test_a_trained_tower_has_averages_of_its_parameters_and_its_statistics_stay_the_latest(straight):
    trainer, _, _ = straight("ema")
    owners = Owners(trainer.method.model)
    averages = {name for name, row in owners.rows.items() if row.owner == "shared:average"}
    assert len(averages) == len(owners.match(("shared",))) > 5
    assert not any("running" in name for name in averages)


@pytest.mark.parametrize(
    ("user", "session", "part"),
    [
        ("ewc", 2, "ewc:value0"),
        ("ewc", 2, "ewc:tokens0"),
        ("lwf", 1, "lwf:classes0:logits"),
        ("lwf", 3, "lwf:tokens0:logits"),
        ("lwf, prompts", 1, "lwf:mask0:mask"),
        ("der++", 2, "labels0:dark"),
        ("der++, trained tower", 1, "mask0:dark"),
        ("l2sp", 1, "l2sp"),
    ],
)
def test_what_a_method_adds_is_part_of_the_loss_and_not_nothing(user, session, part, straight):
    _, _, folder = straight(user)
    values = [loss[part] for loss in logged(folder, session) if part in loss]
    assert values
    assert max(values) > 0, "never anything but zero"
