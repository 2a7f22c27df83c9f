"""Single steps: what is refused, what stops a run, what prediction sees, and who may be in train mode."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from toys.regression import Regressor
from toys.users import USERS, pair, seen, tasks

from avcl_core.batch import Batch
from avcl_core.errors import ConfigError, RunError, Stopped
from avcl_core.methods.base import Method
from avcl_core.methods.finetune import Finetune
from avcl_core.methods.joint import Joint
from avcl_core.methods.single import Single
from avcl_core.models.residual_adapters import ResidualAdapters
from avcl_core.ownership import Owners, Snapshot, own, train_mode
from avcl_core.testing import ToyRun, toy_task
from avcl_core.testing.toy_run import Countdown, differences, run_interrupted, run_straight
from avcl_core.training.optimizers import schedule
from avcl_core.walk import Ctx

PLAIN = ToyRun(pair, ResidualAdapters, Finetune, tasks(labels=1, classes=1))


def in_pieces(toy):
    return replace(toy, training=toy.training.model_copy(update={"micro_batch": 2}))


@pytest.mark.parametrize("user", ["regression", "cross experts", "prompts"])
def test_micro_batches_are_refused_for_a_loss_over_the_whole_batch(user, folder):
    with pytest.raises(ConfigError, match=r"over the whole batch; leave training\.micro_batch empty"):
        in_pieces(USERS[user]).trainer(folder).run()


def test_micro_batches_are_refused_where_batch_norm_learns(folder):
    with pytest.raises(ConfigError, match=r"batch norm towers\.visual.* learns statistics of the whole batch"):
        in_pieces(ToyRun(seen, Regressor, Finetune, tasks(classes=1))).trainer(folder).run()


class Poisoned(Method):
    """The loss becomes NaN in the third step."""

    steps = 0

    def objective(self, outputs, batch, ctx, prefix=""):
        parts = super().objective(outputs, batch, ctx, prefix)
        Poisoned.steps += 1
        bad = torch.tensor(float("nan")) if Poisoned.steps == 3 else torch.tensor(0.0)
        return {**parts, "poison": sum(parts.values()) * 0 + bad}


def test_a_loss_that_is_not_finite_stops_before_the_step_with_keys_and_parts(folder):
    Poisoned.steps = 0
    trainer = replace(PLAIN, method=Poisoned).trainer(folder)
    kept = {}
    original = trainer.commit

    def commit(label=""):
        kept.update(Owners(trainer.method.model).state())
        original(label)

    trainer.commit = commit
    with pytest.raises(RunError) as failure:
        trainer.run()
    message = str(failure.value)
    assert "'poison': nan" in message
    assert "'nll': " in message
    assert "labels0-train" in message
    now = Owners(trainer.method.model).state()
    # Two steps end epoch 0, which commits; the third changed nothing.
    assert trainer.at.epoch == 1
    assert all(torch.equal(value, now[name]) for name, value in kept.items())


def test_a_gradient_that_is_not_finite_stops_too(folder):
    class Explodes(Method):
        def objective(self, outputs, batch, ctx, prefix=""):
            parts = super().objective(outputs, batch, ctx, prefix)
            zero = sum(parts.values()) * 0
            return {**parts, "root": zero.sqrt()}  # finite, its derivative is not

    trainer = replace(PLAIN, method=Explodes).trainer(folder)
    with pytest.raises(RunError, match="gradient norm nan"):
        trainer.run()
    assert trainer.at.step == 0
    assert all(bool(value.isfinite().all()) for value in Owners(trainer.method.model).state().values())


@pytest.mark.parametrize("user", ["anchor experts", "prompts"])
def test_prediction_sees_no_targets_and_no_hidden_experience(user, folder):
    toy, seen_batches = USERS[user], []

    class Spy(toy.method):
        def predict(self, batch, trace=None, without=frozenset(), slots=None):
            seen_batches.append(batch)
            return super().predict(batch, trace, without, slots)

    replace(toy, method=Spy).trainer(folder).run()
    hidden = toy.task_id == "hidden"
    assert len(seen_batches) > 10
    assert all(not batch.targets and not batch.stored for batch in seen_batches)
    assert all((batch.experience is None) == hidden for batch in seen_batches)


class Restless(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(2), nn.Dropout(0.5)


def test_only_modules_of_learning_owners_are_in_train_mode():
    model = nn.Module()
    model.mine, model.theirs, model.frozen = own(Restless(), "task:a"), own(Restless(), "task:b"), Restless()
    model.theirs.inner = own(Restless(), "shared")
    model.frozen.requires_grad_(False)
    train_mode(model, ("task:a", "shared"))
    awake = {name for name, module in model.named_modules() if module.training}
    assert {"mine", "mine.norm", "mine.drop", "theirs.inner.norm", "theirs.inner.drop"} <= awake
    assert not {"theirs", "theirs.norm", "theirs.drop", "frozen.norm"} & awake


def test_a_teacher_answers_in_eval_mode_with_its_own_tensors_and_leaves_every_mode_as_it_was():
    toy = ToyRun(seen, Regressor, Finetune, tasks(mask=1, classes=1))
    method = toy.build()
    old, new = toy.stream.experiences
    for experience in (old, new):
        method.model.grow(experience)
    (batch,) = toy.loader().batches(old, "train", 3, old.train[:3])
    method.model.eval()
    expected = method.model(batch, Ctx())["mask"].detach()
    train_mode(method.model, method.active(new))
    modes = {name: module.training for name, module in method.model.named_modules()}
    assert modes["towers.visual.net.bn1"]
    assert not modes["heads.mask.norm"]
    teacher = Snapshot(Owners(method.model).state())
    with torch.no_grad():
        for row in Owners(method.model).rows.values():
            if row.tensor.is_floating_point():
                row.tensor.mul_(1.5)
    assert torch.equal(teacher.call(method.model, batch, Ctx())["mask"], expected)
    assert torch.equal(teacher.call(method.model, batch, Ctx())["mask"], expected)
    assert {name: module.training for name, module in method.model.named_modules()} == modes
    assert not torch.equal(method.model(batch, Ctx())["mask"].detach(), expected)


class Observes(Method):
    """Notes, in each hook, who learns, which modules are in train mode, and random numbers."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.notes = []

    def note(self, data):
        list(data.batches())
        model = self.model
        learns = [name for name, p in model.named_parameters() if p.requires_grad]
        awake = [name for name, module in model.named_modules() if module.training]
        self.notes.append({"learns": learns, "awake": awake, "drawn": torch.rand(2)})

    def before(self, experience, data):
        self.note(data)

    def after(self, experience, data):
        self.note(data)

    def state(self):
        return {"notes": self.notes}

    def load(self, state):
        self.notes = list(state["notes"])


