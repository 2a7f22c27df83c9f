"""AVQACL's growing answer list and its method on a world of a few clips: what grows, what is frozen, what is remembered and reported."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import shared_backbones
from avcl_avqa import ClosedOptions, OpenOptions, closed_plugin, open_plugin
from avcl_avqa.avqacl import Avqacl, AvqaclOptions
from avcl_avqa.avqacl_losses import question_distance
from avcl_avqa.benchmark_output import export_benchmark, stored_scores
from avcl_avqa.split_avqa import ENDING
from avcl_core.config.load import read
from avcl_core.config.presets import find_config
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError, RunError
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.models.frozen import Frozen, FrozenOptions
from avcl_core.ownership import Owners, Snapshot
from avcl_core.seeding import numpy_generator, torch_generator
from avcl_core.testing import ToyRun, check_method, check_task
from avcl_core.texts import text_array, text_of
from avcl_core.training.options import TrainingOptions
from avcl_core.walk import Ctx

ANSWERS = {
    "Happening": {"cat": "cat", "dog": "dog", "car": "car van", "bus": "cat"},
    "Come_From": {"cat": "dog", "dog": "cat", "car": "engine", "bus": "engine"},
    "Where": {"cat": "dog", "dog": "cat", "car": "cat", "bus": "dog"},
}
"""Type → label → answers in turn: the second increment of Happening brings two new answers and has an old one, Where brings none."""
QUESTIONS = {
    "Happening": "What is happening here?", "Come_From": "Where does it come from?", "Where": "Where is that?"
}  # fmt: skip
TRAINING = TrainingOptions(epochs=2, batch_size=4, lr=1e-2, selection="last", evaluation_batch=8)


class Made:
    """Prepared media that are drawn from a video's name, beside question files of Split-AVQA's form."""

    layout, rate = "avqa_open", 32_000

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.annotations = {path.stem: path.name for path in sorted(folder.glob("*.json"))}

    def annotation(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def __contains__(self, video: str) -> bool:
        return True

    def frames(self, video: str) -> np.ndarray:
        return numpy_generator("frames", video).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)

    def wave(self, video: str) -> np.ndarray:
        return numpy_generator("wave", video).normal(0, 0.1, (4, self.rate)).astype(np.float32)

    def sample_digest(self, video: str) -> str:
        return hashlib.sha256(video.encode()).hexdigest()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder, number = tmp_path_factory.mktemp("closed"), 0
    (folder / "task_partition_2_2.json").write_text(json.dumps([["cat", "dog"], ["car", "bus"]]))
    for split, count in (("train", 3), ("test", 1)):
        for kind, answers in ANSWERS.items():
            rows = []
            for label, answer in answers.items():
                for turn in range(count):
                    number += 1
                    rows.append({
                        "id": number, "video_name": f"video{number}{ENDING}", "video_id": number, "question_text": QUESTIONS[kind],
                        "answer": answer.split()[turn % len(answer.split())], "question_relation": "Both", "question_type": kind.replace("_", " "), "label": label,
                    })  # fmt: skip
            (folder / f"{split}_{kind}.json").write_text(json.dumps(rows))
    return Made(folder)


def built(prepared, **options):
    return closed_plugin.build(ClosedOptions(**{"width": 8, **options}), prepared, "clean")


def toy(prepared, types=("Happening",), **options) -> ToyRun:
    def towers():
        torch.manual_seed(0)
        made = {"visual": "resnet18", "audio": "vggish"}
        return {name: shared_backbones.create(tower, size="tiny", pretrained=False) for name, tower in made.items()}

    task = built(prepared, types=types)
    given = AvqaclOptions(**{"memory": 6, "replay_batch": 3, **options})
    return ToyRun(towers, Frozen, Avqacl, {task.name: task}, "hidden", (), FrozenOptions(), given, TRAINING)


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    asked = toy(prepared)
    trainer = asked.trainer(folder)
    trainer.run()
    return asked, trainer, folder


def test_answers_are_listed_by_first_appearance_and_keep_their_columns(prepared):
    task = built(prepared)
    ones = task.experiences()
    assert [one.name for one in ones] == [f"{kind}_{n}" for kind in ("Come_From", "Happening", "Where") for n in (1, 2)]
    assert [len(one.labels) for one in ones] == [3, 4, 4, 6, 6, 6]
    generated = open_plugin.build(OpenOptions(experiences="increments"), prepared, "clean").experiences()
    assert ones == tuple(replace(one, task=task.name, labels=o.labels) for one, o in zip(generated, ones, strict=True))
    seen = ["<unk>"]
    for one in ones:
        seen += [a for key in one.train if (a := task.data.record(key).answer) not in seen]
        assert list(one.labels) == list(dict.fromkeys(seen))
    dataset = task.dataset("train")
    for key in ones[3].train:
        targets = dataset.targets(key)
        assert task.labels[int(targets["answer"])] == text_of(targets["language"]) == task.data.record(key).answer
        assert int(targets["answer"]) < len(ones[3].labels)
        inputs, media = dataset.inputs(key, None), task.data.split("train").inputs(key, None)
        assert np.array_equal(inputs["audio"], media["audio"][[0, 1, 3]])
        words = inputs["words"]
        assert words.shape == (16,)
        assert task.words.words[words[0]] == task.data.question(key).split()[0].lower()
    assert task.score({"k": {"text": text_array("<unk>")}}, {"k": {"language": text_array("piano")}})["em"] == 0
    assert "6 answers with <unk>" in task.splits_note
    assert "0 test answers are in no training question" in task.splits_note


def test_every_training_question_is_in_one_class_of_the_memory(prepared):
    task = built(prepared)
    for one in task.experiences():
        classes = task.classes(one)
        assert sorted(key for keys in classes.values() for key in keys) == sorted(one.train)
        for name, keys in classes.items():
            assert {f"{task.data.type_of(key)}_{task.data.record(key).labels[0]}" for key in keys} == {name}
    (where,) = built(prepared, experiences="types", types=("Where",)).experiences()
    by_type = built(prepared, experiences="types", types=("Where",)).classes(where)
    both = [task.classes(one) for one in task.experiences() if one.name.startswith("Where")]
    assert by_type.keys() == both[0].keys() | both[1].keys()


def test_the_head_grows_and_old_columns_keep_their_bits(prepared):
    asked = toy(prepared, types=("Happening", "Come_From"))
    method = asked.build()
    model, (task,) = method.model, asked.tasks.values()
    ones = task.experiences()
    model.grow(ones[0])
    head = model.heads["avqa_closed"]
    before = {name: value.clone() for name, value in head.state_dict().items()}
    (batch,) = asked.loader().batches(ones[0], "train", 4, ones[0].train[:4])
    model.eval()
    with torch.no_grad():
        first = model(batch, Ctx())
    assert {name: tuple(value.shape) for name, value in first.items()} == {
        "answer": (4, len(ones[0].labels)), "question": (4, 8), "heard": (4, 3, 8), "seen": (4, 3, 8), "fused": (4, 8)
    }  # fmt: skip
    grown = max(ones, key=lambda one: len(one.labels))
    assert len(grown.labels) > len(ones[0].labels)
    for one in ones[1:]:
        model.grow(one)
    head = model.heads["avqa_closed"].eval()
    for name, value in head.state_dict().items():
        assert torch.equal(value[: len(before[name])], before[name]), name
    assert head.answer.out_features == len(grown.labels)
    with torch.no_grad():
        later = model(batch, Ctx())
    torch.testing.assert_close(later["answer"][:, : len(ones[0].labels)], first["answer"])
    assert {row.owner for row in Owners(model).rows.values()} == {"head:avqa_closed"}
    with pytest.raises(ValueError, match="own order"):
        task.widen(head, ones[0])
    texts = task.decode(later)["text"]
    assert [text_of(row) for row in texts] == [task.labels[int(i)] for i in later["answer"].argmax(-1)]


def test_words_of_later_increments_are_unknown_to_an_earlier_list(prepared):
    asked = toy(prepared, types=("Happening", "Come_From"))
    model, (task,) = asked.build().model, asked.tasks.values()
    model.grow(task.experiences()[0])
    model.eval()
    (batch,) = asked.loader().batches(task.experiences()[-1], "test", 1, task.experiences()[-1].test[:1])
    known = model.heads["avqa_closed"].question.embedding.num_embeddings
    assert bool((batch.inputs["words"] >= known).any())
    unknown = torch.where(batch.inputs["words"] < known, batch.inputs["words"], 1)
    with torch.no_grad():
        torch.testing.assert_close(
            model(batch, Ctx())["answer"], model(replace(batch, inputs={**batch.inputs, "words": unknown}), Ctx())["answer"]
        )  # fmt: skip


def second(prepared):
    """A method after its first experience, and a step's batches of the second."""
    asked = toy(prepared, types=("Happening", "Come_From"))
    method = asked.build()
    (task,) = asked.tasks.values()
    one, two = task.experiences()[:2]
    method.model.grow(one)
    method.model.eval()
    loader = asked.loader()

    class Data:
        def keys(self, split="train"):
            return one.keys(split)

        def batches(self, split="train", keys=None, size=None):
            return loader.batches(one, split, 4, keys)

    method.after(one, Data())
    method.model.grow(two)
    drawn = method.recall(4, torch_generator("recall"))
    (current,) = loader.batches(two, "train", 4, two.train[:4])
    (replayed,) = loader.batches(one, "train", 9, [e.key for e in drawn])
    return method, current, replayed


