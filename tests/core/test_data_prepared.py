"""The prepared form: same bytes after any interruption, broken clips listed, damage found and repaired."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avcl_core.data import ClipSource, Layout, Prepared, prepare, verify, verify_source
from avcl_core.data import prepare as prepare_function
from avcl_core.data.media import write_mp4
from avcl_core.errors import ConfigError, DataError

prepare_module = sys.modules[prepare_function.__module__]
RATE = 32000
SECONDS = 2


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD", 3)


def make_clip(root: Path, number: int) -> ClipSource:
    """Even clips are an mp4, odd ones a frame folder with a .npy wave."""
    rng = np.random.default_rng(number)
    id = f"clip{number:07d}"
    shots = np.repeat(rng.integers(0, 256, (4, 1, 1, 3), dtype=np.uint8), 16, axis=1).repeat(16, axis=2)
    wave = rng.uniform(-0.5, 0.5, SECONDS * RATE).astype(np.float32)
    if number % 2 == 0:
        write_mp4(root / f"{id}.mp4", shots, 2, wave)
        return ClipSource(id, video=root / f"{id}.mp4", seconds=SECONDS)
    (root / id).mkdir(parents=True)
    for k, shot in enumerate(shots, start=1):
        Image.fromarray(shot).save(root / id / f"{k:08d}.png")
    np.save(root / f"{id}.npy", wave)
    return ClipSource(id, frames=root / id, wave=root / f"{id}.npy", frame_rule="middle", seconds=SECONDS)


@pytest.fixture
def layout(tmp_path):
    root = tmp_path / "source"
    root.mkdir()
    clips = tuple(make_clip(root, number) for number in range(8))
    (root / "list.csv").write_text("a,b\n")
    return Layout("toy", clips, {"train": root / "list.csv"})


def tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_reader_gives_what_the_layout_holds(layout, tmp_path):
    seen = []
    data = prepare(
        layout, tmp_path / "out", frame_size=8, workers=1, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(0, 8), (3, 8), (6, 8), (8, 8)]
    assert data.ids == tuple(clip.id for clip in layout.clips)
    assert len(data) == 8
    assert data.quarantined == {}
    odd = layout.clips[1]
    assert np.array_equal(data.wave(odd.id).reshape(-1), np.load(odd.wave))
    assert data.wave(odd.id).shape == (SECONDS, RATE)
    truth = [np.asarray(Image.open(odd.frames / f"{k:08d}.png"))[0, 0] for k in (2, 4)]
    assert np.array_equal(data.frames(odd.id)[:, 3, 3], truth)
    assert data.frames(odd.id).shape == (SECONDS, 8, 8, 3)
    assert data.annotation("train").read_text() == "a,b\n"
    assert len({data.sample_digest(id) for id in data.ids}) == 8
    clone = pickle.loads(pickle.dumps(data))
    assert np.array_equal(clone.wave(odd.id), data.wave(odd.id))
    assert clone.digest == data.digest
    with pytest.raises(DataError, match="no such clip"):
        data.frames("unknown")
    with pytest.raises(DataError, match="did you mean 'train'"):
        data.annotation("trian")


def test_result_does_not_depend_on_workers_or_folder(layout, tmp_path):
    one = prepare(layout, tmp_path / "one", frame_size=8, workers=1)
    two = prepare(layout, tmp_path / "deep/two", frame_size=8, workers=2)
    assert tree(one.folder) == tree(two.folder)
    assert one.digest == two.digest


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop", range(1, 16))
def test_interrupted_anywhere_and_run_again_gives_identical_bytes(layout, tmp_path, monkeypatch, stop):
    """The process dies just before its n-th rename; what was staged stays behind as after kill -9."""
    straight = prepare(layout, tmp_path / "straight", frame_size=8, workers=1)
    calls, real = [0], os.replace

    def replace(source, target):
        calls[0] += 1
        if calls[0] == stop:
            raise Stop
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    try:
        prepare(layout, tmp_path / "out", frame_size=8, workers=1)
    except Stop:
        with pytest.raises(DataError, match="data prepare"):
            Prepared(tmp_path / "out")
    else:
        assert stop > 14
    monkeypatch.setattr(os, "replace", real)
    again = prepare(layout, tmp_path / "out", frame_size=8, workers=1)
    assert tree(again.folder) == tree(straight.folder)


SCRIPT = """
import sys
from pathlib import Path
from avcl_core.data import ClipSource, Layout, prepare
import avcl_core.data.clips, time
if __name__ == "__main__":
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    clips = tuple(ClipSource(p.stem, video=p, seconds=2) for p in sorted(root.glob("*.mp4")))
    sys.modules["avcl_core.data.prepare"].SHARD = 2
    prepare(Layout("toy", clips), out, frame_size=8, workers=2)
    print("finished")
