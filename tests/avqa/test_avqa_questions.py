"""Question files: templates filled, both spellings, and every malformed row named with its question id."""

import json
from collections import Counter
from pathlib import Path

import pytest

from avcl_avqa.data import answer_vocabulary, check_words, load_annotations, read_rows, template_majority
from avcl_avqa.metrics import TYPES, accuracy_by_type
from avcl_avqa.vocabulary import WORDS, Vocabulary
from avcl_core.data.records import AnnotationFile
from avcl_core.errors import DataError

GOOD = {
    "video_id": "00000086",
    "question_id": 28,
    "type": '["Audio-Visual", "Existential"]',
    "question_content": "Is the <Object> in the video always playing? ",
    "templ_values": '["violin"]',
    "question_deleted": 0,
    "anser": "no",
}


def file_of(folder: Path, *items: object) -> AnnotationFile:
    path = folder / "avqa-test.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return AnnotationFile(path)


def test_a_row_is_filled_and_split(tmp_path):
    (row,) = load_annotations(file_of(tmp_path, GOOD).path)
    assert (row.question_id, row.video_id, row.answer) == (28, "00000086", "no")
    assert row.type == ("Audio-Visual", "Existential")
    assert row.question == "Is the violin in the video always playing?"
    assert row.template == "Is the <Object> in the video always playing?"
    assert row.words == ("Is", "the", "violin", "in", "the", "video", "always", "playing")


def test_placeholders_are_filled_in_order_up_to_the_question_mark(tmp_path):
    item = GOOD | {
        "question_content": "Is the <Object> on the <LR> louder than the <Object> on the <LR>？",
        "templ_values": '["violin", "left", "cello", "right"]',
    }
    (row,) = load_annotations(file_of(tmp_path, item).path)
    assert row.question == "Is the violin on the left louder than the cello on the right？"
    assert row.words[-1] == "right"


def test_the_right_spelling_of_answer_is_accepted(tmp_path):
    item = {name: value for name, value in GOOD.items() if name not in ("anser", "question_deleted")} | {
        "answer": "yes"
    }
    assert load_annotations(file_of(tmp_path, item).path)[0].answer == "yes"