@pytest.mark.parametrize("phase", ["before", "after"])
def test_hooks_see_the_same_model_after_a_resume(phase, folder):
    toy = replace(PLAIN, method=Observes)
    straight, asked = run_straight(toy, folder / "straight")
    assert all(not note["awake"] for note in straight.method.notes)
    assert not any(name.startswith("heads.labels") for name in straight.method.notes[-1]["learns"])
    # The last question before a phase is the one after the commit that begins it.
    at = next(stop for stop in asked if (stop.phase, stop.session) == (phase, 1))
    resumed = run_interrupted(toy, folder / "stopped", at, workers=2)
    assert differences(straight, resumed, folder / "straight", folder / "stopped") == []


@pytest.mark.parametrize("phase", ["before", "after"])
def test_a_hook_that_was_committed_is_not_run_again(phase, folder):
    class Together(Observes, Joint):
        pass

    toy = replace(PLAIN, method=Together)
    straight, asked = run_straight(toy, folder / "straight")
    assert len(straight.method.notes) == 4
    at = [stop for stop in asked if stop.phase == phase]
    for number in (0, -1):
        resumed = run_interrupted(toy, folder / f"stopped{number}", at[number])
        assert differences(straight, resumed, folder / "straight", folder / f"stopped{number}") == []


def test_a_fresh_session_learns_like_a_run_of_its_own(folder):
    toy = replace(PLAIN, method=Single)
    both = toy.trainer(folder / "both")
    both.run()
    alone = replace(toy, order=("classes0",)).trainer(folder / "alone")
    alone.run()
    assert both.matrix.cell("classes0", "classes0") == alone.matrix.cell("classes0", "classes0")
    assert both.grown == {"classes0"}
    one, other = (Owners(trainer.method.model).state() for trainer in (both, alone))
    # Draws depend on the number of the session; the tensors that exist do not.
    assert one.keys() == other.keys()


