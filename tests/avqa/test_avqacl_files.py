"""Split-AVQA and Split-MUSIC-AVQA question files: the normal form, and every malformed record named by position and id."""

import json
from pathlib import Path

import pytest

from avcl_avqa.benchmarks import SPLIT_AVQA, SPLIT_MUSIC, Source, source_of
from avcl_avqa.music_types import load_music_types
from avcl_avqa.open_records import Media, OpenQuestion, shared_keys
from avcl_avqa.partition import Partition
from avcl_avqa.split_avqa import load_split_avqa, read_split_avqa
from avcl_avqa.split_music import fill, load_split_music, read_split_music
from avcl_core.data.records import AnnotationFile
from avcl_core.errors import DataError

WHERE = {
    "id": 12,
    "video_name": "abc-_D1_trimmed.mp4",
    "video_id": 7,
    "question_text": "Where is the cow?",
    "answer": "Cow shed ",
    "question_relation": "Both",
    "question_type": "Where",
    "label": "cow lowing",
}
MUSIC = {
    "video_id": "00000093",
    "question_id": 31,
    "type": '["Audio-Visual", "Comparative"]',
    "question_content": "Is the <Object> on the <LR> louder than the <Object> on the <LR>？ ",
    "templ_values": '["violin", "left", "cello", "right"]',
    "question_deleted": 0,
    "anser": "yes",
    "label": ["cello", "violin"],
}
COWS = Partition(SPLIT_AVQA, (("cow lowing",),), "cows")
STRINGS = Partition(SPLIT_MUSIC, (("violin", "cello"),), "strings")


def written(folder: Path, name: str, *records: object) -> Path:
    path = folder / name
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_a_record_of_split_avqa(tmp_path):
    (question,) = load_split_avqa(written(tmp_path, "test_Where.json", WHERE), COWS)
    media = Media(name="abc-_D1_trimmed.mp4")
    assert question == OpenQuestion(
        "12", "abc-_D1", "Where is the cow?", "Cow shed ", "Where", "test", ("cow lowing",), media
    )
    assert question.key == "abc-_D1/12"


def test_a_type_of_two_words_is_named_as_the_file(tmp_path):
    path = written(tmp_path, "val_Come_From.json", WHERE | {"question_type": "Come From"})
    assert [(q.type, q.split) for q in load_split_avqa(path)] == [("Come_From", "val")]


def test_a_record_of_split_music(tmp_path):
    (question,) = load_split_music(written(tmp_path, "train_Comparative.json", MUSIC), STRINGS)
    assert question.question == "Is the violin on the left louder than the cello on the right？"
    assert (question.key, question.type, question.split) == ("00000093/31", "Comparative", "train")
    assert (question.answer, question.labels, question.media.name) == ("yes", ("cello", "violin"), "00000093.mp4")


def test_repeated_ids_are_kept_numbered_and_told(tmp_path):
    file = AnnotationFile(written(tmp_path, "x.json", MUSIC, MUSIC | {"question_id": 5}, MUSIC | {"anser": "no"}))
    questions = read_split_music(file, Source("test", "Comparative"))
    assert [(q.id, q.answer) for q in questions] == [("31", "yes"), ("5", "yes"), ("31#2", "no")]
    (problem,) = file.problems
    assert (problem.severity, problem.found) == ("warning", "1 ids occur more than once: 31")


def test_the_right_spelling_of_answer_is_read(tmp_path):
    record = {name: value for name, value in MUSIC.items() if name != "anser"} | {"answer": "no"}
    assert load_split_music(written(tmp_path, "test_Comparative.json", record))[0].answer == "no"


@pytest.mark.parametrize(
    ("template", "values", "filled"),
    [
        ("Is there a voiceover?", [], "Is there a voiceover?"),
        ("Where is the <LL> instrument? ", ["loudest"], "Where is the loudest instrument?"),
        ("What is the <TH> instrument that comes in?", ["first"], "What is the first instrument that comes in?"),
    ],
)
def test_slots_are_filled_from_left_to_right(template, values, filled):
    assert fill(template, values) == filled