def test_the_teacher_is_a_frozen_copy_with_its_own_words_and_answers(prepared):
    method, current, _ = second(prepared)
    before = {name: value.clone() for name, value in method.teacher.items()}
    with torch.no_grad():
        old = Snapshot(method.teacher).call(method.model, current, Ctx())
        for parameter in method.model.heads.parameters():
            parameter.add_(torch.randn_like(parameter))
        again = Snapshot(method.teacher).call(method.model, current, Ctx())
        now = method.model(current, Ctx())
    assert old["answer"].shape[1] == method.columns[0]
    for name, value in old.items():
        torch.testing.assert_close(again[name], value)
    assert float(question_distance(now, old).mean()) > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.items())


def test_a_step_weighs_its_terms_by_samples(prepared):
    method, current, replayed = second(prepared)
    assert method.rows == len(current) + len(replayed) == 7
    old = method.columns[-1]
    assert bool((replayed.targets["answer"] < old).all())
    (update,) = method.step(current, [replayed])
    assert set(update.parts) == {"new", "old", "question", "distil", "structure"}
    with torch.no_grad():
        outputs = [method.model(batch, Ctx()) for batch in (current, replayed)]
    logits = torch.cat([part["answer"] for part in outputs])
    targets = torch.cat([batch.targets["answer"] for batch in (current, replayed)])
    expected = [0.0, 0.0]
    for row, target in zip(logits, targets, strict=True):
        part, aim = (row[old:], target - old) if target >= old else (row[:old], target)
        expected[int(target < old)] -= float(part.log_softmax(-1)[aim]) / 7
    found = [float(update.parts[name]) for name in ("new", "old")]
    assert found == pytest.approx(expected, rel=1e-4)
    assert min(found) > 0
    for name in ("question", "distil", "structure"):  # nothing has changed since the copy but what was added
        assert float(update.parts[name]) == pytest.approx(0, abs=1e-5)
    pieces = [
        next(iter(method.step(current.select([0, 1]), []))),
        next(iter(method.step(current.select([2, 3]), [replayed]))),
    ]
    for name, value in update.parts.items():
        torch.testing.assert_close(sum(piece.parts[name] for piece in pieces), value, rtol=1e-4, atol=1e-5)
    update.loss.backward()
    head = method.model.heads["avqa_closed"]
    assert float(head.see.weight.grad.abs().sum()) > 0