"""


def test_kill_9_leaves_no_worker_behind_and_is_continued(tmp_path):
    root = tmp_path / "source"
    root.mkdir()
    for number in range(0, 24, 2):
        make_clip(root, number)
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)

    def start(out):
        return subprocess.Popen(
            [sys.executable, str(script), str(root), str(out)], start_new_session=True, stdout=subprocess.PIPE
        )

    whole = start(tmp_path / "whole")
    assert whole.wait() == 0
    process = start(tmp_path / "out")
    while not list((tmp_path / "out/shards").glob("*.json")):
        assert process.poll() is None or process.returncode == 0
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while _group_members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _group_members(process.pid)
    assert start(tmp_path / "out").wait() == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def _group_members(group):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_broken_clips_are_listed_and_left_out(layout, tmp_path):
    video = layout.clips[2].video
    video.write_bytes(video.read_bytes()[:300])
    (layout.clips[3].frames / "00000002.png").unlink()
    np.save(layout.clips[5].wave, np.zeros(SECONDS * RATE, np.float32))
    nothing = ClipSource("nothing", seconds=SECONDS)
    data = prepare(Layout("toy", (*layout.clips, nothing)), tmp_path / "out", frame_size=8, workers=1)
    bad = {layout.clips[2].id, layout.clips[3].id, "nothing"}
    assert set(data.quarantined) == bad
    assert set(data.ids) == {clip.id for clip in layout.clips} - bad
    assert "numbering" in str(data.quarantined[layout.clips[3].id])
    with pytest.raises(DataError, match=r"clip0000003.*frame numbering: found 3 after 1"):
        data.wave(layout.clips[3].id)
    lines = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    silent = [line for line in lines if line["severity"] == "warning"]
    assert [line["record"] for line in silent] == [layout.clips[5].id]
    assert layout.clips[5].id in data
    assert verify(tmp_path / "out", "full") == []


def test_a_sound_that_ends_early_is_padded_with_a_warning(layout, tmp_path):
    clip = layout.clips[0]
    write_mp4(clip.video, np.zeros((4, 16, 16, 3), np.uint8), 2, np.full(RATE, 0.2, np.float32))
    found = verify_source(layout, "full")
    assert [(p.record, p.severity, p.field) for p in found] == [(clip.id, "warning", "sound length")]


def test_repaired_media_are_taken_up_and_only_their_shard_is_made_again(layout, tmp_path):
    good = layout.clips[3].wave.read_bytes()
    layout.clips[3].wave.write_bytes(good[:-4])
    first = prepare(layout, tmp_path / "out", frame_size=8, workers=1)
    assert list(first.quarantined) == [layout.clips[3].id]
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out/waves").iterdir()}
    layout.clips[3].wave.write_bytes(good)
    second = prepare(layout, tmp_path / "out", frame_size=8, workers=1)
    assert second.quarantined == {}
    changed = {p.name for p in (tmp_path / "out/waves").iterdir() if p.stat().st_mtime_ns != stamps[p.name]}
    assert changed == {"00001.npy"}
    assert second.digest == prepare(layout, tmp_path / "fresh", frame_size=8, workers=1).digest != first.digest


def test_verify_finds_damage_and_prepare_repairs_it(layout, tmp_path):
    data = prepare(layout, tmp_path / "out", frame_size=8, workers=1)
    before = tree(tmp_path / "out")
    assert verify(tmp_path / "out") == verify(tmp_path / "out", "full") == []
    shard = tmp_path / "out/waves/00001.npy"
    content = bytearray(shard.read_bytes())
    content[128 + SECONDS * RATE * 4 + 1000] ^= 1  # one bit in the second clip of the shard
    shard.write_bytes(content)
    assert verify(tmp_path / "out", "fast") == []
    found = verify(tmp_path / "out", "full")
    assert [p.record for p in found] == ["", layout.clips[4].id]
    assert "00001.npy" in str(found[0])
    damaged = Prepared(tmp_path / "out")
    assert list(damaged.quarantined) == [layout.clips[4].id]
    with pytest.raises(DataError, match="run `avcl data prepare` again"):
        damaged.frames(layout.clips[4].id)
    assert np.array_equal(damaged.wave(layout.clips[3].id), data.wave(layout.clips[3].id))
    prepare(layout, tmp_path / "out", frame_size=8, workers=1)
    assert tree(tmp_path / "out") == before


def test_files_of_the_wrong_size_are_refused_at_once(layout, tmp_path):
    prepare(layout, tmp_path / "out", frame_size=8, workers=1)
    shard = tmp_path / "out/frames/00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert len(verify(tmp_path / "out")) == 1
    with pytest.raises(DataError, match=r"00000\.npy: size: found 1279 bytes; expected 1280"):
        Prepared(tmp_path / "out")
    shard.unlink()
    with pytest.raises(DataError, match="no such file"):
        Prepared(tmp_path / "out")
    prepare(layout, tmp_path / "out", frame_size=8, workers=1)
    assert verify(tmp_path / "out", "full") == []
    index = tmp_path / "out/index.json"
    index.write_bytes(index.read_bytes().replace(b"clip0000001", b"clip0000009"))
    with pytest.raises(DataError, match=r"index\.json: sha256"):
        Prepared(tmp_path / "out")


def test_missing_and_old_folders_say_what_to_run(layout, tmp_path):
    with pytest.raises(DataError, match=r"no prepared data.*run `avcl data prepare`"):
        Prepared(tmp_path / "nowhere")
    prepare(layout, tmp_path / "out", frame_size=8, workers=1)
    manifest = tmp_path / "out/manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"version": 2', '"version": 1'))
    with pytest.raises(DataError, match=r"expected avcl-prepared 2.*data prepare"):
        Prepared(tmp_path / "out")
    manifest.write_text(text[:50])
    with pytest.raises(DataError, match="content"):
        Prepared(tmp_path / "out")
    manifest.unlink()
    with pytest.raises(DataError, match="unfinished"):
        Prepared(tmp_path / "out")


def test_prepare_refuses_what_it_cannot_do(layout, tmp_path):
    prepare(layout, tmp_path / "out", frame_size=8, workers=1)
    with pytest.raises(DataError, match="frame_size: found 8; expected 16; choose another folder"):
        prepare(layout, tmp_path / "out", frame_size=16, workers=1)
    with pytest.raises(DataError, match="not prepared data"):
        prepare(layout, tmp_path / "source", frame_size=8, workers=1)
    with pytest.raises(DataError, match="found more than once"):
        prepare(Layout("toy", layout.clips[:1] * 2), tmp_path / "b", frame_size=8)
    with pytest.raises(DataError, match="one length"):
        prepare(Layout("toy", (layout.clips[0], ClipSource("x", seconds=5))), tmp_path / "b", frame_size=8)
    with pytest.raises(DataError, match="clips: found none"):
        prepare(Layout("toy", ()), tmp_path / "b", frame_size=8)
    with pytest.raises(DataError, match="annotation file 'test'"):
        prepare(
            Layout("toy", layout.clips[:1], {"test": tmp_path / "gone.csv"}), tmp_path / "c", frame_size=8, workers=1
        )
    with pytest.raises(ConfigError, match="level"):
        verify(tmp_path / "out", "deep")  # type: ignore[arg-type]


def test_a_layout_without_sound_has_no_waves(layout, tmp_path):
    clips = tuple(ClipSource(c.id, frames=c.frames, seconds=SECONDS) for c in layout.clips if c.frames)
    data = prepare(Layout("mute", clips), tmp_path / "out", frame_size=8, workers=1)
    assert data.frames(clips[0].id).shape == (SECONDS, 8, 8, 3)
    assert not (tmp_path / "out/waves").exists()
    with pytest.raises(DataError, match="no such media"):
        data.wave(clips[0].id)
    assert verify(tmp_path / "out", "full") == []


def test_verify_source_fast_opens_and_full_decodes(layout, tmp_path):
    assert verify_source(layout, "fast") == verify_source(layout, "full", workers=2) == []
    stray = layout.clips[1].frames / "00000003.png"
    stray.write_bytes(stray.read_bytes()[:60])
    np.save(layout.clips[3].wave, np.zeros(5, np.float32))
    layout.clips[4].video.unlink()
    annotation = Layout("toy", layout.clips, {"gone": tmp_path / "gone.csv"})
    fast = verify_source(annotation, "fast")
    assert [(p.record, p.field) for p in fast] == [
        ("", "file"),
        (layout.clips[3].id, "length"),
        (layout.clips[4].id, "file"),
        (layout.clips[4].id, "file"),
    ]
    rule = ClipSource(layout.clips[1].id, frames=layout.clips[1].frames, wave=layout.clips[1].wave, seconds=SECONDS)
    clips = tuple(rule if c.id == rule.id else c for c in layout.clips)
    wide = tuple(ClipSource(c.id, c.video, c.frames, c.wave, "middle", SECONDS) for c in clips)
    full = verify_source(Layout("toy", wide), "full", quarantine=tmp_path / "quarantine.jsonl")
    assert {p.record for p in full} == {
        layout.clips[3].id,
        layout.clips[4].id,
    }  # frame 3 is not one of those taken (2 and 4)
    stray = layout.clips[1].frames / "00000004.png"
    stray.write_bytes(stray.read_bytes()[:60])
    full = verify_source(Layout("toy", wide), "full", quarantine=tmp_path / "quarantine.jsonl")
    assert {p.record for p in full} == {layout.clips[k].id for k in (1, 3, 4)}
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == len(full)


def test_an_interrupted_renewal_is_not_taken_for_the_finished_one(layout, tmp_path, monkeypatch):
    """Same sizes, other content: only the missing manifest tells that some shards are old and some new."""
    out = tmp_path / "out"
    prepare(layout, out, frame_size=8, workers=1)
    for clip in layout.clips[1:6:4]:  # one clip in the first shard and one in the second
        np.save(clip.wave, np.full(SECONDS * RATE, 0.25, np.float32))
    real = os.replace

    def replace(source, target):
        if Path(target).name == "00001.json":
            raise Stop
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Stop):
        prepare(layout, out, frame_size=8, workers=1)
    with pytest.raises(DataError, match="unfinished"):
        Prepared(out)
    monkeypatch.setattr(os, "replace", real)
    prepare(layout, out, frame_size=8, workers=1)
    assert tree(out) == tree(prepare(layout, tmp_path / "fresh", frame_size=8, workers=1).folder)