BAD_AVQA = {
    "no id": ({"id": None}, "id", "nothing", "an integer"),
    "id is a truth value": ({"id": True}, "id", "True", "an integer"),
    "no question": ({"question_text": " "}, "question_text", "' '", "a text"),
    "answer is a number": ({"answer": 3}, "answer", "3", "an answer"),
    "empty answer": ({"answer": " "}, "answer", "' '", "an answer"),
    "unknown type": ({"question_type": "Wher"}, "question_type", "'Wher'", "Come From, Happening, Where, Which"),
    "another type": ({"question_type": "Which"}, "question_type", "'Which'", "Where, as the file is said to be"),
    "unknown label": ({"label": "cow lowin"}, "label", "'cow lowin'", "a label of cows"),
    "other name": ({"video_name": "abc.mp4"}, "video_name", "'abc.mp4'", "<YouTube id>_trimmed.mp4"),
    "no YouTube id": ({"video_name": "_trimmed.mp4"}, "video_name", "'_trimmed.mp4'", "<YouTube id>_trimmed.mp4"),
}


@pytest.mark.parametrize("name", BAD_AVQA)
def test_a_malformed_record_of_split_avqa_is_named(tmp_path, name):
    change, field, found, expected = BAD_AVQA[name]
    file = AnnotationFile(written(tmp_path, "x.json", WHERE | {"id": 1}, WHERE | change))
    assert [q.id for q in read_split_avqa(file, Source("train", "Where"), COWS)] == ["1"]
    (problem,) = file.problems
    assert problem.record == ("position 1" if name == "no id" else f"position 1, id {(WHERE | change)['id']}")
    assert (problem.field, problem.found, problem.severity) == (field, found, "error")
    assert expected in problem.expected


def test_an_unknown_type_and_label_say_the_nearest(tmp_path):
    path = written(tmp_path, "test_Where.json", WHERE | {"question_type": "Wher", "label": "cow lowin"})
    with pytest.raises(DataError, match=r"did you mean 'Where'\?; 1 more: .*'cow lowin'"):
        load_split_avqa(path, COWS)


def test_an_empty_answer_is_an_error_only_where_it_is_trained_on(tmp_path):
    assert load_split_avqa(written(tmp_path, "test_Where.json", WHERE | {"answer": ""}))[0].answer == ""


BAD_MUSIC = {
    "type is no JSON": ({"type": "Comparative"}, "type", "'Comparative'", "written as a text"),
    "type is a list": ({"type": ["Audio-Visual", "Comparative"]}, "type", "['Audio-Visual'", "written as a text"),
    "unknown type": ({"type": '["Audio-Visual", "Compare"]'}, "type", "Audio-Visual Compare", "Counting, Existential"),
    "not audio-visual": ({"type": '["Audio", "Comparative"]'}, "type", "Audio Comparative", "Audio-Visual and one of"),
    "another type": ({"type": '["Audio-Visual", "Counting"]'}, "type", "Counting", "Comparative, as the file"),
    "too few values": ({"templ_values": '["violin"]'}, "templ_values", "1 values for 4 slots", "one value for each"),
    "values are no JSON": ({"templ_values": "violin"}, "templ_values", "'violin'", "written as a text"),
    "unknown slot": ({"question_content": "<X>?"}, "question_content", "unknown slot <X>", "slots are <Object>"),
    "deleted": ({"question_deleted": 1}, "question_deleted", "1", "0"),
    "no label": ({"label": []}, "label", "an empty list", "at least one instrument"),
    "label is a text": ({"label": "violin"}, "label", "'violin'", "a JSON list of texts"),
    "unknown label": ({"label": ["violin", "viola"]}, "label", "'viola'", "a label of strings"),
    "no answer": ({"anser": None}, "anser", "nothing", "an answer"),
    "no video": ({"video_id": 93}, "video_id", "93", "a text"),
}


