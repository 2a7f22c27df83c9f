"""Metadata files: read by position and by the column `split`, and every malformed row is named with what to do."""

from pathlib import Path

import pytest

from avcl_avs.annotations import PUBLISHED, read_annotations
from avcl_avs.data import CATEGORIES, read_rows
from avcl_core.data.problems import Problem
from avcl_core.data.records import AnnotationFile

HEAD = "name,start,label,split"
GOOD = "v1,3,race_car,train"


def read(path: Path, setting, text: str | bytes, categories=()) -> tuple[list, list[Problem]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    file = AnnotationFile(path)
    rows = file.collect(lambda file: read_rows(file, setting, categories))
    return rows, file.problems


def test_rows_are_read_by_position_and_split_by_name(tmp_path):
    text = '\ufeffx,y,z,split,note\r\n"v1",3,race_car,train,a\r\nv2,0,lawn_mowing,test,b\r\n'
    rows, problems = read(tmp_path / "s4_meta_data.csv", "s4", text)
    assert problems == []
    assert [(row.id, row.split, row.category, row.annotated, row.place) for row in rows] == [
        ("s4/v1", "train", "race_car", 1, "train/race_car"),
        ("s4/v2", "test", "lawn_mowing", 5, "test/lawn_mowing"),
    ]
    rows, problems = read(tmp_path / "ms3_meta_data.csv", "ms3", "video_id,split\nv1,train\n")
    assert problems == []
    assert [(row.id, row.annotated, row.place, row.category) for row in rows] == [("ms3/v1", 5, "train", "")]


def test_published_categories_are_23():
    assert len(set(CATEGORIES)) == 23
    assert PUBLISHED == {"s4": (3452, 740, 740), "ms3": (296, 64, 64)}
    assert sum(PUBLISHED["s4"]) == 4932


@pytest.mark.parametrize(
    ("text", "line", "field", "found", "expected"),
    [
        ("", "", "content", "an empty file", "annotation rows"),
        (b"name,start,label,split\nv\xff1,3,race_car,train\n", "line 2", "encoding", "byte 0xff", "UTF-8"),
        (f"{HEAD}\n", "", "rows", "a header and nothing else", "at least one"),
        ("name,start,label,part\nv1,3,race_car,train\n", "line 1", "header", "name, start, label, part", "named split"),
        (f"{HEAD}\n{GOOD}\n".replace(",", ";"), "line 1", "header", "name;start;label;split", "named split"),
        (f"{HEAD}\n{GOOD}\nv2,3,race_car\n", "line 3", "fields", "3", "4 separated by commas"),
        (f"{HEAD}\nv1,3,race_car,dev\n", "line 2", "split", "'dev'", "train, val, test"),
        (f"{HEAD}\nv1,3,racing_car,val\n", "line 2", "category", "'racing_car'", "one of 23"),
        (f"{HEAD}\n,3,race_car,val\n", "line 2", "video", "''", "a file name"),
        (f"{HEAD}\n../v1,3,race_car,val\n", "line 2", "video", "'../v1'", "without folders"),
        (f"{HEAD}\n{GOOD}\n{GOOD}\n", "line 3", "video", "v1, also in line 2 (train)", "once"),
        (f"{HEAD}\n{GOOD}\nv1,3,race_car,test\n", "line 3", "video", "v1, also in line 2 (train)", "in one split"),
    ],
)
def test_malformed_rows_are_named(tmp_path, text, line, field, found, expected):
    rows, problems = read(tmp_path / "s4_meta_data.csv", "s4", text)
    (problem,) = problems
    assert problem.file.endswith("s4_meta_data.csv")
    assert (problem.record, problem.field, problem.severity) == (line, field, "error")
    assert found in problem.found
    assert expected in problem.expected
    assert problem.action
    assert [row.video for row in rows] == (["v1"] if line == "line 3" else [])


def test_nearest_names_are_offered(tmp_path):
    _, problems = read(tmp_path / "m.csv", "s4", f"{HEAD}\nv1,3,racing_car,vall\n")
    assert "did you mean 'val'?" in problems[0].action
    assert "did you mean 'race_car'?" in problems[1].action


def test_all_files_together_and_classes_of_a_generated_world(tmp_path):
    single, multiple, names = (tmp_path / name for name in ("s4.csv", "ms3.csv", "categories.txt"))
    single.write_text(f"{HEAD}\nv1,0,buzz-ball,train\n")
    multiple.write_text("name,split\nv1,train\n")
    names.write_text("buzz-ball\n")
    found = read_annotations({"s4": single, "ms3": multiple}, names)
    assert found.problems == ()
    # The same video may be in both settings: the ids differ.
    assert [row.id for part in found.rows.values() for row in part] == ["s4/v1", "ms3/v1"]
    unknown = read_annotations({"s4": single, "ms3": multiple}, None)
    assert [(p.field, p.severity) for p in unknown.problems] == [("category", "error"), ("videos per split", "warning")]
    assert unknown.problems[1].found == "1 / 0 / 0"
    assert "296 / 64 / 64, as published" in unknown.problems[1].expected
    names.write_text("")
    assert read_annotations({"ms3": multiple}, names).problems[0].field == "content"
