"""What is wrong across LLP's rows and files is a problem with file, line and severity; protocols treat known defects."""

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from avcl_avvp import plugin
from avcl_avvp.data import segment_labels
from avcl_avvp.dataset import ParsingData
from avcl_core.errors import DataError

FILES = {
    "train": "AVVP_train.csv",
    "val": "AVVP_val_pd.csv",
    "test": "AVVP_test_pd.csv",
    "audio": "AVVP_eval_audio.csv",
    "visual": "AVVP_eval_visual.csv",
}


@pytest.fixture
def copy(avvp_root, tmp_path) -> Path:
    return Path(shutil.copytree(avvp_root, tmp_path / "llp"))


def edit(path: Path, change) -> list[str]:
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("".join(f"{line}\n" for line in lines))
    return lines


def found(root: Path) -> list[tuple[str, str, str, str]]:
    return [(Path(p.file).name, p.record, p.field, p.severity) for p in plugin.layout(root).problems]


def stub(folder: Path, **other: str) -> SimpleNamespace:
    """Label files as prepared data offers them, without media."""
    names = {**FILES, **other}
    return SimpleNamespace(layout="avvp", folder=folder, extras=(), annotation=lambda name: folder / names[name])


def test_labels_folder_frames_and_waves_are_a_variant_of_the_layout(copy):
    (copy / "labels").mkdir()
    for name in (*FILES.values(), "categories.txt"):
        (copy / name).rename(copy / "labels" / name)
    media = copy / "LLP_dataset"
    ids = [path.stem for path in (media / "video").iterdir()]
    shutil.rmtree(media / "video")
    (media / "wave").mkdir()
    for video in ids:
        (media / "frame" / video).mkdir(parents=True)
        for number in range(1, 11):
            (media / "frame" / video / f"{number:08d}.jpg").touch()
        np.save(media / "wave" / f"{video}.npy", np.zeros(3, np.float32))
    layout = plugin.layout(copy)
    assert layout.problems == ()
    assert {clip.frame_rule for clip in layout.clips} == {"middle"}
    assert {(clip.picture, clip.sound) for clip in layout.clips} == {
        (media / "frame" / video, media / "wave" / f"{video}.npy") for video in ids
    }
    (media / "frame" / ids[0] / "00000011.jpg").touch()
    (problem,) = plugin.layout(copy).problems
    assert (problem.record, problem.field, problem.found, problem.expected) == (ids[0], "frames", "11", "10")


def test_media_without_rows_and_rows_without_media(copy):
    first, second, *_ = sorted((copy / "LLP_dataset" / "video").iterdir())
    first.rename(first.with_name("zzzzzzzzzzz.mp4"))
    second.unlink()
    lost, spare = plugin.layout(copy).problems
    assert (lost.severity, spare.severity) == ("error", "warning")
    assert "2 ids without media" in lost.found
    assert "1 ids without annotation: zzzzzzzzzzz" in spare.found
    assert len(plugin.layout(copy).clips) == 14
    shutil.rmtree(copy / "LLP_dataset" / "video")
    assert plugin.layout(copy).clips == ()


def test_every_malformed_row_is_a_problem(copy):
    edit(copy / "AVVP_val_pd.csv", lambda lines: lines.append("short\tring"))
    label = (copy / "categories.txt").read_text().splitlines()[0]
    name = (copy / "AVVP_val_pd.csv").read_text().splitlines()[1].split("\t")[0]
    rows = [f"{name}\t3\t3\t{label}", f"{name}\t3\t99\t{label}", "x", f"{name}\t9\t10\tnoise"]
    before = len(edit(copy / "AVVP_eval_audio.csv", lambda lines: lines.extend(rows))) - len(rows)
    assert [p for p in found(copy) if p[0] in ("AVVP_val_pd.csv", "AVVP_eval_audio.csv")] == [
        ("AVVP_val_pd.csv", "line 6", "filename", "error"),
        ("AVVP_val_pd.csv", "line 6", "event_labels", "error"),
        ("AVVP_eval_audio.csv", f"line {before + 1}", "offset", "warning"),
        ("AVVP_eval_audio.csv", f"line {before + 2}", "offset", "error"),
        ("AVVP_eval_audio.csv", f"line {before + 3}", "fields", "error"),
        ("AVVP_eval_audio.csv", f"line {before + 4}", "event_labels", "error"),
    ]
    with pytest.raises(DataError, match=r"AVVP_val_pd.csv \[line 6\].*4 more.*AVVP_eval_audio.csv"):
        ParsingData(stub(copy), "clean")


@pytest.mark.parametrize("name", [*FILES.values(), "categories.txt"])
def test_unreadable_files_are_problems(copy, name):
    (copy / name).write_bytes(b"\xff\xfe")
    assert (name, "line 1", "encoding", "error") in found(copy)
    (copy / name).unlink()
    expected = [] if name == "categories.txt" else [(name, "", "file", "error")]
    assert [problem for problem in found(copy) if problem[0] == name] == expected


def test_an_id_stands_in_one_row_only(copy):
    row = (copy / "AVVP_train.csv").read_text().splitlines()[2]
    name, labels = row.split("\t")
    edit(copy / "AVVP_test_pd.csv", lambda lines: lines.append(f"{name[:11]}_20_30\t{labels}"))
    assert found(copy) == [("AVVP_test_pd.csv", "line 6", "filename", "error")]
    assert "line 3 of AVVP_train.csv" in plugin.layout(copy).problems[0].found


