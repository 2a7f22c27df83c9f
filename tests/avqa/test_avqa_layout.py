"""What is wrong across question files and media is a problem that names it; both releases and all folder variants are read."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from avcl_avqa import AnswerOptions, plugin
from avcl_avqa.annotations import read_annotations
from avcl_avqa.dataset import QuestionData
from avcl_core.data.prepare import prepare
from avcl_core.errors import DataError


@pytest.fixture
def copy(avqa_root, tmp_path) -> Path:
    return Path(shutil.copytree(avqa_root, tmp_path / "avqa"))


def edit(path: Path, change) -> list[dict]:
    items = json.loads(path.read_text(encoding="utf-8"))
    change(items)
    path.write_text(json.dumps(items), encoding="utf-8")
    return items


def found(root: Path) -> list[tuple[str, str, str, str]]:
    return [(Path(p.file).name, p.record, p.field, p.severity) for p in plugin.layout(root).problems]


def test_a_world_has_no_problem_and_one_clip_per_video(avqa_root):
    layout = plugin.layout(avqa_root)
    assert layout.problems == ()
    assert len(layout.clips) == len({clip.id for clip in layout.clips}) == 16
    assert all(len(clip.id) == 8 and clip.id.isdigit() for clip in layout.clips)
    assert sorted(layout.annotations) == [
        f"json/{name}" for name in ("ans_vocab", "avqa-test", "avqa-train", "avqa-val", "ques_vocab")
    ]
    assert {(clip.frame_rule, clip.sound_rule, clip.seconds) for clip in layout.clips} == {("evenly", "evenly", 10)}


def test_sound_of_the_first_seconds_is_an_option(avqa_root):
    options = plugin.source(audio_windows="head")
    layout = plugin.layout(avqa_root, **options.model_dump())
    assert {clip.sound_rule for clip in layout.clips} == {"start"}


@pytest.mark.parametrize(
    ("videos", "frames", "waves"), [("video", None, None), (None, "frames", "audio_wave"), (None, "frame", "wave")]
)
def test_variants_of_media_folders(copy, videos, frames, waves):
    if videos:
        (copy / "videos").rename(copy / videos)
    else:
        for path in (copy / "videos").iterdir():
            (copy / frames / path.stem).mkdir(parents=True)
            (copy / waves).mkdir(exist_ok=True)
            np.save(copy / waves / f"{path.stem}.npy", np.zeros(3, np.float32))
        shutil.rmtree(copy / "videos")
    layout = plugin.layout(copy)
    assert layout.problems == ()
    clip = layout.clips[0]
    if videos:
        assert clip.picture == clip.sound == copy / videos / f"{clip.id}.mp4"
    else:
        assert (clip.picture, clip.sound) == (copy / frames / clip.id, copy / waves / f"{clip.id}.npy")


def test_questions_below_labels(copy):
    (copy / "labels").mkdir()
    (copy / "json").rename(copy / "labels" / "json")
    layout = plugin.layout(copy)
    assert layout.problems == ()
    assert layout.annotations["json/avqa-val"] == copy / "labels" / "json" / "avqa-val.json"


def test_media_without_questions_and_questions_without_media(copy):
    first, second, *_ = sorted((copy / "videos").iterdir())
    first.rename(copy / "videos" / "99999999.mp4")
    second.unlink()
    assert found(copy) == [("avqa", "", "media", "error"), ("avqa", "", "media", "warning")]
    lost, spare = plugin.layout(copy).problems
    assert "2 ids without media" in lost.found
    assert second.stem in lost.found
    assert "1 ids without annotation: 99999999" in spare.found


def test_no_questions_at_all(copy):
    shutil.rmtree(copy / "json")
    problem = plugin.layout(copy).problems[0]
    assert (problem.field, problem.found, problem.severity) == ("questions", "none", "error")
    assert "json_update/avqa-train.json or json/avqa-train.json" in problem.expected


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_question_file(copy, split):
    (copy / "json" / f"avqa-{split}.json").unlink()
    assert (f"avqa-{split}.json", "", "file", "error") in found(copy)


def test_all_problems_of_all_files_are_collected(copy):
    def damage(items):
        items[0]["type"] = "Audio"
        items[1]["anser"] = "nobody"
        del items[2]["anser"]

    items = edit(copy / "json" / "avqa-train.json", damage)
    edit(copy / "json" / "avqa-val.json", lambda items: items[0].update(question_content="Where?", templ_values="[]"))
    (copy / "json" / "avqa-test.json").write_text("{", encoding="utf-8")
    (copy / "json" / "ans_vocab.txt").write_text("yes\nno\nyes\n" + (copy / "json" / "ans_vocab.txt").read_text())
    problems = found(copy)
    assert ("avqa-train.json", "item 1, question_id 0", "type", "error") in problems
    assert ("avqa-train.json", f"question_id {items[1]['question_id']}", "anser", "error") in problems
    assert ("avqa-train.json", "item 3, question_id 2", "anser", "error") in problems
    assert ("avqa-test.json", "line 1", "content", "error") in problems
    assert ("ans_vocab.txt", "line 3", "entry", "error") in problems


def test_an_unknown_word_names_file_question_word_and_nearest(copy):
    edit(
        copy / "json" / "avqa-test.json",
        lambda items: items[0].update(question_content="Wher is it?", templ_values="[]"),
    )
    (problem,) = [p for p in plugin.layout(copy).problems if p.found == "'Wher'"]
    assert problem.file.endswith("avqa-test.json")
    assert problem.record.startswith("question_id ")
    assert "did you mean 'Where'?" in problem.action


def test_a_question_in_two_splits_is_an_error_and_a_video_in_two_a_warning(copy):
    test = json.loads((copy / "json" / "avqa-test.json").read_text())
    edit(copy / "json" / "avqa-train.json", lambda items: items.append(test[0]))
    errors = [p for p in plugin.layout(copy).problems if p.severity == "error"]
    (problem,) = errors
    assert (Path(problem.file).name, problem.field) == ("avqa-test.json", "question_id")
    assert problem.found == f"1 ids that avqa-train.json has too: {test[0]['question_id']}"
    edit(copy / "json" / "avqa-train.json", lambda items: items[-1].update(question_id=10**6))
    (warning,) = plugin.layout(copy).problems
    assert (warning.severity, warning.found) == ("warning", "1 of 13 train videos are also test videos")


def test_the_wanted_release_is_used_or_the_other_one_with_a_note(copy, tmp_path):
    shutil.copytree(copy / "json", copy / "json_update")
    items = edit(copy / "json_update" / "avqa-test.json", lambda items: items.pop())
    prepared = prepare(plugin.layout(copy), tmp_path / "both", frame_size=16, workers=1)
    updated, original = (
        plugin.build(AnswerOptions(annotations=name), prepared, "clean") for name in ("updated", "original")
    )
    sizes = [len(task.experiences()[0].test) for task in (updated, original)]
    assert sizes == [len(items), len(items) + 1]
    assert updated.splits_note.startswith("updated questions (avqa-train.json ")
    assert "there are no" not in updated.splits_note + original.splits_note
    shutil.rmtree(copy / "json")
    prepared = prepare(plugin.layout(copy), tmp_path / "one", frame_size=16, workers=1)
    task = plugin.build(AnswerOptions(annotations="original"), prepared, "clean")
    assert len(task.experiences()[0].test) == len(items)
    assert task.splits_note.startswith("updated questions (")
    assert "there are no original ones" in task.splits_note


def test_the_note_names_size_and_digest_of_the_files(avqa_prepared, avqa_root):
    import hashlib

    note = plugin.build(plugin.options(), avqa_prepared, "clean").splits_note
    for split in ("train", "val", "test"):
        content = (avqa_root / "json" / f"avqa-{split}.json").read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:12]
        assert f"avqa-{split}.json {len(content)} bytes sha256 {digest}" in note
    assert note.endswith("no video in two splits")


def test_errors_are_raised_where_the_task_is_built(copy, tmp_path):
    edit(copy / "json" / "avqa-val.json", lambda items: items[0].update(templ_values="[]", question_content="Is <it>?"))
    prepared = prepare(plugin.layout(copy), tmp_path / "p", frame_size=16, workers=1)
    with pytest.raises(DataError, match=r"avqa-val\.json \[item 1, question_id \d+\]: templ_values: found 0 values"):
        plugin.build(plugin.options(), prepared, "clean")


def test_prepared_data_of_another_task_are_refused(avqa_prepared, monkeypatch):
    monkeypatch.setattr(avqa_prepared, "layout", "ave")
    with pytest.raises(DataError, match=r"layout: found ave; expected avqa"):
        plugin.build(plugin.options(), avqa_prepared, "clean")


def test_prepared_data_without_questions_are_refused(tmp_path):
    def annotation(name):
        raise DataError(name)

    stub = SimpleNamespace(layout="avqa", folder=tmp_path, annotation=annotation)
    with pytest.raises(DataError, match=r"questions: found none; expected json_update/ or json/"):
        QuestionData(stub, "updated")  # pyright: ignore[reportArgumentType]


@pytest.mark.realdata
def test_published_splits_share_videos_but_no_question(real_data, tmp_path):
    source = real_data / "annotations" / "music_avqa"
    for split in ("val", "test"):
        shutil.copy(source / f"avqa-{split}.json", tmp_path)
    shutil.copy(source / "avqa-val.json", tmp_path / "avqa-train.json")
    edit(tmp_path / "avqa-train.json", lambda items: [item.update(question_id=-1 - n) for n, item in enumerate(items)])
    annotations = read_annotations(tmp_path)
    assert not [p for p in annotations.problems if p.severity == "error"]
    assert annotations.overlaps.startswith(
        "2296 of 3815 val videos are also test videos; 3815 of 3815 train videos are also val"
    )


def test_lists_in_the_folder_above_the_questions_are_taken_too(copy):
    for name in ("ans_vocab.txt", "ques_vocab.txt"):
        (copy / "json" / name).rename(copy / name)
    layout = plugin.layout(copy)
    assert layout.problems == ()
    assert layout.annotations["json/ans_vocab"] == copy / "ans_vocab.txt"
