"""The released AVQACL files and MUSIC-AVQA's own: sizes, first rows, test questions per step, and conversion byte by byte."""

from collections import Counter
from pathlib import Path

import pytest

from avcl_avqa.benchmarks import SPLIT_AVQA, Source
from avcl_avqa.conversations import load_conversations, read_conversations
from avcl_avqa.conversion import write_conversations
from avcl_avqa.increments import by_increment, by_type, memberships
from avcl_avqa.json_records import read_json
from avcl_avqa.media_paths import MediaPaths
from avcl_avqa.music_types import load_music_types
from avcl_avqa.open_records import OpenQuestion
from avcl_avqa.partition import Partition, generated_partition, load_partition
from avcl_avqa.split_avqa import load_split_avqa
from avcl_core.data.records import AnnotationFile
from avcl_core.errors import DataError

pytestmark = pytest.mark.realdata
PUBLISHED = "/path/to/dataset_QA/AVQA_dataset/frames_converted_2"
WHERE = Source("test", "Where")


@pytest.fixture
def folder(real_data: Path) -> Path:
    return real_data / "annotations" / "split_avqa"


@pytest.fixture
def partition(folder: Path) -> Partition:
    return load_partition(folder / "task_partition_6_20.json", SPLIT_AVQA, folder / "label_dict_6_20.json")


@pytest.fixture
def released(folder: Path) -> list[OpenQuestion]:
    return read_conversations(AnnotationFile(folder / "avqacl_moe_test_Where.json"), WHERE)


def test_the_published_partition_gives_the_published_dictionary(folder, partition):
    assert partition.labels[:3] == ("wind rustling leaves", "splashing water", "sheep bleating")
    dictionary = partition.dictionary()
    assert dictionary == read_json(AnnotationFile(folder / "label_dict_6_20.json"), "a dictionary")
    ids = [dictionary[name] for name in ("Come_From_wind rustling leaves", "Which_bird chirping", "<unk>")]
    assert (len(dictionary), ids) == (481, [0, 479, 480])
    labels = read_json(AnnotationFile(folder / "common_label_set_120.json"), "labels")
    assert sorted(labels) == sorted(partition.labels)
    assert sorted(generated_partition(SPLIT_AVQA, labels, 0).labels) == sorted(labels)


def test_test_questions_per_type_and_step(folder, partition):
    questions = [q for name in ("Happening", "Where") for q in load_split_avqa(folder / f"test_{name}.json", partition)]
    assert {name: len(keys) for name, keys in by_type(SPLIT_AVQA, questions).items() if keys} == {
        "Happening": 931,
        "Where": 757,
    }
    found = by_increment(partition, questions)
    assert [len(found[f"Happening_{step}"]) for step in range(1, 7)] == [319, 63, 162, 81, 182, 124]
    assert [len(found[f"Where_{step}"]) for step in range(1, 7)] == [107, 170, 100, 144, 106, 130]
    assert memberships(found) == len(questions)


def test_the_first_row(folder, partition):
    first = load_split_avqa(folder / "test_Where.json", partition)[0]
    assert (first.key, first.question) == ("5BHRbfdI3zo/6549", "Where is the car driving in this video?")
    assert (first.answer, first.labels) == ("highway", ("fire truck siren",))
    assert first.labels[0] in partition.steps[partition.step_of("fire truck siren")]


def test_conversion_gives_the_released_file_byte_by_byte(folder, released, tmp_path):
    questions = load_split_avqa(folder / "test_Where.json")
    keys = {question.key for question in released}
    lost = [question for question in questions if question.key not in keys]
    assert (len(released), len(lost)) == (749, 8)
    assert all(question.video[0] == "P" for question in lost)
    write_conversations(tmp_path / "x.json", [q for q in questions if q.key in keys], PUBLISHED)
    assert (tmp_path / "x.json").read_bytes() == (folder / "avqacl_moe_test_Where.json").read_bytes()


def test_released_paths_are_placeholders(folder, tmp_path):
    path = folder / "avqacl_moe_test_Where.json"
    with pytest.raises(DataError, match=f"6741 of 6741 paths with the placeholder /path/to, all below {PUBLISHED};"):
        load_conversations(path, MediaPaths(), WHERE)
    with pytest.raises(DataError, match="6741 of 6741 files are missing; the first 20: "):
        load_conversations(path, MediaPaths(tmp_path, ((PUBLISHED, "."),)), WHERE)


def test_the_demo_file_has_no_benchmark_records(folder):
    file = AnnotationFile(folder / "avqacl_moe_samples.json")
    assert read_conversations(file, WHERE) == []
    assert Counter(problem.field for problem in file.problems)["id"] == 5
    assert "8 turns" in next(problem.found for problem in file.problems if problem.field == "conversations")


def test_question_types_of_the_original_music_avqa(real_data):
    found = load_music_types(real_data / "annotations" / "music_avqa", ("val", "test"))
    count = Counter((question.split, question.type) for question in found.questions)
    types = ("Counting", "Existential", "Location", "Comparative", "Temporal")
    assert [count["val", name] for name in types] == [472, 449, 353, 486, 320]
    assert [count["test", name] for name in types] == [949, 894, 712, 972, 638]
    assert len({question.key for question in found.questions}) == len(found.questions) == 2080 + 4165
