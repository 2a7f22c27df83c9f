"""Bad input ends in one line that names file and field, and in the exit code of its kind."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from avcl.cli import main


@pytest.fixture
def avcl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run a command line in a folder of its own; return its exit code, standard error and standard output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["avcl", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        shown = capsys.readouterr()
        return code, shown.err, shown.out

    return run


def one_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


@pytest.fixture
def source(data_root: Path, straight: Path, tmp_path: Path) -> Path:
    """A published AVE of the small world that a test may damage."""
    shutil.copytree(data_root / "source" / "ave", tmp_path / "ave")
    return tmp_path / "ave"


def test_wrong_key_names_file_line_and_nearest_key(avcl, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("stream:\n  tasks: [ave]\ntraining:\n  epochs: 1\n  batchsize: 4\n")
    code, err, _ = avcl("run", str(config))
    assert code == 2
    assert f"{config}:5: training.batchsize: unknown key; did you mean 'batch_size'?" in one_line(err)


def test_wrong_key_of_a_method_and_wrong_value(avcl, tmp_path: Path) -> None:
    code, err, _ = avcl("config", "show", "embedded", "method.memroy=4")
    assert (code, "did you mean 'memory'" in one_line(err)) == (2, True)
    code, err, _ = avcl("config", "show", "embedded", "training.epochs=none")
    assert (code, "training.epochs: found 'none'" in one_line(err)) == (2, True)


def test_unknown_names_get_the_nearest(avcl) -> None:
    for text, hint in {
        "method.name=finetun": "finetune",
        "stream.tasks=[avee]": "ave",
        "towers.visual.name=swinv2": "swin_v2",
    }.items():
        code, err, _ = avcl("run", text)
        assert code == 2
        assert f"did you mean '{hint}'" in one_line(err)


def test_missing_files(avcl, tmp_path: Path) -> None:
    code, err, _ = avcl("run", str(tmp_path / "absent.yaml"))
    assert (code, "absent.yaml" in one_line(err)) == (2, True)
    code, err, _ = avcl("run", "embedded", "data.world=null", f"data.root={tmp_path}")
    assert code == 3
    assert "no prepared data of ave; make it with: avcl data prepare ave" in one_line(err)
    code, err, _ = avcl("resume", str(tmp_path))
    assert (code, "run.json is missing" in one_line(err)) == (3, True)
    code, err, _ = avcl("weights", "verify", str(tmp_path / "absent.pt"))
    assert (code, "no such file" in one_line(err)) == (3, True)


def test_truncated_mp4_is_verified_quarantined_and_refused(avcl, source: Path, tmp_path: Path) -> None:
    video = min((source / "AVE").glob("*.mp4"))
    video.write_bytes(video.read_bytes()[:2000])
    listed = tmp_path / "found.jsonl"
    code, _, out = avcl("data", "verify", str(source), "--task", "ave", "--full", "--quarantine", str(listed))
    assert code == 3
    assert video.name in out
    assert video.name in listed.read_text()
    assert not (source / "quarantine.jsonl").exists()
    root = tmp_path / "root"
    code, _, out = avcl("data", "prepare", "ave", str(source), "--root", str(root), "--size", "64", "--workers", "1")
    assert (code, "1 quarantined" in out) == (0, True)
    code, err, _ = avcl("run", "embedded", "data.world=null", f"data.root={root}", "stream.tasks=[ave]")
    assert code == 3
    assert video.name in one_line(err)


def test_skipping_is_bounded_by_its_budget(avcl, source: Path, tmp_path: Path) -> None:
    video = min((source / "AVE").glob("*.mp4"))
    video.write_bytes(b"")
    root = tmp_path / "root"
    avcl("data", "prepare", "ave", str(source), "--root", str(root), "--size", "64", "--workers", "1")
    code, err, _ = avcl(
        "run", "embedded", "data.world=null", f"data.root={root}", "stream.tasks=[ave]", "data.on_bad_sample=skip"
    )
    assert code == 3
    assert "more than data.skip_budget" in one_line(err)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [("&good&", "&good", "fields"), ("&good&0&", "&good&zero&", "start")],
)
def test_malformed_annotation_rows_are_named(avcl, source: Path, old: str, new: str, named: str) -> None:
    rows = (source / "trainSet.txt").read_text().splitlines()
    at = next(number for number, row in enumerate(rows) if old in row)
    rows[at] = rows[at].replace(old, new)
    (source / "trainSet.txt").write_text("\n".join(rows) + "\n")
    code, _, out = avcl("data", "verify", str(source), "--task", "ave")
    assert code == 3
    assert any(
        "trainSet.txt" in line and f"line {at + 1}" in line and named in line.lower() for line in out.splitlines()
    )


def test_unknown_class_names_the_nearest(avcl, source: Path) -> None:
    rows = (source / "testSet.txt").read_text().splitlines()
    name = rows[0].split("&")[0]
    (source / "testSet.txt").write_text("\n".join([rows[0].replace(name, name + "x"), *rows[1:]]) + "\n")
    code, _, out = avcl("data", "verify", str(source), "--task", "ave")
    assert code == 3
    assert any("testSet.txt" in line and f"{name}x" in line and name in line for line in out.splitlines())


def test_one_broken_clip_in_a_hundred_stops_a_run_and_trains_only_with_a_budget_for_it(avcl, tmp_path: Path) -> None:
    """One of a hundred training clips has a truncated frame: prepared around it, refused, then left out and reported."""
    from avcl_core.plugins import load
    from avcl_core.world import WorldSize, procedural

    published = tmp_path / "AVSBench_data"
    size = WorldSize(train=100, val=4, test=4, seconds=5, size=32)
    load("task", "avs").compose(procedural(family="task"), size, 0, published, 1, None)
    frame = min((published / "Single-source/s4_data/visual_frames/train").rglob("*_3.png"))
    frame.write_bytes(frame.read_bytes()[:200])
    root = tmp_path / "root"
    code, _, out = avcl("data", "prepare", "avs", str(published), "--root", str(root), "--size", "64", "--workers", "1")
    assert (code, "215 clips, 1 quarantined" in out) == (0, True), out

    def train(*overrides: str) -> tuple[int, str]:
        alone = (
            "stream.tasks=[avs]",
            "training.epochs=1",
            "training.batch_size=32",
            "method.name=finetune",
            "model.name=frozen",
        )
        code, err, _ = avcl("run", "embedded", *alone, "data.world=null", f"data.root={root}", "runs=runs", *overrides)
        return code, err

    code, err = train()
    assert code == 3
    assert frame.name in one_line(err)
    code, err = train("data.on_bad_sample=skip")
    assert code == 3
    assert "1 of 100 samples are unreadable, more than data.skip_budget 0.001" in one_line(err)
    code, _ = train("data.on_bad_sample=skip", "data.skip_budget=0.02")
    assert code == 0
    (report,) = (tmp_path / "runs").rglob("report.html")
    assert frame.parent.name in report.read_text(), "the report lists what was left out"