@pytest.mark.parametrize("name", BAD_MUSIC)
def test_a_malformed_record_of_split_music_is_named(tmp_path, name):
    change, field, found, expected = BAD_MUSIC[name]
    file = AnnotationFile(written(tmp_path, "x.json", MUSIC | {"question_id": 1}, MUSIC | change))
    assert [q.id for q in read_split_music(file, Source("train", "Comparative"), STRINGS)] == ["1"]
    (problem,) = file.problems
    assert (problem.record, problem.field, problem.severity) == ("position 1, question_id 31", field, "error")
    assert found in problem.found
    assert expected in problem.expected


@pytest.mark.parametrize(
    ("content", "found"),
    [("{}", "a JSON dict"), ("[]", "an empty list"), ('{"a": ', "Expecting value"), ("", "an empty file")],
)
def test_a_file_that_is_no_list_is_refused(tmp_path, content, found):
    (tmp_path / "test_Where.json").write_text(content)
    with pytest.raises(DataError, match=found):
        load_split_avqa(tmp_path / "test_Where.json")


def test_an_entry_that_is_no_object_is_named(tmp_path):
    with pytest.raises(DataError, match=r"\[position 1\]: record: found a JSON str"):
        load_split_avqa(written(tmp_path, "test_Where.json", WHERE, "Where?"))


def test_the_name_of_a_file_says_split_and_type():
    assert source_of(Path("a/train_Come_From.json"), SPLIT_AVQA.types) == Source("train", "Come_From")
    with pytest.raises(DataError, match="did you mean 'Where'"):
        source_of(Path("test_Wher.json"), SPLIT_AVQA.types)
    with pytest.raises(DataError, match=r"file name: found Where_test\.json"):
        source_of(Path("Where_test.json"), SPLIT_AVQA.types)


def test_a_question_in_two_splits_is_an_error():
    here = OpenQuestion("1", "v", "?", "a", "Where", "train")
    there = OpenQuestion("1", "v", "?", "a", "Where", "test")
    assert shared_keys([here, OpenQuestion("2", "v", "?", "a", "Where", "test")], "files") == []
    (problem,) = shared_keys([here, there], "files")
    assert problem.found == "1 questions that train Where has too: v/1"


def music_release(folder: Path, **files: list[dict]) -> Path:
    for stem, records in files.items():
        (folder / f"{stem.replace('_', '-', 1)}.json").write_text(json.dumps(records), encoding="utf-8")
    return folder


ALWAYS = {
    "video_id": "00000086",
    "question_id": 28,
    "type": '["Audio-Visual", "Existential"]',
    "question_content": "Is the <Object> in the video always playing?",
    "templ_values": '["violin"]',
    "question_deleted": 0,
    "anser": "no",
}


def test_question_types_of_the_original_files_are_audio_visual_and_of_real_videos(tmp_path):
    records = [
        ALWAYS,
        ALWAYS | {"question_id": 29, "video_id": "sa00000086"},
        ALWAYS | {"question_id": 30, "type": '["Visual", "Location"]'},
        ALWAYS | {"anser": "yes"},
    ]
    found = load_music_types(music_release(tmp_path, avqa_val=records), ("val",))
    assert [(q.id, q.type, q.answer, q.key) for q in found.questions] == [
        ("28", "Existential", "no", "00000086/28"),
        ("28#2", "Existential", "yes", "00000086/28#2"),
    ]
    assert found.note == "Audio-Visual questions of avqa-val.json (digit ids only)"


def test_the_real_variant_is_read_where_it_is_there(tmp_path):
    folder = music_release(tmp_path, avqa_val=[ALWAYS], avqa_val_real=[ALWAYS | {"question_id": 3}])
    found = load_music_types(folder, ("val",))
    assert [q.id for q in found.questions] == ["3"]
    assert found.files["val"].name == "avqa-val_real.json"


def test_a_missing_split_and_a_shared_question_of_the_original_files_are_errors(tmp_path):
    folder = music_release(tmp_path, avqa_val=[ALWAYS], avqa_test=[ALWAYS])
    with pytest.raises(DataError, match=r"avqa-train\.json: file: found no such file"):
        load_music_types(folder)
    with pytest.raises(DataError, match="1 questions that val Existential has too: 00000086/28"):
        load_music_types(folder, ("val", "test"))
