"""LLP's label files: literal reading of both kinds, and every malformed line is named."""

from pathlib import Path

import numpy as np
import pytest

from avcl_avvp.data import LLP_CLASSES, segment_labels, weak_labels
from avcl_core.errors import DataError

WEAK = ["filename\tevent_labels", "-a_aaaaaaaa_0_10\tDog,Speech", "bbbbbbbbbbb_101.8_111.8\tClapping"]
DENSE = ["filename\tonset\toffset\tevent_labels", "-a_aaaaaaaa_0_10\t0\t4\tDog", "-a_aaaaaaaa_0_10\t3\t5\tDog"]
NAMES = ["-a_aaaaaaaa_0_10", "bbbbbbbbbbb_101.8_111.8"]


def write(folder: Path, lines: list[str], name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_weak_labels_keep_whole_names_in_file_order(tmp_path):
    names, labels = weak_labels(str(write(tmp_path, WEAK)))
    assert names == NAMES
    assert labels.shape == (2, 25)
    assert np.argwhere(labels).tolist() == [[0, 0], [0, 3], [1, 24]]


def test_repeated_label_counts_once(tmp_path):
    _, labels = weak_labels(write(tmp_path, [*WEAK, "ccccccccccc_0_10\tCat,Cat"]))
    assert labels[2].sum() == 1


def test_dense_labels_mark_half_open_spans_and_unite_overlaps(tmp_path):
    marks = segment_labels(write(tmp_path, DENSE), NAMES)
    assert marks.shape == (2, 25, 10)
    assert np.argwhere(marks).tolist() == [[0, 3, second] for second in range(5)]


def test_dense_file_is_read_literally(tmp_path):
    extra = [
        "-a_aaaaaaaa_0_10`\t0\t10\tCat",
        "Baby_cry_infant_cry\t0\t4\tSpeech",
        f"{NAMES[1]}\t9\t0\tCat",
        f"{NAMES[1]}\t5\t5\tCat",
    ]
    file = write(tmp_path, [*DENSE, *extra])
    np.testing.assert_array_equal(
        segment_labels(file, NAMES), segment_labels(write(tmp_path, DENSE, "less.csv"), NAMES)
    )
    assert segment_labels(file, ["-a_aaaaaaaa_0_10`"]).sum() == 10


def test_header_alone_is_a_dense_file_without_events(tmp_path):
    assert segment_labels(write(tmp_path, DENSE[:1]), NAMES).sum() == 0


def test_categories_beside_the_file_replace_the_classes_of_llp(tmp_path):
    write(tmp_path, ["ring", "Dog", "Speech"], "categories.txt")
    _, labels = weak_labels(write(tmp_path, WEAK[:2]))
    np.testing.assert_array_equal(labels, [[0, 1, 1]])
    assert segment_labels(write(tmp_path, DENSE), NAMES).shape == (2, 3, 10)
    with pytest.raises(DataError, match=r"line 3.*'Clapping'"):
        weak_labels(write(tmp_path, WEAK))


@pytest.mark.parametrize(
    ("row", "field", "found"),
    [
        ("ccccccccccc_0_10", "fields", "found 1"),
        ("ccccccccccc_0_10,Dog", "fields", "found 1"),
        ("ccccccccccc_0_10\tDog\tx", "fields", "found 3"),
        ("cccccccccc_0_10\tDog", "filename", "cccccccccc_0_10"),
        ("ccccccccccc\tDog", "filename", "ccccccccccc"),
        ("ccccccccccc_0\tDog", "filename", "ccccccccccc_0"),
        ("bbbbbbbbbbb_101.8_111.8\tDog", "filename", "also in line 3"),
        ("ccccccccccc_0_10\tDogg", "event_labels", "did you mean 'Dog'"),
        ("ccccccccccc_0_10\tDog,", "event_labels", "''"),
    ],
)
def test_malformed_weak_row_is_named(tmp_path, row, field, found):
    with pytest.raises(DataError) as error:
        weak_labels(write(tmp_path, [*WEAK, row]))
    for part in ("labels.csv", "line 4", f"{field}: ", found, "expected"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "field", "found"),
    [
        ("ccccccccccc_0_10\t0\tDog", "fields", "found 3"),
        ("ccccccccccc_0_10\t0\t11\tDog", "offset", "'11'"),
        ("ccccccccccc_0_10\t-1\t3\tDog", "onset", "'-1'"),
        ("ccccccccccc_0_10\t0.5\t3\tDog", "onset", "'0.5'"),
        ("ccccccccccc_0_10\t0\t3\tDogg", "event_labels", "did you mean 'Dog'"),
    ],
)
def test_malformed_dense_row_is_named(tmp_path, row, field, found):
    with pytest.raises(DataError) as error:
        segment_labels(write(tmp_path, [*DENSE, row, DENSE[1], "x"]), NAMES)
    for part in ("labels.csv", "line 4", f"{field}: ", found, "expected", "line 6"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"filename,event_labels\nx,Dog\n", "header"),
        (b"-a_aaaaaaaa_0_10\tDog\n", "header"),
        (b"filename\tevent_labels\n", "header and nothing else"),
        (b"filename\tevent_labels\n\xff_aaaaaaaaa_0_10\tDog\n", "line 2"),
    ],
)
def test_unusable_weak_file_is_named(tmp_path, content, part):
    path = tmp_path / "AVVP_train.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=part) as error:
        weak_labels(path)
    assert "AVVP_train.csv" in str(error.value)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["no such file"]),
        (b"", ["empty"]),
        (b"filename,onset,offset,event_labels\nx,0,1,Dog\n", ["line 1", "header", "separated"]),
        (b"filename\tevent_labels\n", ["line 1", "header", r"onset\toffset"]),
        (b"filename\tonset\toffset\tevent_labels\n\xff_aaaaaaaaa_0_10\t0\t1\tDog\n", ["line 2", "UTF-8"]),
    ],
)
def test_unusable_dense_file_is_named(tmp_path, content, parts):
    path = tmp_path / "AVVP_eval_audio.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        segment_labels(path, NAMES)
    for part in ("AVVP_eval_audio.csv", *parts):
        assert part in str(error.value)
    assert error.value.exit_code == 3


