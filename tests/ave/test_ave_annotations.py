"""AVE's annotation files: labels follow the row's own fields, and every malformed line is named."""

from pathlib import Path

import numpy as np
import pytest

from avcl_ave.data import segment_labels
from avcl_core.errors import DataError

HEADER = "Category&VideoID&Quality&StartTime&EndTime"
ROWS = [
    "Church bell&aaaaaaaaaaa&good&0&10",
    "Violin, fiddle&bbbbbbbbbbb&good&2&5",
    "Cat&ccccccccccc&good&9&10",
    "Cat&bbbbbbbbbbb&good&0&1",
    "Church bell&-dd_ddddddd&good&0&0",
]


def write(folder: Path, name: str, lines: list[str], end: str = "\n") -> Path:
    path = folder / name
    path.write_bytes((end.join(lines) + end).encode())
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path, "Annotations.txt", [HEADER, *ROWS]), write(tmp_path, "trainSet.txt", ROWS[::-1])


def test_rows_come_in_split_order_with_their_own_label_and_span(files):
    ids, labels = segment_labels(*files)
    assert ids == ["-dd_ddddddd", "bbbbbbbbbbb", "ccccccccccc", "bbbbbbbbbbb", "aaaaaaaaaaa"]
    expected = [[3] * 10, [2] + [3] * 9, [3] * 9 + [2], [3, 3, 1, 1, 1, 3, 3, 3, 3, 3], [0] * 10]
    assert labels.dtype.kind == "i"
    np.testing.assert_array_equal(labels, expected)


def test_header_is_detected_by_its_text(tmp_path, files):
    headerless = write(tmp_path, "no_header.txt", ROWS)
    np.testing.assert_array_equal(segment_labels(headerless, files[1])[1], segment_labels(*files)[1])


def test_paths_may_be_strings_and_lines_may_end_in_carriage_returns_or_lack_a_last_newline(tmp_path, files):
    crlf = write(tmp_path, "crlf.txt", [HEADER, *ROWS], "\r\n")
    bare = tmp_path / "bare.txt"
    bare.write_text("\n".join(ROWS[::-1]))
    np.testing.assert_array_equal(segment_labels(str(crlf), str(bare))[1], segment_labels(*files)[1])


def test_domain_column_is_ignored(tmp_path, files):
    wide = write(tmp_path, "wide.txt", [f"{line}&Domain" for line in [HEADER, *ROWS]])
    np.testing.assert_array_equal(segment_labels(wide, files[1])[1], segment_labels(*files)[1])


@pytest.mark.parametrize(
    ("row", "field", "found"),
    [
        ("Cat&ccccccccccc&good&9", "fields", "found 4"),
        ("Cat,ccccccccccc,good,1,2", "fields", "found 1"),
        ("Cat&ccccccccccc&good&1&2&x&y", "fields", "found 7"),
        ("", "fields", "found 1"),
        ("Cat&cccccccccc&good&1&2", "VideoID", "10 characters"),
        ("Cat&ccccccccccc&good&one&2", "StartTime", "'one'"),
        ("Cat&ccccccccccc&good&1.0&2", "StartTime", "'1.0'"),
        ("Cat&ccccccccccc&good&-1&2", "StartTime", "'-1'"),
        ("Cat&ccccccccccc&good&1&11", "EndTime", "'11'"),
        ("Cat&ccccccccccc&good&5&4", "EndTime", "4 before StartTime 5"),
        ("&ccccccccccc&good&1&2", "Category", "nothing"),
    ],
)
def test_malformed_row_is_named(tmp_path, files, row, field, found):
    broken = write(tmp_path, "broken.txt", [HEADER, *ROWS[:3], row, *ROWS[3:]])
    with pytest.raises(DataError) as error:
        segment_labels(broken, files[1])
    message = str(error.value)
    for part in ("broken.txt", "line 5", f"{field}: ", found, "expected"):
        assert part in message
    assert "\n" not in message


def test_every_malformed_row_is_named(tmp_path, files):
    broken = write(tmp_path, "broken.txt", [*ROWS, "Cat&x&good&0&10", "Cat&ccccccccccc&good&0&99", "Cat"])
    with pytest.raises(DataError, match=r"line 6.*line 7.*line 8"):
        segment_labels(broken, files[1])


def test_class_names_are_checked_against_categories_beside_the_annotations(tmp_path, files):
    write(tmp_path, "categories.txt", ["Church bell", "Violin, fiddle", "Cat"])
    segment_labels(*files)
    write(tmp_path, "categories.txt", ["Church bell", "Violin, fiddles", "Cat"])
    with pytest.raises(DataError, match=r"line 3.*Category.*did you mean 'Violin, fiddles'"):
        segment_labels(*files)


def test_split_row_must_be_an_annotation_row(tmp_path, files):
    foreign = write(tmp_path, "testSet.txt", [ROWS[0], "Cat&ccccccccccc&good&8&10"])
    with pytest.raises(DataError, match=r"testSet.txt \[line 2\].*Annotations.txt"):
        segment_labels(files[0], foreign)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"Cat&ok\nCaf\xe9&x", "line 2"),
        (b"Category&VideoID&Quality&StartTime&EndTime\n", "header"),
    ],
)
def test_unreadable_file_is_named(tmp_path, files, content, part):
    path = tmp_path / "valSet.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=part) as error:
        segment_labels(files[0], path)
    assert "valSet.txt" in str(error.value)


GOLDEN = {"train": (3339, 27759, 0.668, 0.0399), "val": (402, 3288, 0.642, 0.0418), "test": (402, 3305, 0.649, 0.0348)}


@pytest.mark.realdata
@pytest.mark.parametrize("split", GOLDEN)
def test_golden_values_of_ave(real_data, split):
    folder = real_data / "annotations" / "ave"
    ids, labels = segment_labels(folder / "Annotations.txt", folder / f"{split}Set.txt")
    rows, foreground, whole, church_bell = GOLDEN[split]
    assert len(ids) == len(labels) == rows
    assert (labels < 28).sum() == foreground
    assert round(float((labels < 28).all(1).mean()), 3) == whole
    assert round(float((labels == 0).mean()), 4) == church_bell
    assert labels.min() == 0
    assert labels.max() == 28


@pytest.mark.realdata
def test_repeated_ids_and_classes_of_ave(real_data):
    folder = real_data / "annotations" / "ave"
    lines = (folder / "Annotations.txt").read_text().splitlines()[1:]
    everything = folder / "Annotations.txt"
    ids, labels = segment_labels(everything, everything)
    assert len(ids) == 4143
    assert len(set(ids)) == 4097
    categories = (folder / "categories.txt").read_text().splitlines()
    counts = [sum(line.startswith(f"{name}&") for line in lines) for name in categories]
    assert counts[:3] == [188, 176, 171]
    assert min(counts) == counts[22] == 60
    row = ids.index("VWi2ENBuTbw")
    np.testing.assert_array_equal(labels[row], [28] * 10)
    foreground = [line.split("&") for line in lines]
    rebuilt = [categories.index(fields[0]) for fields in foreground]
    seen = [min(row) if min(row) < 28 else 0 for row in labels.tolist()]
    assert seen == rebuilt