BAD = {
    "type is no JSON": ({"type": "Audio Counting"}, "type", "'Audio Counting'", "a JSON list of texts"),
    "type is a list": ({"type": ["Audio", "Counting"]}, "type", "['Audio', 'Counting']", "written as a text"),
    "unknown type": ({"type": '["Audio", "Countng"]'}, "type", "Countng", "did you mean 'Audio Counting'"),
    "values are no JSON": ({"templ_values": "violin"}, "templ_values", "'violin'", "a JSON list of texts"),
    "values are no texts": ({"templ_values": "[3]"}, "templ_values", "'[3]'", "a JSON list of texts"),
    "values missing": ({"templ_values": None}, "templ_values", "nothing", "a JSON list of texts"),
    "too many values": ({"templ_values": '["violin", "cello"]'}, "templ_values", "2 values", "1, one for each <…>"),
    "too few values": ({"templ_values": "[]"}, "templ_values", "0 values", "1, one for each <…>"),
    "too long": ({"question_content": "a " * 14 + "<b>?"}, "question_content", "15 words", "at most 14"),
    "no question": ({"question_content": " "}, "question_content", "' '", "a text"),
    "no question mark": ({"question_content": "the <Object>"}, "question_content", "'the <Object>'", "ends with ?"),
    "id is a text": ({"question_id": "28"}, "question_id", "'28'", "an integer"),
    "id is a truth value": ({"question_id": True}, "question_id", "True", "an integer"),
    "no video": ({"video_id": ""}, "video_id", "''", "a text"),
    "two answers": ({"answer": "yes"}, "anser", "'no', but answer 'yes'", "one answer"),
    "answer is a number": ({"anser": 3}, "anser", "3", "a text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_row_is_named_and_left_out(tmp_path, name):
    change, field, found, expected = BAD[name]
    file = file_of(tmp_path, GOOD, GOOD | {"question_id": 29} | change)
    rows = read_rows(file)
    (problem,) = file.problems
    assert [row.question_id for row in rows] == [28]
    assert problem.severity == "error"
    assert problem.record.startswith("item 2, question_id ")
    assert problem.field in (field, "anser")
    text = str(problem)
    assert found in text
    assert expected in text
    assert text.startswith(str(file.path))
    with pytest.raises(DataError, match="item 2"):
        load_annotations(file.path)


def test_a_missing_answer_is_named(tmp_path):
    file = file_of(tmp_path, {name: value for name, value in GOOD.items() if name != "anser"})
    assert read_rows(file) == []
    assert file.problems[0].found == "neither anser nor answer"


def test_something_that_is_no_object_is_named(tmp_path):
    file = file_of(tmp_path, GOOD, "question", GOOD | {"question_id": 30})
    assert [row.question_id for row in read_rows(file)] == [28, 30]
    assert [(p.record, p.field, p.found) for p in file.problems] == [("item 2", "item", "a JSON str")]


def test_deleted_questions_are_left_out_and_counted(tmp_path):
    file = file_of(tmp_path, GOOD, GOOD | {"question_id": 29, "question_deleted": 1})
    assert [row.question_id for row in read_rows(file)] == [28]
    (problem,) = file.problems
    assert problem.severity == "warning"
    assert problem.found == "1 questions with a value other than 0: 29"


def test_repeated_ids_are_kept_with_a_warning(tmp_path):
    file = file_of(tmp_path, GOOD, GOOD | {"anser": "yes"})
    assert [row.answer for row in read_rows(file)] == ["no", "yes"]
    (problem,) = file.problems
    assert (problem.severity, problem.found) == ("warning", "1 ids occur more than once: 28")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"{", "property name"),
        (b"{}", "a JSON dict"),
        (b"[]", "0 questions"),
        (b'["\xff"]', "byte 0xff"),
    ],
)
def test_a_file_that_is_no_list_of_questions_is_refused(tmp_path, content, found):
    path = tmp_path / "avqa-val.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=found):
        load_annotations(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_annotations(tmp_path / "avqa-val.json")


def test_unknown_words_and_answers_are_named_with_the_nearest(tmp_path):
    file = file_of(tmp_path, GOOD | {"templ_values": '["violine"]', "anser": "noo"})
    check_words(file, read_rows(file), Vocabulary())
    word, answer = file.problems
    assert (word.record, word.field, word.found) == ("question_id 28", "question_content", "'violine'")
    assert "did you mean 'violin'?" in word.action
    assert (answer.field, answer.found) == ("anser", "'noo'")
    assert "did you mean 'no'?" in answer.action


def test_two_blanks_make_an_empty_word_which_is_unknown(tmp_path):
    file = file_of(tmp_path, GOOD | {"question_content": "Is there  a voiceover?", "templ_values": "[]"})
    check_words(file, read_rows(file), Vocabulary())
    assert [(p.field, p.found) for p in file.problems] == [("question_content", "''")]


def test_answers_in_order_of_first_appearance(tmp_path):
    items = [GOOD | {"question_id": i, "anser": answer} for i, answer in enumerate(["no", "two", "no", "yes"])]
    assert answer_vocabulary(load_annotations(file_of(tmp_path, *items).path)) == ("no", "two", "yes")


def test_majority_per_template_takes_the_first_of_a_tie(tmp_path):
    answers = ["b", "a", "a", "b", "c"]
    items = [GOOD | {"question_id": i, "anser": answer} for i, answer in enumerate(answers)]
    other = GOOD | {"question_id": 9, "question_content": "Where?", "templ_values": "[]", "anser": "c"}
    fit = load_annotations(file_of(tmp_path, *items).path)
    rows = load_annotations(file_of(tmp_path, GOOD, other).path)
    assert template_majority(fit, rows) == ["b", "b"]
    assert template_majority([*fit, *rows[1:]], rows) == ["b", "c"]
    with pytest.raises(ValueError, match="no rows"):
        template_majority([], rows)


# --------------------------------------------------------------------------- the published files
@pytest.fixture(scope="module")
def published(real_data: Path) -> dict[str, AnnotationFile]:
    return {
        split: AnnotationFile(real_data / "annotations" / "music_avqa" / f"avqa-{split}.json")
        for split in ("val", "test")
    }


@pytest.mark.realdata
def test_published_files_have_their_sizes_types_and_ids(published):
    rows = {split: read_rows(file) for split, file in published.items()}
    assert {split: len(part) for split, part in rows.items()} == {"val": 4595, "test": 9185}
    counts = Counter(row.type for row in rows["test"])
    assert [counts[kind] for kind in TYPES] == [1022, 601, 1199, 1228, 995, 1274, 927, 1115, 824]
    prefixes = Counter(row.video_id.rstrip("0123456789") for row in rows["test"])
    assert prefixes == {"": 7402, "va": 473, "sa": 472, "eva": 259, "vv": 235, "esa": 223, "evv": 121}
    videos = {split: {row.video_id for row in part} for split, part in rows.items()}
    assert (len(videos["test"]), len(videos["val"]), len(videos["test"] & videos["val"])) == (6399, 3815, 2296)
    assert len({row.template for part in rows.values() for row in part}) == 33


@pytest.mark.realdata
def test_published_questions_are_filled_with_known_words(published):
    words = set()
    for file in published.values():
        rows = read_rows(file)
        assert not any("<" in row.question for row in rows)
        assert all(row.question.endswith(("?", "？")) for row in rows)
        check_words(file, rows, Vocabulary())
        words |= {word for row in rows for word in row.words}
    assert words == set(WORDS[1:])
    test = read_rows(published["test"])
    assert (min(len(row.words) for row in test), max(len(row.words) for row in test)) == (4, 14)
    assert sum(row.question.endswith("？") for row in test) == 430
    assert len(answer_vocabulary(test)) == 41


@pytest.mark.realdata
def test_published_duplicates_are_warned_about_and_nothing_else_is_wrong(published):
    found = {}
    for split, file in published.items():
        file.problems.clear()
        check_words(file, read_rows(file), Vocabulary())
        ((found[split], severity),) = [(p.found.split(":")[0], p.severity) for p in file.problems]
        assert severity == "warning"
    assert found == {"val": "27 ids occur more than once", "test": "55 ids occur more than once"}


@pytest.mark.realdata
def test_published_trivial_predictors(published):
    val, test = (load_annotations(file.path) for file in published.values())
    truth, types = [row.answer for row in test], [row.type for row in test]
    majority = accuracy_by_type(template_majority(val, test), truth, types)
    rounded = {name: round(value, 2) for name, value in majority.items()}
    assert rounded == {
        "audio_counting": 65.46, "audio_comparative": 54.74, "audio": 61.49,
        "visual_counting": 56.80, "visual_location": 27.20, "visual": 41.82,
        "av_existential": 78.89, "av_counting": 56.20, "av_location": 32.69, "av_comparative": 57.67,
        "av_temporal": 28.28, "av": 52.19, "overall": 51.09,
    }  # fmt: skip
    always = accuracy_by_type(["yes"] * len(test), truth, types)
    assert round(always["overall"], 2) == 26.23
    assert sum(answer == "yes" for answer in truth) == 2409
