"""What is wrong across AVE's rows and files is a problem with file, line and severity; `clean` removes leaking rows."""

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from avcl_ave import plugin
from avcl_ave.annotations import read_annotations
from avcl_ave.dataset import EventData
from avcl_core.errors import DataError


@pytest.fixture
def copy(ave_root, tmp_path) -> Path:
    return Path(shutil.copytree(ave_root, tmp_path / "ave"))


def edit(path: Path, change) -> list[str]:
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("".join(f"{line}\n" for line in lines))
    return lines


def found(root: Path) -> list[tuple[str, str, str, str]]:
    return [(Path(p.file).name, p.record, p.field, p.severity) for p in plugin.layout(root).problems]


def stub(folder: Path) -> SimpleNamespace:
    """Annotation files as prepared data offers them, without media."""
    names = {"annotations": "Annotations.txt", "train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}
    return SimpleNamespace(layout="ave", folder=folder, annotation=lambda name: folder / names[name])


def test_labels_folder_frames_and_waves_are_a_variant_of_the_layout(copy):
    (copy / "labels").mkdir()
    for name in ("Annotations.txt", "trainSet.txt", "valSet.txt", "testSet.txt", "categories.txt"):
        (copy / name).rename(copy / "labels" / name)
    ids = [path.stem for path in (copy / "AVE").iterdir()]
    shutil.rmtree(copy / "AVE")
    for video in ids:
        (copy / "frames" / video).mkdir(parents=True)
    (copy / "wave").mkdir()
    for video in ids:
        np.save(copy / "wave" / f"{video}.npy", np.zeros(3, np.float32))
    layout = plugin.layout(copy)
    assert layout.problems == ()
    assert layout.annotations["annotations"] == copy / "labels" / "Annotations.txt"
    assert {(clip.picture, clip.sound) for clip in layout.clips} == {
        (copy / "frames" / video, copy / "wave" / f"{video}.npy") for video in ids
    }


def test_media_without_rows_and_rows_without_media(copy):
    first, second, *_ = sorted((copy / "AVE").iterdir())
    first.rename(copy / "AVE" / "zzzzzzzzzzz.mp4")
    second.unlink()
    assert found(copy) == [("ave", "", "media", "error"), ("ave", "", "media", "warning")]
    lost, spare = plugin.layout(copy).problems
    assert "2 ids without media" in lost.found
    assert first.stem in lost.found
    assert second.stem in lost.found
    assert "1 ids without annotation: zzzzzzzzzzz" in spare.found
    assert len(plugin.layout(copy).clips) == 14


def test_without_any_media_there_are_no_clips(copy):
    shutil.rmtree(copy / "AVE")
    assert plugin.layout(copy).clips == ()


def test_every_malformed_row_is_a_problem(copy):
    def damage(lines):
        lines[2] = lines[2].replace("good", "bad")
        lines[4] += "0"
        lines[5] = lines[5].replace("&", ",")

    edit(copy / "Annotations.txt", damage)
    edit(copy / "valSet.txt", lambda lines: lines.insert(0, lines[0].rsplit("&", 1)[0]))
    problems = found(copy)
    assert ("Annotations.txt", "line 3", "Quality", "warning") in problems
    assert ("Annotations.txt", "line 6", "fields", "error") in problems
    assert ("valSet.txt", "line 1", "fields", "error") in problems
    # Split lines whose annotation row is unusable are no annotation rows.
    assert ("trainSet.txt", "line 5", "row", "error") in problems


@pytest.mark.parametrize("name", ["Annotations.txt", "trainSet.txt", "testSet.txt", "categories.txt"])
def test_unreadable_files_are_problems(copy, name):
    (copy / name).write_bytes(b"\xff\xfe")
    assert (name, "line 1", "encoding", "error") in found(copy)
    (copy / name).unlink()
    expected = [] if name == "categories.txt" else [(name, "", "file", "error")]
    assert [problem for problem in found(copy) if problem[0] == name] == expected


def test_class_order_must_be_that_of_categories(copy):
    edit(copy / "categories.txt", lambda lines: lines.insert(1, lines.pop(2)))
    assert found(copy) == [("Annotations.txt", "line 3", "Category", "error")]


def test_category_without_a_row_is_a_warning(copy):
    edit(copy / "categories.txt", lambda lines: lines.insert(1, "Silence"))
    assert found(copy) == [("Annotations.txt", "", "Category", "warning")]


def test_repeated_rows_are_errors_with_both_places(copy):
    first = (copy / "trainSet.txt").read_text().splitlines()[0]
    edit(copy / "trainSet.txt", lambda lines: lines.append(first))
    assert found(copy) == [("trainSet.txt", "line 11", "VideoID", "error")]
    assert "line 1 of trainSet.txt" in plugin.layout(copy).problems[0].found


def test_an_id_in_two_splits(copy):
    """Training rows that leak are warnings, which clean leaves out; validation and test must not share an id."""
    train, val = ((copy / f"{split}Set.txt").read_text().splitlines() for split in ("train", "val"))
    category, _, *rest = train[3].split("&")
    leaking = "&".join([category, val[0].split("&")[1], *rest])
    for name in ("trainSet.txt", "Annotations.txt"):
        edit(copy / name, lambda lines: lines.append(leaking))
    assert found(copy) == [("trainSet.txt", "line 11", "VideoID", "warning")]
    clean, paper = EventData(stub(copy), "clean"), EventData(stub(copy), "paper")
    assert set(paper.keys("train")) - set(clean.keys("train")) == {f"{leaking.split('&')[1]}#03"}
    assert clean.note.startswith("1 of 11 training rows left out")
    edit(copy / "testSet.txt", lambda lines: lines.append(leaking))
    assert ("testSet.txt", "line 3", "VideoID", "error") in found(copy)
    with pytest.raises(DataError, match=r"testSet.txt \[line 3\]"):
        EventData(stub(copy), "clean")


def test_redundant_files_are_compared(copy):
    h5py = pytest.importorskip("h5py")
    splits = ("train", "val", "test")
    rows = read_annotations(copy / "Annotations.txt", {split: copy / f"{split}Set.txt" for split in splits})
    ids, places = [row.video for row in rows.rows], np.arange(len(rows.rows))
    classes = np.array([rows.classes.index(row.category) for row in rows.rows])
    events = np.zeros((len(ids), 10), int)
    for place, row in enumerate(rows.rows):
        events[place, row.start : row.end] = 1
    labels = np.zeros((len(ids), 10, 9), np.float32)
    labels[places[:, None], np.arange(10), np.where(events, classes[:, None], 8)] = 1
    clip = np.zeros((len(ids), 9))
    clip[places, classes] = 1
    content = {"labels": labels, "labels_closs": events, "mil_labels": clip}
    content |= {f"{split}_order": np.array([ids.index(row.video) for row in rows.splits[split]]) for split in splits}

    def written(**changed):
        for name, values in (content | changed).items():
            with h5py.File(copy / f"{name}.h5", "w") as file:
                file["order" if name.endswith("order") else "avadataset"] = values
        return [(Path(p.file).name, p.record, p.severity) for p in plugin.layout(copy).problems]

    assert written() == []
    for name, place in {"labels": (5, 3), "labels_closs": (4, 9), "mil_labels": (2, 8), "train_order": (1,)}.items():
        wrong = content[name].copy()
        wrong[place] = 1 - wrong[place] if name != "train_order" else 7
        assert written(**{name: wrong}) == [(f"{name}.h5", f"row {place[0]}", "error")]
        assert written(**{name: content[name][1:]}) == [(f"{name}.h5", "", "error")]


@pytest.mark.realdata
def test_real_ave_has_only_its_known_warnings(real_data):
    problems = plugin.layout(real_data / "annotations" / "ave").problems
    counts = Counter((Path(p.file).name, p.field, p.severity) for p in problems)
    assert counts == {
        ("Annotations.txt", "EndTime", "warning"): 1,
        ("trainSet.txt", "EndTime", "warning"): 1,
        ("trainSet.txt", "VideoID", "warning"): 19,
        ("ave", "media", "error"): 1,
    }
    assert "4097 ids without media" in problems[-1].found


@pytest.mark.realdata
def test_protocols_of_real_ave(real_data):
    folder = real_data / "annotations" / "ave"
    clean, paper = (EventData(stub(folder), protocol) for protocol in ("clean", "paper"))
    sizes = [[len(data.keys(split)) for split in ("train", "val", "test")] for data in (clean, paper)]
    assert sizes == [[3320, 402, 402], [3339, 402, 402]]
    assert clean.classes == tuple((folder / "categories.txt").read_text().splitlines())
    assert clean.note.startswith("19 of 3339")