def test_a_live_tensor_without_an_optimiser_group_is_refused(folder):
    from avcl_core.methods.base import Group

    class Forgets(Method):
        def optimizers(self, session):
            return {"main": (Group(("shared",)),)}

    with pytest.raises(RunError, match=r"Forgets\.optimizers leaves out .*\(head:labels\)"):
        replace(PLAIN, method=Forgets).trainer(folder).run()


def test_a_change_of_a_frozen_tensor_is_named(folder):
    class Drifts(Method):
        def after_backward(self, update):
            with torch.no_grad():
                self.model.towers["audio"].encoder.norm.weight.add_(1e-6)

    with pytest.raises(RunError, match=r"frozen tensors changed, first towers\.audio.*norm\.weight"):
        replace(PLAIN, method=Drifts).trainer(folder).run()


HEADS = r"changed whose owners do not learn now: heads\.labels\.\S+ \(head:labels\)"


class Quarrels(Method):
    """Changes the head of the first task while, or right after, the second is learnt."""

    where = "after_backward"

    def quarrel(self, where):
        heads = Owners(self.model).match(("head:labels",)).values()
        if where == self.where and not any(p.requires_grad for p in heads):
            with torch.no_grad():
                next(iter(heads)).view(-1)[0] += 1e-6

    def before(self, experience, data):
        self.quarrel("before")

    def after_backward(self, update):
        self.quarrel("after_backward")

    def after(self, experience, data):
        self.quarrel("after")


@pytest.mark.parametrize(("where", "when"), [("after_backward", "training"), ("after", r"after\(\)")])
def test_a_change_of_what_others_own_is_named(where, when, folder):
    method = type("Quarrels", (Quarrels,), {"where": where})
    with pytest.raises(RunError, match=rf"classes0: {when}: 1 tensors {HEADS}"):
        replace(PLAIN, method=method).trainer(folder).run()


def test_a_change_of_what_others_own_before_training_is_the_methods_own_business(folder):
    method = type("Quarrels", (Quarrels,), {"where": "before"})
    assert replace(PLAIN, method=method).trainer(folder).run()


class Stirs(Method):
    """Every module is in train mode in every step, so that statistics move which do not learn."""

    def step(self, current, replayed):
        self.model.heads.train()
        with torch.no_grad():
            for row in Owners(self.model).rows.values():
                if row.kind == "buffer" and row.owner != f"head:{current.task}" and row.name.endswith("running_mean"):
                    row.tensor.add_(1e-6)
        yield from super().step(current, replayed)


def test_a_change_of_a_buffer_that_others_own_is_named(folder):
    toy = ToyRun(seen, Regressor, Stirs, tasks(mask=1, classes=1))
    with pytest.raises(RunError, match=r"running_mean \(head:mask\)"):
        toy.trainer(folder).run()


