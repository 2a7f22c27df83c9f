"""Every bad input of tasks.md 0.6 and 1.8 is one problem with file, record, field, found and expected, through AVE's layout.

Annotation rows are in test_ave_annotations.py and, across files, in test_ave_layout.py; here are the media, the HDF5 files, the
class names of a data set without a categories.txt, and the prepared form.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avcl_ave import EventOptions, plugin
from avcl_ave.annotations import read_annotations
from avcl_ave.classes import CLASSES
from avcl_ave.data import segment_labels
from avcl_core.data.prepare import prepare
from avcl_core.data.verify import verify, verify_source
from avcl_core.errors import DataError

BELL, CAT = "Church bell&aaaaaaaaaaa&good&0&10", "Cat&bbbbbbbbbbb&good&2&5"
TABLE = [BELL, CAT, "Clock&ccccccccccc&good&0&1"]


def write(folder: Path, name: str, rows: list[str]) -> Path:
    (folder / name).write_text("".join(f"{row}\n" for row in rows))
    return folder / name


def frame(path: Path, mode: str = "RGB") -> None:
    Image.new(mode, (16, 16)).save(path)


@pytest.fixture
def published(tmp_path) -> Path:
    """Three clips as the authors' archives hold them: numbered frames and one array of samples each."""
    root = tmp_path / "ave"
    for clip in "abc":
        (root / "frames" / (clip * 11)).mkdir(parents=True)
        for number in (1, 2, 3):
            frame(root / "frames" / (clip * 11) / f"{number:08d}.jpg")
        (root / "wave").mkdir(exist_ok=True)
        np.save(root / "wave" / f"{clip * 11}.npy", np.full(320_000, 0.1, np.float32))
    write(root, "Annotations.txt", TABLE)
    for split, row in zip(("train", "val", "test"), TABLE, strict=True):
        write(root, f"{split}Set.txt", [row])
    return root


def problems(root: Path):
    return verify_source(plugin.layout(root), "full")


def test_the_published_archives_are_fine_as_they_are(published):
    assert problems(published) == []


MEDIA = {
    "no frame folder": (lambda f, w: shutil.rmtree(f), ("", "1 ids without media: aaaaaaaaaaa")),
    "no wave": (lambda f, w: w.unlink(), ("", "1 ids without media: aaaaaaaaaaa")),
    "empty frame folder": (lambda f, w: [p.unlink() for p in f.iterdir()], ("aaaaaaaaaaa", "0 images")),
    "gap in the numbering": (lambda f, w: (f / "00000002.jpg").unlink(), ("aaaaaaaaaaa", "3 after 1")),
    "truncated image": (
        lambda f, w: (f / "00000003.jpg").write_bytes((f / "00000003.jpg").read_bytes()[:300]),
        ("aaaaaaaaaaa", "00000003.jpg"),
    ),
    "no image": (lambda f, w: (f / "00000001.jpg").write_text("x"), ("aaaaaaaaaaa", "00000001.jpg")),
    "grey image": (lambda f, w: frame(f / "00000002.jpg", "L"), ("aaaaaaaaaaa", "mode L")),
    "wrong dtype": (lambda f, w: np.save(w, np.ones(320_000, np.int16)), ("aaaaaaaaaaa", "int16")),
    "wrong rank": (lambda f, w: np.save(w, np.ones((10, 32_000), np.float32)), ("aaaaaaaaaaa", "shape (10, 32000)")),
    "wrong length": (lambda f, w: np.save(w, np.ones(319_999, np.float32)), ("aaaaaaaaaaa", "319999 samples")),
    "not a number": (
        lambda f, w: np.save(w, np.array([np.nan] * 2 + [0.1] * 319_998, np.float32)),
        ("aaaaaaaaaaa", "2 NaN"),
    ),
    "infinite": (
        lambda f, w: np.save(w, np.array([np.inf] + [0.1] * 319_999, np.float32)),
        ("aaaaaaaaaaa", "1 NaN or inf"),
    ),
    "no array": (lambda f, w: w.write_bytes(b"RIFF"), ("aaaaaaaaaaa", "aaaaaaaaaaa.npy")),
}


