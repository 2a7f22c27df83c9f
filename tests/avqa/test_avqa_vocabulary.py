"""The frozen lists, and lists that a data set brings: doubled files, missing files, repetitions."""

from pathlib import Path

import numpy as np
import pytest

from avcl_avqa.vocabulary import ANSWERS, PAD, WORDS, Vocabulary, read_list, vocabulary_beside
from avcl_core.data.records import AnnotationFile


def written(path: Path, *lines: str) -> AnnotationFile:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return AnnotationFile(path)


def test_frozen_lists_have_their_published_places():
    assert len(ANSWERS) == len(set(ANSWERS)) == 42
    assert len(WORDS) == len(set(WORDS)) == 93
    places = {"two": 0, "more than ten": 20, "acoustic_guitar": 30, "ten": 33, "simultaneously": 36, "suona": 41}
    assert {word: ANSWERS.index(word) for word in places} == places
    places = {
        PAD: 0,
        "How": 1,
        "leftest": 14,
        "acoustic_guitar": 52,
        "electric_bass": 55,
        "fourth": 87,
        "throughout": 92,
    }
    assert {word: WORDS.index(word) for word in places} == places


def test_encoding_pads_at_the_end():
    encoded = Vocabulary(words=(PAD, "a", "b")).encode(["b", "a", "b"])
    assert encoded.dtype == np.int64
    assert encoded.tolist() == [2, 1, 2] + [0] * 11
    with pytest.raises(ValueError, match="not in"):
        Vocabulary(words=(PAD,)).encode(["b"])


def test_a_list_that_stands_twice_counts_once(tmp_path):
    file = written(tmp_path / "words", "a", "b", "c", "a", "b", "c")
    assert read_list(file) == ["a", "b", "c"]
    assert file.problems == []


@pytest.mark.parametrize(
    "lines", [("a", "b", "a"), ("a", "b", "c", "b", "a", "c"), ("a", "a", "b"), ("a", "b", "b", "a")]
)
def test_any_other_repetition_is_an_error(tmp_path, lines):
    file = written(tmp_path / "words", *lines)
    read_list(file)
    problem = file.problems[0]
    assert problem.severity == "error"
    assert "also in line" in problem.found
    assert problem.record == f"line {next(i for i, w in enumerate(lines) if w in lines[:i]) + 1}"


def test_an_empty_line_is_an_error(tmp_path):
    file = written(tmp_path / "words", "a", "", "b")
    read_list(file)
    assert [(p.record, p.found) for p in file.problems] == [("line 2", "an empty line")]


def test_lists_beside_the_questions_are_used(tmp_path):
    written(tmp_path / "ans_vocab.txt", "yes", "no")
    written(tmp_path / "ques_vocab.txt", "Is", "it", "Is", "it")
    vocabulary, files = vocabulary_beside(tmp_path)
    assert vocabulary == Vocabulary(("yes", "no"), (PAD, "Is", "it"))
    assert [file.path.name for file in files] == ["ans_vocab.txt", "ques_vocab.txt"]
    assert not any(file.problems for file in files)


def test_published_lists_keep_their_frozen_order(tmp_path):
    assert vocabulary_beside(tmp_path) == (Vocabulary(), [])
    written(tmp_path / "ans_vocab.txt", *sorted(ANSWERS))
    written(tmp_path / "ques_vocab.txt", *sorted(WORDS[1:]))
    assert vocabulary_beside(tmp_path)[0] == Vocabulary(ANSWERS, WORDS)


def test_padding_stands_first_or_nowhere(tmp_path):
    written(tmp_path / "ques_vocab.txt", "Is", PAD, "it")
    _, (file,) = vocabulary_beside(tmp_path)
    assert [p.record for p in file.problems] == ["line 2"]


def test_an_empty_list_file_is_an_error(tmp_path):
    written(tmp_path / "ans_vocab.txt")
    _, (file,) = vocabulary_beside(tmp_path)
    assert [p.found for p in file.problems] == ["an empty file"]