def test_a_change_before_a_stop_is_found_after_it(folder):
    """Digests are those of the beginning of the session, not of the resume."""
    method = type("Quarrels", (Quarrels,), {"where": "after_backward"})
    toy = replace(PLAIN, method=method)
    _, asked = run_straight(PLAIN, folder / "straight")
    at = [i for i, stop in enumerate(asked) if (stop.phase, stop.session) == ("train", 1)][-1]
    with pytest.raises(Stopped):
        toy.trainer(folder / "stopped", Countdown(at)).run()
    resumed = PLAIN.trainer(folder / "stopped")
    resumed.resume()
    assert resumed.at.phase == "train"
    assert resumed.at.epoch or resumed.at.step
    with pytest.raises(RunError, match=HEADS):
        resumed.run()


def test_the_first_hook_can_be_stopped_and_resumed(folder):
    class Long(Method):
        def before(self, experience, data):
            list(data.batches())

    toy = replace(PLAIN, method=Long)
    _, asked = run_straight(toy, folder / "straight")
    assert (asked[0].phase, asked[0].session) == ("before", 0)
    resumed = run_interrupted(toy, folder / "stopped", asked[0])
    assert differences(toy_trainer(toy, folder / "straight"), resumed, folder / "straight", folder / "stopped") == []


def toy_trainer(toy, folder):
    trainer = toy.trainer(folder)
    trainer.restore()
    return trainer


def test_a_split_without_samples_is_refused_before_any_work(folder):
    empty = replace(PLAIN, tasks={"labels": toy_task("labels", samples=(4, 0, 2))})
    with pytest.raises(ConfigError, match="experience labels0 has no val samples"):
        empty.trainer(folder)
    last = empty.training.model_copy(update={"selection": "last", "epochs": 1})
    replace(empty, training=last).trainer(folder).run()


def test_a_tasks_own_selection_decides_which_splits_it_needs(folder):
    empty = replace(PLAIN, tasks={"labels": toy_task("labels", samples=(4, 0, 2)), "classes": toy_task("classes", 1)})
    own = empty.training.model_copy(update={"epochs": 1, "tasks": {"labels": {"selection": "last"}}})
    replace(empty, training=own).trainer(folder / "last").run()
    other = empty.training.model_copy(update={"selection": "last", "tasks": {"labels": {"selection": "best"}}})
    with pytest.raises(ConfigError, match=r"labels0 has no val samples.*training\.tasks\.labels\.selection"):
        replace(empty, training=other).trainer(folder / "best")


def test_hooks_and_evaluation_take_the_tasks_own_batch(folder):
    sizes = {}

    class Sized(Observes):
        def predict(self, batch, trace=None, without=frozenset(), slots=None):
            sizes.setdefault(batch.task, set()).add(len(batch))
            return super().predict(batch, trace, without, slots)

    training = PLAIN.training.model_copy(update={"epochs": 1, "tasks": {"labels": {"evaluation_batch": 1}}})
    trainer = replace(PLAIN, method=Sized, training=training).trainer(folder)
    hooks = {e.task: next(iter(trainer._data(e).batches())) for e in trainer.stream.experiences}
    trainer.run()
    assert sizes["labels"] == {1}
    assert max(sizes["classes"]) > 1
    assert {task: len(batch) for task, batch in hooks.items()} == {"labels": 1, "classes": 3}


def test_best_epoch_is_restored_before_the_passes_after_training(folder):
    toy = replace(PLAIN, tasks=tasks(classes=1))
    trainer = replace(toy, training=toy.training.model_copy(update={"epochs": 4, "lr": 5e-2})).trainer(folder)
    scores, kept = [], []
    select = trainer._select

    def watched(session, method, epoch):
        select(session, method, epoch)
        kept.append(Owners(method.model).state())

    trainer._select = watched
    trainer.run()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [record["skill"] for record in records if "skill" in record]
    chosen = kept[scores.index(max(scores))]
    assert [r["selected"] for r in records if "skill" in r].count(True) >= 1
    now = Owners(trainer.method.model).state()
    assert all(torch.equal(value, now[name]) for name, value in chosen.items())


