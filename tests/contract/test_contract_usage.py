"""Usage statistics of a whole run: told at tests alone, stored beside the results, the same bytes after a stop."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys.cross_experts import CrossExperts
from toys.users import USERS, tasks

from avcl_core.collective import Collective
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.evaluation.usage import UsageCounter
from avcl_core.evaluation.usage_file import usage_file
from avcl_core.methods.finetune import Finetune
from avcl_core.running import launch
from avcl_core.running.folder import RunFolder
from avcl_core.running.tested import write_evaluation
from avcl_core.testing.toy_run import SHORT, ToyRun, differences, run_interrupted, run_straight
from avcl_core.testing.toy_towers import toy_towers
from avcl_core.trace import Trace

ONE = SHORT.model_copy(update={"epochs": 1})


class Watched(Finetune):
    """Remembers which predictions had a listener."""

    heard: list  # (samples, whether a trace was given)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.heard = []

    def predict(self, batch, trace=None, without=frozenset(), slots=None):
        if not without:  # an ablation tells nothing
            self.heard.append((batch.keys, trace is not None))
        return super().predict(batch, trace, without, slots)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two tasks, its trainer and its folder."""
    folder = tmp_path_factory.mktemp("usage")
    toy = ToyRun(toy_towers, CrossExperts, Watched, tasks(classes=1, labels=1), training=ONE)
    trainer, asked = run_straight(toy, folder)
    return toy, trainer, folder, asked


def test_every_result_has_an_entry(finished):
    _, _, folder, _ = finished
    entries = json.loads(usage_file(folder).read_text())
    assert {row: list(tests) for row, tests in entries.items()} == {
        "classes0": ["classes0"],
        "labels0": ["classes0", "labels0"],
    }
    sites = entries["labels0"]["classes0"]["sites"]
    assert set(sites) == {f"{t} {p} {s}" for t in ("visual", "audio") for p in (0, 1) for s in ("attn", "mlp")}
    assert [e["place"] for e in entries["labels0"]["classes0"]["agreement"]] == ["0 attn", "0 mlp", "1 attn", "1 mlp"]
    assert sum(g["samples"] for g in entries["labels0"]["classes0"]["groups"].values()) == 4
    assert entries["labels0"]["labels0"]["groups"] == {}


def test_the_entry_is_what_the_final_model_tells(finished):
    toy, trainer, folder, _ = finished
    experience = toy.stream.experience("labels0")
    gates = []
    for batch in trainer.loader.batches(experience, "test", 1):
        trace = Trace()
        trainer.method.predict(batch.question(False), trace)
        gates.append(trace.observed["audio 1 mlp"]["gates"].numpy())
    entry = json.loads(usage_file(folder).read_text())["labels0"]["labels0"]["sites"]["audio 1 mlp"]
    assert entry["rows"] == 8  # four samples of two frames
    assert entry["gates"] == pytest.approx(np.concatenate(gates).mean(0).tolist(), rel=1e-4)
    assert entry["constants"]["gate"] == pytest.approx(
        [e.gate.item() for e in trainer.method.model.parts["audio_1_mlp_add"].experts], rel=1e-5
    )


def test_groups_hold_the_samples_that_the_task_puts_there(finished):
    toy, trainer, folder, _ = finished
    experience, found = toy.stream.experiences[0], {}
    for batch in trainer.loader.batches(experience, "test", 1):
        trace = Trace()
        trainer.method.predict(batch.question(False), trace)
        gates = torch.cat([v["gates"] for site, v in trace.observed.items() if site.startswith("visual")])
        found.setdefault(f"class {int(batch.targets['class'])}", []).append(gates)
    groups = json.loads(usage_file(folder).read_text())["labels0"]["classes0"]["groups"]
    assert len(groups) > 1
    assert {name: g["samples"] for name, g in groups.items()} == {name: len(rows) for name, rows in found.items()}
    for name, rows in found.items():
        assert groups[name]["total"]["visual"]["gates"] == pytest.approx(torch.cat(rows).mean(0).tolist(), rel=1e-4)


def test_the_last_row_has_the_model_without_its_adapters_as_an_ablation(finished):
    _, _, folder, _ = finished
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {(row["row"], *row["ablations"]) for row in rows} == {("classes0",), ("labels0", "without adapters")}
    assert all(row["primary"] in metrics for row in rows for metrics in row["ablations"].values())
    assert not any("without" in name for row in rows for name in row["controls"])


def test_nobody_listens_but_at_tests(finished):
    toy, trainer, _, _ = finished
    heard = trainer.method.heard
    assert heard
    assert {any("-test" in key for key in keys) for keys, traced in heard if traced} == {True}
    assert all(traced for keys, traced in heard if any("-test" in key for key in keys))
    assert any(not traced for _, traced in heard)  # validation selects without
    assert toy.build().context(next(trainer.loader.batches(toy.stream.experiences[0], "train", 2)), True).trace is None


def test_listening_changes_no_prediction(finished):
    toy, trainer, _, _ = finished
    batch = next(trainer.loader.batches(toy.stream.experiences[0], "test", 4)).question(False)
    with_trace, without = trainer.method.predict(batch, Trace()), trainer.method.predict(batch)
    assert all(torch.equal(value, without[name]) for name, value in with_trace.items())


def test_a_stop_between_tests_leaves_the_same_bytes(finished, folder):
    toy, trainer, straight, asked = finished
    at = [stop for stop in asked if stop.phase == "evaluate"]
    assert len(at) >= 3
    for number in (0, -1):
        other = run_interrupted(toy, folder / str(number), at[number])
        assert differences(trainer, other, straight, folder / str(number)) == []
        assert usage_file(folder / str(number)).read_bytes() == usage_file(straight).read_bytes()


def test_a_model_that_tells_nothing_leaves_nothing(folder):
    toy = replace(USERS["er"], tasks=tasks(labels=1), training=ONE)
    run_straight(toy, folder)
    assert (folder / "results.jsonl").is_file()
    assert not usage_file(folder).exists()


def test_statistics_of_results_after_the_commit_are_dropped(folder):
    counter = UsageCounter({"k": ()})
    trace = Trace()
    trace.put("audio 0", "gates", torch.tensor([[0.5, 0.5]]))
    counter.add(trace, ("k",))
    evaluation = Evaluation({"score": 1.0}, {}, {}, (), counter.usage(Collective()))
    run = RunFolder(folder)
    run.result({"row": "one", "test": "t"}, evaluation, dict)
    committed, before = run.offsets(), usage_file(folder).read_bytes()
    run.result({"row": "two", "test": "t"}, evaluation, dict)
    run.rewind(committed)
    assert usage_file(folder).read_bytes() == before


def test_an_evaluation_has_its_own_statistics_and_none_of_an_earlier_one(finished, folder):
    toy, trainer, _, _ = finished
    experience, task = toy.stream.experiences[0], toy.tasks["classes"]
    evaluation = trainer.evaluator.evaluate(trainer.method, task, experience, "test")
    first = write_evaluation(folder, "v", {"a": launch.Tested(task, evaluation, None)}, lambda line: None)
    assert json.loads(usage_file(first).read_text()) == {"evaluation": {"a": evaluation.usage}}
    write_evaluation(folder, "v", {"b": launch.Tested(task, evaluation, None)}, lambda line: None)
    assert list(json.loads(usage_file(first).read_text())["evaluation"]) == ["b"]
    write_evaluation(folder, "v", {"b": launch.Tested(task, replace(evaluation, usage=None), None)}, lambda line: None)
    assert not usage_file(first).exists()
