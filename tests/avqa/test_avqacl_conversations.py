"""Conversation files: the normal form, the path rule, what is refused, and the way back from benchmark records."""

import json
from pathlib import Path

import pytest

from avcl_avqa.benchmarks import Source
from avcl_avqa.conversations import load_conversations, read_conversations
from avcl_avqa.conversion import conversation, write_conversations
from avcl_avqa.media_paths import MediaPaths
from avcl_avqa.open_records import OpenQuestion
from avcl_core.data.records import AnnotationFile
from avcl_core.errors import ConfigError, DataError

FRAMES = [f"/path/to/frames/abc/frame_{i:03d}.jpg" for i in range(1, 9)]
TRAIN = Source("train", "Where")


def turns(human: str = "<video>\n<audio>\nWhere is it?", gpt: str = "Cow shed ") -> list[dict]:
    return [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]


GOOD = {"id": "7", "conversations": turns(), "video": FRAMES, "voice": ["/path/to/frames/abc/audio.wav"]}


def file_of(folder: Path, *records: object, name: str = "train_Where.json") -> AnnotationFile:
    (folder / name).write_text(json.dumps(records), encoding="utf-8")
    return AnnotationFile(folder / name)


def test_a_record_loses_its_markers_and_nothing_else(tmp_path):
    (question,) = read_conversations(file_of(tmp_path, GOOD), TRAIN)
    assert (question.key, question.question, question.answer) == ("abc/7", "Where is it?", "Cow shed ")
    assert (question.type, question.split, question.labels) == ("Where", "train", ())
    assert question.media.frames == tuple(FRAMES)
    assert question.media.voice == "/path/to/frames/abc/audio.wav"


def test_a_question_about_an_image_or_about_nothing(tmp_path):
    image = {"id": "1", "conversations": turns("What is it?\n<image>"), "image": "pictures/x.jpg"}
    text = {"id": "2", "conversations": turns("What is it?")}
    questions = read_conversations(file_of(tmp_path, image, text), TRAIN)
    assert [(q.key, q.question, q.media.image) for q in questions] == [
        ("pictures/1", "What is it?", "pictures/x.jpg"),
        ("2/2", "What is it?", None),
    ]