def test_question_is_blind():
    batch = Batch("t", ("a",), {"x": torch.ones(1)}, {"y": torch.ones(1)}, experience="e", stored={"z": torch.ones(1)})
    assert (batch.question(True).targets, batch.question(True).stored, batch.question(True).experience) == (
        {},
        {},
        None,
    )
    assert batch.question(False).experience == "e"


def test_training_samples_are_augmented_and_hooks_and_tests_see_them_plain(folder):
    requests = []
    trainer = PLAIN.trainer(folder)
    read = trainer.loader.read

    def spied(request):
        requests.append((request.split, request.augment))
        return read(request)

    trainer.loader.read = spied
    trainer.run()
    draws = [augment for split, augment in requests if split == "train"]
    assert None not in draws
    assert len(set(draws)) == 4  # sessions times epochs
    assert {augment for split, augment in requests if split != "train"} == {None}


def watched_steps(toy, folder):
    """Run and return (learning rate, gradient norm) of every optimiser step."""
    trainer, found = toy.trainer(folder), []
    prepare = trainer._prepare_training

    def prepared(session, method):
        result = prepare(session, method)
        optimizer = trainer.optimizers["main"]
        step = optimizer.step

        def spied(index):
            norm = float(nn.utils.get_total_norm([p.grad for p in optimizer.names.values() if p.grad is not None]))
            step(index)
            found.append((optimizer.inner.param_groups[0]["lr"], norm))

        optimizer.step = spied
        return result

    trainer._prepare_training = prepared
    trainer.run()
    return found


def test_the_learning_rate_follows_the_schedule_over_the_whole_session(folder):
    options = PLAIN.training
    rates = [rate for rate, _ in watched_steps(replace(PLAIN, tasks=tasks(classes=1)), folder)]
    assert rates == pytest.approx([options.lr * schedule(options, index, [2, 2]) for index in range(4)])


def test_gradients_are_clipped_to_the_norm(folder):
    training = PLAIN.training.model_copy(update={"clip": 0.01, "epochs": 1})
    norms = [norm for _, norm in watched_steps(replace(PLAIN, training=training), folder)]
    assert norms == pytest.approx([0.01] * 4, rel=1e-4)


def test_logged_steps_have_rates_and_norms_before_clipping(folder):
    training = PLAIN.training.model_copy(update={"clip": None, "log_every": 2})
    toy = replace(PLAIN, tasks=tasks(classes=1), training=training)
    found = watched_steps(toy, folder)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [record for record in records if "loss" in record]
    assert len(logged) == 2  # the first step of each epoch of two
    for record, (rate, norm) in zip(logged, found[::2], strict=True):
        assert record["lr"] == {"main": [rate]}
        assert record["gradient_norm"] == {"main": pytest.approx(norm)}
    clipped = replace(toy, training=training.model_copy(update={"clip": 1e-3})).trainer(folder / "clipped")
    clipped.run()
    first = json.loads((folder / "clipped/metrics.jsonl").read_text().splitlines()[0])
    assert first["gradient_norm"] == logged[0]["gradient_norm"]


def test_each_optimiser_of_a_step_is_logged(folder):
    USERS["generated heads"].trainer(folder).run()
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["lr"].keys() == first["gradient_norm"].keys() == {"main", "prototypes"}
    assert len(first["lr"]["main"]) == 2


def test_an_update_changes_only_the_owners_it_names(folder):
    """A live tensor that the second update does not name keeps the first update's values."""
    toy = USERS["generated heads"]
    trainer = toy.trainer(folder)
    seen_states = []

    class Watched(toy.method):
        def after_backward(self, update):
            seen_states.append((update.optimizer, Owners(self.model).state(("shared",))))
            names = {n for n, p in self.model.named_parameters() if p.grad is not None}
            if update.optimizer == "prototypes":
                assert names <= set(Owners(self.model).match(("task:*",)))

    trainer.build = replace(toy, method=Watched).build
    trainer.run()
    assert {name for name, _ in seen_states} == {"main", "prototypes"}