@pytest.mark.parametrize("case", MEDIA)
def test_broken_media_are_errors_of_their_clip_and_never_replaced(published, tmp_path, case):
    damage, (record, part) = MEDIA[case]
    damage(published / "frames" / ("a" * 11), published / "wave" / f"{'a' * 11}.npy")
    found = [p for p in problems(published) if p.severity == "error"]
    assert any(p.record == record and part in str(p) for p in found), found
    data = prepare(plugin.layout(published), tmp_path / "prepared", frame_size=16, workers=1)
    assert data.ids == ("b" * 11, "c" * 11)
    clips = plugin.build(EventOptions(), data, "clean").dataset("train")
    with pytest.raises(DataError, match="a" * 11):
        clips.digest(f"{'a' * 11}#00")
    with pytest.raises(DataError, match="a" * 11):
        clips.inputs(f"{'a' * 11}#00", None)


def test_silence_is_a_warning(published):
    np.save(published / "wave" / f"{'a' * 11}.npy", np.zeros(320_000, np.float32))
    (found,) = problems(published)
    assert (found.record, found.severity, found.found) == ("a" * 11, "warning", "only zeros")


def test_damaged_prepared_files_are_named_with_what_to_do(published, tmp_path):
    data = prepare(plugin.layout(published), tmp_path / "prepared", frame_size=16, workers=1)
    copy = data.annotation("test")
    copy.write_text(copy.read_text().replace("0&1", "0&2"))
    assert verify(data.folder, "fast") == []
    (found,) = verify(data.folder, "full")
    assert found.file == str(copy)
    assert (found.field, found.action) == ("sha256", "run `avcl data prepare` again")


# ---------------------------------------------------------------- class names
def test_without_categories_only_the_published_classes_are_known(published):
    edited = [*TABLE, "Churchbell&ddddddddddd&good&0&1"]
    write(published, "Annotations.txt", edited)
    (found,) = [p for p in plugin.layout(published).problems if p.severity == "error"]
    assert (Path(found.file).name, found.record, found.field) == ("Annotations.txt", "line 4", "Category")
    assert "'Churchbell'" in found.found
    assert "did you mean 'Church bell'" in found.action
    write(published, "categories.txt", ["Church bell", "Cat", "Clock", "Churchbell"])
    assert plugin.layout(published).problems == ()


def test_unknown_class_of_a_split_names_the_nearest(published):
    write(published, "valSet.txt", [CAT.replace("Cat", "Cta")])
    (found,) = [p for p in plugin.layout(published).problems if Path(p.file).name == "valSet.txt"]
    assert (found.record, found.field, found.severity) == ("line 1", "Category", "error")
    assert "did you mean 'Cat'" in found.action


def test_unreadable_categories_are_one_problem_not_one_per_row(published):
    own = "Whistle&ddddddddddd&good&0&1"
    write(published, "Annotations.txt", [*TABLE, own])
    write(published, "testSet.txt", [TABLE[2], own])
    shutil.copytree(published / "frames" / ("a" * 11), published / "frames" / ("d" * 11))
    shutil.copy(published / "wave" / f"{'a' * 11}.npy", published / "wave" / f"{'d' * 11}.npy")
    (published / "categories.txt").write_bytes(b"Church bell\n\xff\n")
    (found,) = plugin.layout(published).problems
    assert (Path(found.file).name, found.record, found.field) == ("categories.txt", "line 2", "encoding")


@pytest.mark.realdata
def test_published_classes_are_those_of_the_real_categories(real_data):
    folder = real_data / "annotations" / "ave"
    assert tuple((folder / "categories.txt").read_text().splitlines()) == CLASSES
    found = read_annotations(folder / "Annotations.txt", {})
    assert found.classes == CLASSES


# ---------------------------------------------------------------- warnings of a row
@pytest.mark.parametrize(
    ("row", "field", "found"),
    [
        ("Cat&ddddddddddd&bad&0&10", "Quality", "'bad'"),
        ("Cat&ddddddddddd&good&4&4", "EndTime", "4, equal to StartTime"),
    ],
)
def test_odd_rows_are_warnings_and_kept(published, row, field, found):
    write(published, "Annotations.txt", [*TABLE, row])
    write(published, "testSet.txt", [row])
    noted = [(Path(p.file).name, p.record, p.field, p.found, p.severity) for p in plugin.layout(published).problems]
    assert ("Annotations.txt", "line 4", field, found, "warning") in noted
    assert ("testSet.txt", "line 1", field, found, "warning") in noted
    _, labels = segment_labels(published / "Annotations.txt", published / "testSet.txt")
    assert labels.tolist() == [[1 if field == "Quality" else 3] * 10]