TRAIN_COUNTS = [
    4988,
    624,
    528,
    761,
    192,
    343,
    455,
    218,
    299,
    602,
    186,
    1172,
    437,
    1457,
    495,
    146,
    445,
    224,
    411,
    587,
    503,
    99,
    430,
    291,
    164,
]


@pytest.mark.realdata
def test_golden_counts_of_llp(real_data):
    folder = real_data / "annotations" / "llp"
    splits = {split: weak_labels(folder / f"AVVP_{split}.csv") for split in ("train", "val_pd", "test_pd")}
    assert {split: len(names) for split, (names, _) in splits.items()} == {
        "train": 10_000,
        "val_pd": 649,
        "test_pd": 1_200,
    }
    names = [name for part, _ in splits.values() for name in part]
    assert len({name[:11] for name in names}) == len(names) == 11_849
    assert splits["train"][1].sum(0).tolist() == TRAIN_COUNTS
    assert np.bincount(splits["train"][1].sum(1)).tolist() == [0, 4032, 5879, 89]
    test_names, test = splits["test_pd"]
    assert np.bincount(test.sum(1)).tolist() == [0, 404, 649, 118, 25, 3, 0, 1]  # the repeated Clapping counts once
    assert round(100 * float(test[:, LLP_CLASSES.index("Speech")].mean()), 1) == 52.1
    visual = segment_labels(folder / "AVVP_eval_visual.csv", test_names)
    audio = segment_labels(folder / "AVVP_eval_audio_as_in_forks.csv", test_names)
    assert (visual.sum((1, 2)) == 0).sum() == 121
    assert (audio.sum((1, 2)) == 0).sum() == 6
    dense = audio.any(2) | visual.any(2)
    assert (dense != test.astype(bool)).any(1).sum() == 54


@pytest.mark.realdata
def test_the_three_corrupted_rows_are_the_difference_between_the_copies(real_data):
    folder = real_data / "annotations" / "llp"
    names, _ = weak_labels(folder / "AVVP_test_pd.csv")
    shipped, repaired = (segment_labels(folder / f"AVVP_eval_audio{end}.csv", names) for end in ("_as_in_forks", ""))
    changed = np.argwhere(shipped != repaired)
    assert {names[video] for video, _, _ in changed} == {"JfZEqeLZqWk_30_40", "KvIjsmANkxI_10_20"}
    assert len(changed) == 4 + 3 + 1
