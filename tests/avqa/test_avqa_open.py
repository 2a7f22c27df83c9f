"""Open-ended answering: worlds and conversation files as data, types and increments as experiences, what is refused, what is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import shared_backbones
from avcl_avqa import OpenOptions, open_plugin
from avcl_avqa.benchmarks import SPLIT_AVQA
from avcl_avqa.conversion import write_conversations
from avcl_avqa.open_data import OpenData
from avcl_avqa.open_outputs import export_results, results_name
from avcl_core.data.prepare import prepare
from avcl_core.errors import ConfigError, DataError
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.evaluation.predicting import Choice
from avcl_core.texts import text_array, text_of
from avcl_core.training.inputs import make_inputs
from avcl_core.training.loader import Loader
from avcl_core.world.procedural import ProceduralBank
from avcl_core.world.writer import WorldSize

SIZE = WorldSize(train=24, val=2, test=6, size=32, fps=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("open") / "avqa_open"
    open_plugin.compose(ProceduralBank("task", 4), SIZE, 3, folder, 1)
    return folder


@pytest.fixture(scope="module")
def prepared(root, tmp_path_factory):
    return prepare(
        open_plugin.layout(root), tmp_path_factory.mktemp("prepared") / "avqa_open", frame_size=64, workers=1
    )


def built(prepared, **options):
    return open_plugin.build(OpenOptions(**options), prepared, "clean")


def test_a_video_is_eight_frames_and_one_sound_between_the_words(prepared):
    task = built(prepared)
    key = task.experiences()[0].test[0]
    inputs = task.dataset("test").inputs(key, None)
    assert inputs["visual"].shape == (8, 64, 64, 3)
    assert inputs["audio"].shape == (10, task.audio_rate)
    assert text_of(inputs["question"]) == f"<video>\n<audio>\n{task.data.question(key)}"
    assert text_of(task.dataset("test").targets(key)["language"]) == task.data.record(key).answer


def test_an_experience_for_each_type_in_the_order_asked_for(prepared):
    assert [e.name for e in built(prepared).experiences()] == list(SPLIT_AVQA.types)
    task = built(prepared, types=("Which", "Come_From"))
    assert [(e.index, e.name) for e in task.experiences()] == [(0, "Which"), (1, "Come_From")]
    assert all(task.data.type_of(key) == "Which" for key in task.experiences()[0].train)
    for wrong in (("Wich",), ("Which", "Which")):
        with pytest.raises(ConfigError, match=r"types.*expected different ones of Come_From, Happening, Where, Which"):
            built(prepared, types=wrong)


def test_increments_are_types_times_groups_of_labels(prepared):
    task = built(prepared, experiences="increments", types=("Where", "Happening"))
    assert [e.name for e in task.experiences()] == ["Where_1", "Where_2", "Happening_1", "Happening_2"]
    partition = task.data.partition
    for one in task.experiences():
        labels = set(partition.steps[int(one.name[-1]) - 1])
        assert one.train
        assert all(set(task.data.record(key).labels) <= labels for key in (*one.train, *one.test))
    first, second = task.experiences()[:2]
    assert sorted((*first.train, *second.train)) == sorted(task.data.keys("train", "Where"))


def test_increments_need_a_partition_that_fits(root, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(root, folder)
    (file,) = folder.glob("task_partition_*.json")
    file.unlink()
    bare = prepare(open_plugin.layout(folder), tmp_path / "bare", frame_size=64, workers=1)
    with pytest.raises(DataError, match=r"task_partition_<steps>_<labels>\.json beside the questions"):
        built(bare, experiences="increments").experiences()
    steps = [["a", "b"], ["c", "d"]]
    (folder / "task_partition_2_2.json").write_text(json.dumps(steps))
    other = prepare(open_plugin.layout(folder), tmp_path / "other", frame_size=64, workers=1)
    with pytest.raises(DataError, match=r"expected labels of task_partition_2_2\.json"):
        built(other, experiences="increments").experiences()


def test_conversation_files_and_their_media_are_read(prepared, tmp_path):
    """The form that the authors' files have: paths relative to a folder of the user's, frames and sound in a folder per video."""
    task = built(prepared)
    media = tmp_path / "media"
    for split in ("train", "test"):
        keys = task.data.keys(split, "Where")[:3]
        questions = [task.data.record(key) for key in keys]
        write_conversations(tmp_path / "data" / f"{split}_Where.json", questions)
        for question in questions:
            folder = media / question.video
            folder.mkdir(parents=True, exist_ok=True)
            for number, frame in enumerate(prepared.frames(question.video), start=1):
                Image.fromarray(frame).save(folder / f"frame_{number:03d}.jpg", quality=95)
            wave = prepared.wave(question.video).reshape(-1)
            np.save(folder / "audio.npy", wave)
            import soundfile

            soundfile.write(folder / "audio.wav", wave, prepared.rate)
    layout = open_plugin.layout(tmp_path / "data", media_root=media)
    assert not [problem for problem in layout.problems if problem.severity == "error"]
    again = prepare(layout, tmp_path / "prepared", frame_size=64, workers=1)
    other = built(again)
    (one,) = other.experiences()
    assert (one.name, len(one.train), len(one.test)) == ("Where", 3, 3)
    key = one.test[0]
    assert other.data.question(key) == task.data.question(key)
    frames = [t.dataset("test").inputs(key, None)["visual"].astype(int) for t in (task, other)]
    assert np.abs(frames[0] - frames[1]).mean() < 6
    (media / other.data.video(key) / "frame_004.jpg").unlink()
    problems = open_plugin.layout(tmp_path / "data", media_root=media).problems
    assert any("frame_004.jpg" in problem.found and problem.severity == "error" for problem in problems)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("conversations"), "conversations"),
        (lambda r: r["conversations"][0].update(value="<smell>\nWhere?"), "<smell>"),
        (lambda r: r.update(video=r["video"][:7]), "8"),
    ],
    ids=["field missing", "unknown marker", "seven frames"],
)
def test_a_broken_conversation_is_named(prepared, tmp_path, change, message):
    task = built(prepared)
    path = tmp_path / "train_Where.json"
    write_conversations(path, [task.data.record(key) for key in task.data.keys("train", "Where")[:2]])
    records = json.loads(path.read_text())
    change(records[1])
    path.write_text(json.dumps(records))
    errors = [p for p in open_plugin.layout(tmp_path, media_root=tmp_path).problems if p.severity == "error"]
    found = [
        p for p in errors if p.file.endswith("train_Where.json") and message in f"{p.field} {p.found} {p.expected}"
    ]
    assert found
    assert str(1) in found[0].record


def test_the_published_protocol_needs_a_judge(prepared):
    with pytest.raises(ConfigError, match="judged"):
        open_plugin.build(OpenOptions(), prepared, "paper")


def test_a_language_tower_reads_the_answers_and_long_ones_are_refused(prepared):
    task = built(prepared)
    towers = {"language": shared_backbones.create("av_llama", size="tiny", pretrained=False)}
    one = task.experiences()[0]
    for length in (24, 3):
        loader = Loader({task.name: task}, make_inputs(towers, {}, task.audio_rate, None, {"language": length}))
        if length == 3:
            with pytest.raises(ConfigError, match=r"towers\.language\.answer: 3 words"):
                list(loader.batches(one, "train", 2, one.train[:2]))
            continue
        (batch,) = loader.batches(one, "train", 2, one.train[:2])
        for key, row in zip(batch.keys, batch.targets["language"], strict=True):
            assert row.shape == (24,)
            answer = task.data.record(key).answer
            assert row[row != -100].tolist() == towers["language"].dialogue.answer(answer)
        logits = torch.zeros(2, 24, 259)
        expected = torch.log(torch.tensor(259.0)) * (batch.targets["language"] != -100).sum(1)
        torch.testing.assert_close(task.nll({"answer": logits}, batch.targets), expected)


def test_scores_and_trivial_predictors(prepared):
    task = built(prepared)
    targets = {key: task.dataset("test").targets(key) for key in task.experiences()[2].test}
    perfect = {key: {"text": target["language"]} for key, target in targets.items()}
    assert task.score(perfect, targets)["em"] == 100
    shouted = {key: {"text": text_array(" " + text_of(t["language"]).upper())} for key, t in targets.items()}
    assert task.score(shouted, targets)["em"] == 100
    nothing = {key: {"text": text_array("")} for key in targets} | {}
    nothing = {key: {"text": np.zeros(1, np.uint8)} for key in targets}
    assert task.score(nothing, targets) == {"em": 0, "em_norm": 0, "token_f1": 0}
    controls = task.controls(targets, targets)
    assert {name.split(" '")[0] for name in controls} == {"always", "most frequent answer to the same question"}
    assert 0 < controls["most frequent answer to the same question"]["em"] <= 100


def test_answers_are_written_as_the_authors_name_them(prepared, tmp_path):
    task = built(prepared)
    names = [results_name(task, e.name) for e in task.experiences()]
    assert names == [f"task{n}_{w}_results.json" for n, w in enumerate(("come", "happening", "where", "which"))]
    one = task.experiences()[1]
    predictions = {key: {"text": text_array("two sounding")} for key in one.test}
    choices = {key: Choice("Where", {"all": {"Where": 0.5, "Which": 0.25}}) for key in one.test}
    export_results(tmp_path, task, Evaluation({}, {}, predictions, choices=choices))
    records = json.loads((tmp_path / "task1_happening_results.json").read_text())
    assert [record["text"] for record in records] == ["two sounding"] * len(one.test)
    assert records[0]["conversations"][1]["value"] == task.data.record(one.test[0]).answer
    assert records[0]["expert"] == "Where"
    assert records[0]["scores"]["all"]["Which"] == 0.25


def test_layouts_without_questions_say_what_is_expected(tmp_path):
    (problem,) = open_plugin.layout(tmp_path).problems
    assert "{train,val,test}_<Type>.json" in problem.expected
    with pytest.raises(DataError, match="<Type>"):
        prepare(open_plugin.layout(tmp_path), tmp_path / "out", frame_size=64, workers=1)


def test_data_of_another_layout_are_refused(avqa_prepared):
    with pytest.raises(DataError, match="avqa_open"):
        OpenData(avqa_prepared)