# ---------------------------------------------------------------- HDF5 files
@pytest.fixture
def hdf5():
    """The extra avcl-ave[h5]."""
    return pytest.importorskip("h5py")


def archive(path: Path, **arrays) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


def orders(published: Path, **rows) -> None:
    """Replace split files by order files, as in the authors' tree."""
    for split, order in rows.items():
        (published / f"{split}Set.txt").unlink(missing_ok=True)
        archive(published / f"{split}_order.h5", order=np.asarray(order))


def of_hdf5(published: Path) -> list:
    return [p for p in plugin.layout(published).problems if p.file.endswith(".h5")]


def test_order_files_stand_for_missing_split_files(published, tmp_path, hdf5):
    wanted = segment_labels(published / "Annotations.txt", write(tmp_path, "trainSet.txt", [TABLE[2], TABLE[0]]))
    orders(published, train=[2, 0], test=[1])
    found = segment_labels(published / "Annotations.txt", published / "train_order.h5")
    assert found[0] == wanted[0] == ["c" * 11, "a" * 11]
    np.testing.assert_array_equal(found[1], wanted[1])
    write(published, "valSet.txt", ["Clock&ddddddddddd&good&0&1"])
    write(published, "Annotations.txt", [*TABLE, "Clock&ddddddddddd&good&0&1"])
    assert of_hdf5(published) == []
    data = prepare(plugin.layout(published), tmp_path / "prepared", frame_size=16, workers=1)
    (experience,) = plugin.build(EventOptions(), data, "clean").experiences()
    assert experience.train == ("ccccccccccc#02", "aaaaaaaaaaa#00")
    assert experience.test == ("bbbbbbbbbbb#01",)


@pytest.mark.parametrize(
    ("order", "record", "found"),
    [
        ([0, 3], "line 2", "3"),
        ([-1], "line 1", "-1"),
        ([0.0], "", "float64 of shape (1,)"),
        ([[0]], "", "int64 of shape (1, 1)"),
        (np.zeros(0, int), "", "int64 of shape (0,)"),
    ],
)
def test_wrong_order_files_are_named(published, hdf5, order, record, found):
    orders(published, train=order)
    (problem,) = of_hdf5(published)
    assert (Path(problem.file).name, problem.record, problem.field) == ("train_order.h5", record, "order")
    assert (problem.found, problem.severity) == (found, "error")


def test_unreadable_hdf5_files_are_named(published, hdf5):
    orders(published, train=[0])
    archive(published / "train_order.h5", other=np.zeros(1))
    (published / "labels.h5").touch()
    (problem,) = of_hdf5(published)
    assert (Path(problem.file).name, problem.field, problem.severity) == ("train_order.h5", "order", "error")
    orders(published, train=[0])
    (problem,) = of_hdf5(published)
    assert (Path(problem.file).name, problem.field, problem.severity) == ("labels.h5", "avadataset", "error")


def test_without_the_extra_its_name_is_in_the_text(published, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (published / "mil_labels.h5").touch()
    (problem,) = of_hdf5(published)
    assert problem.severity == "warning"
    assert "install the extra avcl-ave[h5]" in problem.action
    (published / "trainSet.txt").unlink()
    (published / "train_order.h5").touch()
    (problem,) = of_hdf5(published)
    assert (Path(problem.file).name, problem.severity) == ("train_order.h5", "error")
    assert "install the extra avcl-ave[h5]" in problem.action


def test_background_clips_without_video_ids_are_a_warning(published):
    (published / "labels_noisy.h5").touch()
    (problem,) = of_hdf5(published)
    assert (Path(problem.file).name, problem.found, problem.severity) == (
        "labels_noisy.h5",
        "labels without video ids",
        "warning",
    )