BAD = {
    "no id": ({"id": None}, "id", "nothing", "a text"),
    "id is a number": ({"id": 7}, "id", "7", "a text"),
    "repeated id": ({"id": "1"}, "id", "'1', also at position 0", "each id once"),
    "no conversations": ({"conversations": None}, "conversations", "nothing", "a list of two turns"),
    "no list": ({"conversations": {}}, "conversations", "a JSON dict", "a list of two turns"),
    "one turn": ({"conversations": turns()[:1]}, "conversations", "1 turns: human", "two turns: human, gpt"),
    "swapped": ({"conversations": turns()[::-1]}, "conversations", "2 turns: gpt, human", "two turns: human, gpt"),
    "four turns": ({"conversations": turns() * 2}, "conversations", "4 turns: human, gpt, human, gpt", "two turns"),
    "no text": ({"conversations": turns(gpt=None)}, "conversations[1].value", "nothing", "a text"),
    "empty answer": ({"conversations": turns(gpt=" ")}, "conversations[1].value", "' '", "is trained on"),
    "no question": ({"conversations": turns("<video>\n<audio>\n")}, "conversations[0].value", "<audio>", "a question"),
    "marker alone": (
        {"conversations": turns("<image><video><audio>Where?")},
        "image",
        "<image> 1 times, image not given",
        "",
    ),
    "media alone": (
        {"conversations": turns("<video>\nWhere?")},
        "voice",
        "<audio> 0 times, voice given",
        "a marker once",
    ),
    "marker twice": (
        {"conversations": turns("<video><video><audio>Where?")},
        "video",
        "<video> 2 times",
        "a marker once",
    ),
    "marker in the answer": ({"conversations": turns(gpt="<video>")}, "conversations[1].value", "<video>", "without"),
    "seven frames": ({"video": FRAMES[:7]}, "video", "7 paths, 7 different", "exactly 8"),
    "a frame twice": ({"video": FRAMES[:7] + FRAMES[:1]}, "video", "8 paths, 7 different", "exactly 8"),
    "two folders": ({"video": [*FRAMES[:7], "/path/to/x/y.jpg"]}, "video", "paths in 2 folders", "the one folder"),
    "frames are a text": ({"video": FRAMES[0]}, "video", "frame_001", "a JSON list of texts"),
    "two voices": ({"voice": ["a.wav", "b.wav"]}, "voice", "2 paths", "exactly one"),
    "no voice": ({"voice": []}, "voice", "0 paths", "exactly one"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_record_is_named_and_left_out(tmp_path, name):
    change, field, found, expected = BAD[name]
    file = file_of(tmp_path, GOOD | {"id": "1"}, GOOD | change)
    questions = read_conversations(file, TRAIN)
    assert [question.id for question in questions] == ["1"]
    (problem,) = file.problems
    assert problem.record.startswith("position 1")
    assert field in problem.field
    assert found in problem.found
    assert expected in problem.expected


def test_an_empty_answer_of_a_test_record_is_kept(tmp_path):
    file = file_of(tmp_path, GOOD | {"conversations": turns(gpt="")})
    assert read_conversations(file, Source("test", "Where"))[0].answer == ""


def test_several_malformed_records_are_named_in_one_error(tmp_path):
    file = file_of(tmp_path, GOOD | {"id": 3}, GOOD | {"video": []}, "text")
    with pytest.raises(DataError) as error:
        load_conversations(file.path, MediaPaths())
    text = str(error.value)
    assert "position 0, id 3" in text
    assert "position 1, id 7" in text
    assert "position 2" in text


def media_in(folder: Path, video: str = "abc") -> None:
    (folder / video).mkdir(parents=True)
    for name in [*(f"frame_{i:03d}.jpg" for i in range(1, 9)), "audio.wav"]:
        (folder / video / name).touch()


def test_placeholders_are_rewritten_and_files_found(tmp_path):
    media_in(tmp_path / "my frames")
    file = file_of(tmp_path, GOOD)
    rule = MediaPaths(path_rewrite=(("/path/to/frames/", str(tmp_path / "my frames")),))
    (question,) = load_conversations(file.path, rule)
    assert question.media.frames[0] == str(tmp_path / "my frames" / "abc" / "frame_001.jpg")
    assert Path(question.media.voice).is_file()
    (relative,) = load_conversations(file.path, MediaPaths(tmp_path, (("/path/to/frames", "my frames"),)))
    assert relative.media == question.media


def test_a_prefix_is_whole_components_and_the_first_that_fits():
    rule = MediaPaths(Path("/root"), (("/path/to", "/a"), ("/path", "/b"), ("rel", "x")))
    assert rule("/path/to/f") == "/a/f"
    assert rule("/path/too/f") == "/b/too/f"
    assert rule("rel/f") == "/root/x/f"
    assert rule("relative/f") == "/root/relative/f"
    assert rule("/other/f") == "/other/f"
    with pytest.raises(ConfigError, match="expected a prefix"):
        MediaPaths(path_rewrite=(("/", "/data"),))


def test_an_unresolved_placeholder_shows_prefix_and_option(tmp_path):
    with pytest.raises(DataError) as error:
        load_conversations(file_of(tmp_path, GOOD).path, MediaPaths())
    assert "9 of 9 paths with the placeholder /path/to, all below /path/to/frames;" in str(error.value)
    assert "set path_rewrite, e.g. [[/path/to/frames, <folder of the frames>]]" in str(error.value)


def test_relative_paths_need_a_root(tmp_path):
    record = conversation(OpenQuestion("1", "abc", "Where?", "here", "Where", "train"))
    with pytest.raises(DataError, match=r"from id 1 on.*9 of 9 paths are relative.*set media_root"):
        load_conversations(file_of(tmp_path, record).path, MediaPaths())


def test_missing_media_are_counted_and_the_first_twenty_listed(tmp_path):
    media_in(tmp_path, "a")
    (tmp_path / "a" / "frame_004.jpg").unlink()
    asked = [OpenQuestion(v, v, "Where?", "here", "Where", "train") for v in ("a", "b", "c", "d")]
    file = file_of(tmp_path, *(conversation(question) for question in asked))
    with pytest.raises(DataError) as error:
        load_conversations(file.path, MediaPaths(tmp_path))
    text = str(error.value)
    assert "from id a on" in text
    assert "28 of 36 files are missing; the first 20: " in text
    assert text.count(str(tmp_path / "a")) == 1
    assert text.count(".jpg") + text.count(".wav") == 20


def test_split_and_type_come_from_the_name_or_are_said(tmp_path):
    media_in(tmp_path)
    rule = MediaPaths(tmp_path, (("/path/to/frames", "."),))
    path = file_of(tmp_path, GOOD, name="my questions.json").path
    with pytest.raises(DataError, match="say split and question type of this file"):
        load_conversations(path, rule)
    (question,) = load_conversations(path, rule, Source("val", "colours"))
    assert (question.split, question.type) == ("val", "colours")


def test_written_records_are_read_back_and_the_file_is_a_function_of_them(tmp_path):
    media_in(tmp_path / "frames", "v1")
    asked = [
        OpenQuestion(id, "v1", "How many sounding violin in the video？", answer, "Counting", "test")
        for id, answer in (("4", "more than ten"), ("4#2", "cowbell "))
    ]
    one = write_conversations(tmp_path / "test_Counting.json", asked)
    assert one == write_conversations(tmp_path / "again.json", asked)
    read = load_conversations(tmp_path / "test_Counting.json", MediaPaths(tmp_path / "frames"))
    assert [(q.key, q.question, q.answer, q.type, q.split) for q in read] == [
        (q.key, q.question, q.answer, q.type, q.split) for q in asked
    ]


def test_a_file_has_one_split_and_type_and_each_id_once(tmp_path):
    question = OpenQuestion("1", "v", "?", "a", "Where", "test")
    with pytest.raises(ValueError, match="1 ids repeat: 1"):
        write_conversations(tmp_path / "x.json", [question, question])
    with pytest.raises(ValueError, match="expected one split and one type"):
        write_conversations(tmp_path / "x.json", [question, OpenQuestion("2", "v", "?", "a", "Which", "test")])
    assert not (tmp_path / "x.json").exists()
