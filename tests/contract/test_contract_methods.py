"""Methods over the hardest models: what they promise beyond stopping and resuming, which every user is tested for."""

import gzip
import json

import pytest
import torch
from toys.users import USERS

from avcl_core.ownership import Owners
from avcl_core.testing import check_task, toy_task, toy_towers
from avcl_core.testing.toy_run import run_straight


def predictions(folder, test):
    found = sorted(folder.glob(f"predictions/*/{test}.jsonl.gz"))
    return [gzip.decompress(path.read_bytes()) for path in found]


def logged(folder, session):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in records if r["session"] == session and "loss" in r]


def test_snapshots_of_shared_parts_forget_nothing_where_each_experience_has_its_own_head(folder):
    trainer, _ = run_straight(USERS["snapshot"], folder)
    found = predictions(folder, "labels0")
    assert len(found) == 1  # the last experience
    shared = trainer.method.state()["kept"]
    assert set(shared) == {"classes0", "classes1", "labels0"}
    assert any(not torch.equal(shared["classes0"][name], value) for name, value in shared["classes1"].items())
    before, after = predictions(folder, "classes1")
    assert before == after


def test_a_trained_tower_has_averages_of_its_parameters_and_its_statistics_stay_the_latest(folder):
    trainer, _ = run_straight(USERS["ema"], folder)
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
def test_what_a_method_adds_is_part_of_the_loss_and_not_nothing(user, session, part, folder):
    run_straight(USERS[user], folder)
    values = [loss[part] for loss in logged(folder, session) if part in loss]
    assert values
    assert max(values) > 0, "never anything but zero"


def test_the_input_that_a_head_reads_must_be_declared():
    task = toy_task("tokens")
    task.needs = ()
    with pytest.raises(AssertionError, match="the head reads the input 'question'; name it in needs"):
        check_task(task, toy_towers())