def test_overlaps_and_repeated_labels_are_warnings_and_change_nothing(copy):
    prior = ParsingData(stub(copy), "clean")
    rows = (copy / "AVVP_eval_visual.csv").read_text().splitlines()
    edit(copy / "AVVP_eval_visual.csv", lambda lines: lines.append(rows[1]))
    labels = (copy / "AVVP_test_pd.csv").read_text().splitlines()[1].split("\t")[1].split(",")
    edit(copy / "AVVP_test_pd.csv", lambda lines: lines.__setitem__(1, f"{lines[1]},{labels[0]}"))
    assert found(copy) == [
        ("AVVP_test_pd.csv", "line 2", "event_labels", "warning"),
        ("AVVP_eval_visual.csv", f"line {len(rows) + 1}", "onset", "warning"),
    ]
    after = ParsingData(stub(copy), "clean")
    for key in prior.keys("test"):
        was, now = (dict(data.split("test").targets(key)) for data in (prior, after))
        # Only PHP's paper counts a repeated label, as a further item.
        assert int(now.pop("listed")) - int(was.pop("listed")) == (key == prior.keys("test")[0])
        for name, value in was.items():
            np.testing.assert_array_equal(now[name], value)


def test_row_of_no_video_is_a_warning_that_clean_refuses(copy):
    label = (copy / "categories.txt").read_text().splitlines()[0]
    trained = (copy / "AVVP_train.csv").read_text().splitlines()[1].split("\t")[0]
    stray = [f"{trained}\t0\t3\t{label}", f"P7x4FV4lg_570_580\t0\t3\t{label}", f"stray\t0\t3\t{label}"]
    lines = edit(copy / "AVVP_eval_visual.csv", lambda lines: lines.extend(stray))
    expected = [("AVVP_eval_visual.csv", f"line {len(lines) - back}", "filename", "warning") for back in (2, 1, 0)]
    assert found(copy) == expected
    with pytest.raises(DataError, match=rf"line {len(lines) - 2}.*{trained}.*line {len(lines)}.*'stray'") as error:
        ParsingData(stub(copy), "clean")
    assert "P7x4FV4lg" not in str(error.value)
    assert ParsingData(stub(copy), "paper").keys("val")


@pytest.mark.realdata
def test_real_llp_has_only_its_known_warnings(real_data):
    folder = real_data / "annotations" / "llp"
    problems = plugin.layout(folder).problems
    counts = Counter((Path(p.file).name, p.field, p.severity) for p in problems)
    assert counts == {
        ("AVVP_test_pd.csv", "event_labels", "warning"): 1,
        ("AVVP_eval_audio.csv", "filename", "warning"): 14,
        ("AVVP_eval_audio.csv", "offset", "warning"): 6,
        ("AVVP_eval_audio.csv", "onset", "warning"): 22,
        ("AVVP_eval_visual.csv", "filename", "warning"): 11,
        ("llp", "media", "error"): 1,
    }
    lost = {p.found for p in problems if p.field == "filename" and "lost" in p.action}
    assert len(lost) == 8
    rows = [tuple(line.split("\t")) for line in (folder / "AVVP_eval_audio.csv").read_text().splitlines()]
    assert len(rows) - len(set(rows)) == 8


@pytest.mark.realdata
def test_real_llp_as_the_forks_ship_it_is_repaired_by_clean_and_needed_by_paper(real_data):
    folder = real_data / "annotations" / "llp"
    shipped, repaired = stub(folder, audio="AVVP_eval_audio_as_in_forks.csv"), stub(folder)
    clean, paper, same = ParsingData(shipped, "clean"), ParsingData(shipped, "paper"), ParsingData(repaired, "clean")
    assert [len(clean.keys(split)) for split in ("train", "val", "test")] == [10_000, 649, 1_200]
    assert clean.note == "audio ground truth: 3 corrupted rows repaired; no motion features"
    names = clean.keys("test")
    for data, name in ((clean, ""), (same, ""), (paper, "_as_in_forks")):
        expected = segment_labels(folder / f"AVVP_eval_audio{name}.csv", names)
        marks = np.stack([data.split("test").targets(key)["audio"] for key in names])
        np.testing.assert_array_equal(marks, expected)
    with pytest.raises(DataError, match=r"AVVP_eval_audio.csv.*0 of the corrupted rows.*use protocol clean"):
        ParsingData(repaired, "paper")


@pytest.mark.realdata
def test_a_partly_repaired_file_is_refused_by_paper(real_data, tmp_path):
    folder = real_data / "annotations" / "llp"
    for name in (*list(FILES.values())[:3], "AVVP_eval_visual.csv"):
        shutil.copy(folder / name, tmp_path / name)
    text = (folder / "AVVP_eval_audio_as_in_forks.csv").read_text().replace("KvIjsmANkxI_10_20`", "KvIjsmANkxI_10_20")
    (tmp_path / "AVVP_eval_audio.csv").write_text(text)
    assert (
        ParsingData(stub(tmp_path), "clean").note == "audio ground truth: 2 corrupted rows repaired; no motion features"
    )
    with pytest.raises(DataError, match="2 of the corrupted rows"):
        ParsingData(stub(tmp_path), "paper")
