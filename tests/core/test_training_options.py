"""Schedules and patience: what the learning rate is at a step, when a session ends early, which options belong together."""

import json

import pytest
from pydantic import ValidationError

from avcl_core.config.run import TowerOptions
from avcl_core.methods.finetune import Finetune
from avcl_core.models.frozen import Frozen
from avcl_core.testing import toy_task
from avcl_core.testing.toy_run import ToyRun, differences, run_interrupted, run_straight
from avcl_core.testing.toy_towers import clip
from avcl_core.training.optimizers import schedule
from avcl_core.training.options import TrainingOptions
from avcl_core.training.position import Best


def test_steps_fall_after_every_so_many_epochs():
    options = TrainingOptions(epochs=6, schedule="step", decay=0.1, decay_every=2, warmup=0.0)
    lengths = [5] * 6  # five optimiser steps an epoch
    factors = [schedule(options, index, lengths) for index in range(30)]
    assert factors == pytest.approx([1.0] * 10 + [0.1] * 10 + [0.01] * 10)


@pytest.mark.parametrize(
    "given",
    [
        {"schedule": "step"},
        {"schedule": "step", "decay": 0.5},
        {"schedule": "cosine", "decay": 0.5},
        {"patience": 3, "selection": "last"},
        {"schedule": "constant", "lr_min": 1e-6},
        {"schedule": "constant", "schedule_by": "epoch"},
        {"schedule": "step", "decay": 0.5, "decay_every": 1, "schedule_by": "epoch"},
        {"lr": 1e-3, "lr_min": 2e-3},
    ],
)
def test_options_that_do_not_belong_together_are_refused(given):
    with pytest.raises(ValidationError, match=r"needs|takes no|is above lr"):
        TrainingOptions(**given)


@pytest.mark.parametrize(
    ("best", "epoch", "patience", "over"),
    [(0, 1, 1, False), (0, 2, 1, True), (3, 5, 2, False), (3, 6, 2, True), (-1, 0, 1, False), (0, 9, None, False)],
)
def test_patience_counts_epochs_since_the_best(best, epoch, patience, over):
    assert Best(0.0, best).exhausted(epoch, patience) is over


def impatient():
    training = TrainingOptions(epochs=9, batch_size=4, lr=1e-9, evaluation_batch=3, patience=2)
    return ToyRun(lambda: {"visual": clip()}, Frozen, Finetune, {"classes": toy_task("classes", 1)}, training=training)


def test_a_session_without_progress_ends_early_and_resumes_to_the_same_end(tmp_path):
    straight, asked = run_straight(impatient(), tmp_path / "straight")
    epochs = {line for line in (tmp_path / "straight/metrics.jsonl").read_text().splitlines() if "validation" in line}
    assert len(epochs) == 3, "the first epoch is best; two more are allowed"
    assert straight.at.phase == "done"
    training = [stop for stop in asked if stop.phase == "train"]
    for number in (1, -1):
        folder = tmp_path / f"stopped{number}"
        resumed = run_interrupted(impatient(), folder, training[number])
        assert differences(straight, resumed, tmp_path / "straight", folder) == []


@pytest.mark.parametrize("given", [{}, {"checkpoint": "weights.pth", "random": True}])
def test_a_full_size_tower_says_where_its_weights_come_from(given):
    with pytest.raises(ValidationError, match="needs either checkpoint: FILE"):
        TowerOptions(name="swin_v2", size="full", **given)
    with pytest.raises(ValidationError, match="random: true is for size full"):
        TowerOptions(name="swin_v2", random=True)
    assert TowerOptions(name="swin_v2", size="full", random=True).checkpoint is None


def test_a_task_may_be_trained_differently_from_the_others():
    options = TrainingOptions(epochs=8, lr=0.1, tasks={"avqa": {"epochs": 3}, "ave": {"patience": 2}})
    assert (options.of({"avqa"}).epochs, options.of({"avqa"}).lr) == (3, 0.1)
    assert options.of({"ave"}).patience == 2
    assert options.of({"avs"}) is options
    assert options.of({"ave", "avqa"}) is options, (
        "several tasks together are trained as the configuration says in general"
    )
    with pytest.raises(ValidationError, match=r"tasks\.ave\.epoch is unknown.*epochs"):
        TrainingOptions(tasks={"ave": {"epoch": 3}})
    with pytest.raises(ValidationError, match="needs decay"):
        TrainingOptions(tasks={"ave": {"schedule": "step"}})


def test_sessions_are_trained_with_their_tasks_own_options(tmp_path):
    training = TrainingOptions(epochs=2, batch_size=4, lr=1e-2, evaluation_batch=3, tasks={"labels": {"epochs": 1}})
    tasks = {"classes": toy_task("classes", 1), "labels": toy_task("labels", 1)}
    toy = ToyRun(lambda: {"visual": clip()}, Frozen, Finetune, tasks, training=training)
    straight, asked = run_straight(toy, tmp_path / "straight")
    lines = [json.loads(line) for line in (tmp_path / "straight/metrics.jsonl").read_text().splitlines()]
    epochs = [(line["session"], line["epoch"]) for line in lines if "validation" in line]
    assert epochs == [(0, 0), (0, 1), (1, 0)]
    middle = [stop for stop in asked if (stop.phase, stop.session) == ("train", 1)][1]
    resumed = run_interrupted(toy, tmp_path / "stopped", middle)
    assert differences(straight, resumed, tmp_path / "straight", tmp_path / "stopped") == []
