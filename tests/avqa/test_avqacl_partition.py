"""Partitions, dictionaries, experiences and increments, and the answer list that grows with them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl_avqa.answer_list import AnswerList, new_columns
from avcl_avqa.answers import NUMBERS
from avcl_avqa.benchmarks import SPLIT_AVQA, SPLIT_MUSIC, Benchmark
from avcl_avqa.increments import by_increment, by_type, increment_names, memberships, window
from avcl_avqa.open_records import OpenQuestion
from avcl_avqa.partition import Partition, generated_partition, load_partition
from avcl_avqa.vocabulary import ANSWERS
from avcl_core.errors import ConfigError, DataError

SMALL = Benchmark("small", ("Where", "Which"), 3, 2)
PARTITION = Partition(SMALL, (("a", "b"), ("c", "d"), ("e", "f")), "six letters")
NO_INSTRUMENTS = {
    "no",
    "yes",
    "left",
    "right",
    "middle",
    "indoor",
    "outdoor",
    "simultaneously",
    "more than ten",
    *NUMBERS,
}
INSTRUMENTS = tuple(answer for answer in ANSWERS if answer not in NO_INSTRUMENTS)


def written(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def question(id: str, labels: tuple[str, ...], kind: str = "Where") -> OpenQuestion:
    return OpenQuestion(id, "v", "?", "x", kind, "test", labels)


def test_sizes_of_the_benchmarks():
    assert (SPLIT_AVQA.increments, SPLIT_MUSIC.increments) == (24, 55)
    assert (SPLIT_AVQA.shape, SPLIT_MUSIC.shape) == ("6_20", "11_2")


def test_ids_follow_the_formula():
    music = generated_partition(SPLIT_MUSIC, INSTRUMENTS, 0)
    dictionary = music.dictionary()
    assert len(INSTRUMENTS) == 22
    assert len(dictionary) == 111
    assert list(dictionary.values()) == list(range(111))
    assert list(dictionary)[-1] == "<unk>"
    for type, name in enumerate(SPLIT_MUSIC.types):
        for step, labels in enumerate(music.steps):
            for position, label in enumerate(labels):
                id = 22 * type + 2 * step + position
                assert music.label_id(name, label) == dictionary[f"{name}_{label}"] == id
                assert music.step_of(label) == step


def test_a_generated_partition_is_a_function_of_labels_and_seed():
    one = generated_partition(SPLIT_MUSIC, INSTRUMENTS, 3)
    assert one == generated_partition(SPLIT_MUSIC, INSTRUMENTS[::-1], 3)
    assert sorted(one.labels) == sorted(INSTRUMENTS)
    assert [len(step) for step in one.steps] == [2] * 11
    other = generated_partition(SPLIT_MUSIC, INSTRUMENTS, 4)
    assert other.steps != one.steps
    assert one.name.startswith("generated 11_2 seed 3 sha256 ")
    with pytest.raises(ConfigError, match="found 21 labels, 21 different; expected 22"):
        generated_partition(SPLIT_MUSIC, INSTRUMENTS[1:], 3)
    with pytest.raises(ConfigError, match="found 22 labels, 21 different"):
        generated_partition(SPLIT_MUSIC, (*INSTRUMENTS[1:], INSTRUMENTS[1]), 3)


def test_a_partition_file_with_its_dictionary(tmp_path):
    file = written(tmp_path / "task_partition_3_2.json", PARTITION.steps)
    read = load_partition(file, SMALL, written(tmp_path / "label_dict_3_2.json", PARTITION.dictionary()))
    assert read.steps == PARTITION.steps
    assert read.name.startswith("task_partition_3_2.json sha256 ")


BAD_PARTITIONS = {
    "no list": ({}, "a JSON dict"),
    "no lists": (["a"], "a list of other things than lists"),
    "too few lists": ([["a", "b"], ["c", "d"]], r"lists of \[2, 2\] labels; expected 3 lists of 2 labels each"),
    "short list": ([["a", "b"], ["c"], ["e", "f"]], r"lists of \[2, 1, 2\] labels"),
    "repeated": ([["a", "b"], ["c", "a"], ["e", "f"]], "1 labels repeat: 'a'"),
    "no text": ([["a", "b"], ["c", 4], ["e", "f"]], "partition: found 4; expected labels as texts"),
}


@pytest.mark.parametrize("name", BAD_PARTITIONS)
def test_a_malformed_partition_is_refused(tmp_path, name):
    value, message = BAD_PARTITIONS[name]
    with pytest.raises(DataError, match=message):
        load_partition(written(tmp_path / "p.json", value), SMALL)


def _swapped(ids: dict) -> dict:
    return ids | {"Where_a": 1, "Where_b": 0}


BAD_DICTIONARIES = {
    "no object": (lambda ids: list(ids), "a JSON list"),
    "other ids": (
        _swapped,
        r"2 wrong ids: 'Where_a' = 1 \(not 0\), 'Where_b' = 0 \(not 1\); expected id = 6·type \+ 2·step",
    ),
    "id is a text": (lambda ids: ids | {"Which_f": "11"}, r"1 wrong ids: 'Which_f' = '11' \(not 11\)"),
    "missing": (lambda ids: {k: v for k, v in ids.items() if k != "<unk>"}, "1 entries missing: '<unk>'"),
    "unknown": (lambda ids: ids | {"Where_z": 13}, "1 entries unknown: 'Where_z'"),
}


@pytest.mark.parametrize("name", BAD_DICTIONARIES)
def test_a_dictionary_of_another_partition_is_refused(tmp_path, name):
    change, message = BAD_DICTIONARIES[name]
    file = written(tmp_path / "p.json", PARTITION.steps)
    with pytest.raises(DataError, match=message):
        load_partition(file, SMALL, written(tmp_path / "d.json", change(PARTITION.dictionary())))


def test_experiences_by_type_keep_the_order_of_types_and_questions():
    asked = [question("3", ("a",), "Which"), question("2", ("a",)), question("1", ("a",))]
    assert by_type(SMALL, asked) == {"Where": ("v/2", "v/1"), "Which": ("v/3",)}
    with pytest.raises(ValueError, match="has type When"):
        by_type(SMALL, [question("1", ("a",), "When")])


def test_a_question_belongs_to_every_step_under_the_first_common_label():
    asked = [question("1", ("d", "a", "c")), question("2", ("f",), "Which")]
    found = by_increment(PARTITION, asked)
    assert tuple(found) == increment_names(SMALL)
    assert found == {
        "Where_1": {"v/1": 0},
        "Where_2": {"v/1": 3},
        "Where_3": {},
        "Which_1": {},
        "Which_2": {},
        "Which_3": {"v/2": 11},
    }
    assert memberships(found) == 3


def test_labels_outside_the_partition_are_refused():
    with pytest.raises(ValueError, match="found 'z'; expected labels of six letters"):
        by_increment(PARTITION, [question("1", ("a", "z"))])
    with pytest.raises(ValueError, match="found no label"):
        by_increment(PARTITION, [question("1", ())])


labels = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True).map(tuple)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(labels, st.sampled_from(SMALL.types)), max_size=12))
def test_memberships_are_the_steps_of_labels_and_ids_lie_in_their_window(drawn):
    asked = [question(str(place), shown, kind) for place, (shown, kind) in enumerate(drawn)]
    found = by_increment(PARTITION, asked)
    for place, (name, members) in enumerate(found.items()):
        assert all(id in window(SMALL, place) for id in members.values())
        kind, step = name.rsplit("_", 1)
        there = {q.key for q in asked if q.type == kind and set(q.labels) & set(PARTITION.steps[int(step) - 1])}
        assert set(members) == there


def test_windows_cover_every_id_once():
    ids = [id for increment in range(SPLIT_AVQA.increments) for id in window(SPLIT_AVQA, increment)]
    assert ids == list(range(480))
    assert window(SPLIT_AVQA, 3) == range(60, 80)
    with pytest.raises(ValueError, match="split_avqa has 0 … 23"):
        window(SPLIT_AVQA, 24)


def test_the_answer_list_grows_in_order_of_first_appearance():
    first = AnswerList().grown(["yes", "no", "yes"])
    second = first.grown(["two", "no", "Yes"])
    assert first.answers == ("<unk>", "yes", "no")
    assert second.answers == ("<unk>", "yes", "no", "two", "Yes")
    assert len(second) == 5
    assert second.encode(["no", "three", "two"]).tolist() == [2, 0, 3]


def test_new_answers_are_counted_from_the_old_size():
    new, columns = new_columns(np.array([7, 2, 5, 6]), old=5)
    assert new.tolist() == [True, False, True, True]
    assert columns.tolist() == [2, 0, 1]  # the remainder of division by the three new answers would be [1, 2, 0]