def test_two_increments_are_learnt_remembered_and_reported(run, tmp_path):
    asked, trainer, folder = run
    (task,) = asked.tasks.values()
    one, two = task.experiences()
    method = trainer.method
    assert isinstance(method, Avqacl)
    assert method.columns == [len(one.labels), len(two.labels)]
    assert len(method.memory) <= 6
    for name, group in method.memory.groups.items():
        kept = {**task.classes(one), **task.classes(two)}[name]
        assert len(group) == min(len(kept), 6 // len(method.memory.groups))
        assert {e.key for e in group} <= set(kept)
    scores = stored_scores(folder, task)
    em = {(r["row"], r["test"]): r["metrics"]["em"] for r in map(json.loads, (folder / "results.jsonl").open())}
    assert 100 * scores.matrix[1, 0] == pytest.approx(em[two.name, one.name])
    assert scores.average_forgetting == pytest.approx((em[one.name, one.name] - em[two.name, one.name]) / 100)
    evaluation = folder / "evaluations" / "latest"
    for named, expected in ((one, False), (two, True)):
        evaluation.mkdir(parents=True, exist_ok=True)
        export_benchmark(evaluation, task, Evaluation({}, {}, {key: {} for key in named.test}))
        assert (evaluation / "benchmark.json").is_file() is expected
    written = json.loads((evaluation / "benchmark.json").read_text())
    assert written["mean_accuracy"] == pytest.approx(100 * scores.mean_accuracy)
    assert written["increments"] == [one.name, two.name]
    (folder / "predictions" / two.name / f"{one.name}.jsonl.gz").rename(tmp_path / "away")
    with pytest.raises(RunError, match=f"no predictions of test {one.name} after {two.name}"):
        stored_scores(folder, task)
    (tmp_path / "away").rename(folder / "predictions" / two.name / f"{one.name}.jsonl.gz")


def test_the_contract_of_methods_and_tasks_is_kept(prepared, tmp_path):
    asked = toy(prepared)
    check_method(asked, tmp_path / "method", stops=2)
    check_task(asked.tasks["avqa_closed"], asked.towers())


def test_what_cannot_be_done_is_refused(prepared):
    with pytest.raises(ConfigError, match="avqacl-fixed"):
        closed_plugin.build(ClosedOptions(), prepared, "paper")
    asked = toy(prepared)
    open_task = open_plugin.build(OpenOptions(), prepared, "clean")
    with pytest.raises(ConfigError, match=r"made for avqa_closed.*avqa_open"):
        Avqacl(asked.build().model, {"avqa_open": open_task}, AvqaclOptions(), 0)


@pytest.mark.parametrize(
    ("name", "memory", "question", "structure", "batch"),
    [("closed_split_avqa", 5000, 0.7, 0.5, 128), ("closed_split_music", 700, 0.9, 0.3, 64)],
)
def test_published_settings_are_shipped(name, memory, question, structure, batch):
    options, parts = load_run(read(find_config(name, "avcl_avqa")))
    given = {"memory": memory, "replay_batch": 16, "question": question, "structure": structure, "temperature": 2.0}
    assert parts.method == AvqaclOptions(**given)
    assert parts.tasks["avqa_closed"] == ClosedOptions(experiences="increments", width=512)
    training = options.training
    assert (training.epochs, training.batch_size, training.optimizer, training.lr) == (120, batch, "adam", 1e-3)
    assert (training.weight_decay, training.decay, training.decay_every, training.clip) == (1e-4, 0.1, 80, None)
    assert (options.label, options.stream.task_id) == ("avqacl-fixed", "hidden")
