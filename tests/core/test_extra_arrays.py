"""Further arrays of a clip are prepared, quarantined and digested like its media; sounds longer than a clip are cut by rule."""

from pathlib import Path

import numpy as np
import pytest

from avcl_core.data import ClipSource, Extra, Layout, Prepared, broken, prepare, verify, verify_source
from avcl_core.data.waves import choose_seconds
from avcl_core.errors import DataError

RATE = 32000


def read_table(paths: tuple[Path, ...]) -> np.ndarray:
    array = np.load(paths[0])
    if array.shape != (3, 2):
        raise broken(paths[0], "features", f"shape {array.shape}", "shape (3, 2)", "extract them again")
    return array


def source(root: Path, number: int, extras: tuple[str, ...] = ("table",)) -> ClipSource:
    id = f"c{number}"
    np.save(root / f"{id}.npy", np.full(RATE, 0.1 * (number + 1), dtype=np.float32))
    made = []
    for name in extras:
        path = root / f"{id}-{name}.npy"
        np.save(path, np.full((3, 2), number, dtype=np.float32))
        made.append(Extra(name, (path,), read_table))
    return ClipSource(id, wave=root / f"{id}.npy", seconds=1, extras=tuple(made))


def layout(root: Path) -> Layout:
    root.mkdir(exist_ok=True)
    return Layout("toy", tuple(source(root, n) for n in range(3)))


def test_arrays_come_back_by_name_and_clip(tmp_path):
    data = prepare(layout(tmp_path / "in"), tmp_path / "out", frame_size=8, workers=1)
    assert data.extras == ("table",)
    assert data.extra("table", "c2").tolist() == [[2, 2]] * 3
    with pytest.raises(DataError, match=r"extra array 'tabel' is unknown.*table"):
        data.extra("tabel", "c0")


def test_a_clip_whose_array_is_broken_or_missing_is_quarantined_and_listed(tmp_path):
    made = layout(tmp_path / "in")
    np.save(tmp_path / "in" / "c1-table.npy", np.zeros((2, 2)))
    (tmp_path / "in" / "c2-table.npy").unlink()
    assert [(p.record, p.field) for p in verify_source(made, "fast")] == [("c2", "table")]
    full = list(verify_source(Layout("toy", made.clips[:2]), "full"))
    assert [(p.record, p.found) for p in full] == [("c1", "shape (2, 2)")]
    data = prepare(Layout("toy", made.clips[:2]), tmp_path / "out", frame_size=8, workers=1)
    assert data.ids == ("c0",)
    assert data.quarantined["c1"].expected == "shape (3, 2)"


def test_a_changed_array_is_prepared_again_and_changes_the_samples_digest(tmp_path):
    made = layout(tmp_path / "in")
    before = prepare(made, tmp_path / "out", frame_size=8, workers=1)
    np.save(tmp_path / "in" / "c0-table.npy", np.full((3, 2), 7, dtype=np.float32))
    after = prepare(made, tmp_path / "out", frame_size=8, workers=1)
    assert after.extra("table", "c0")[0, 0] == 7
    assert after.sample_digest("c0") != before.sample_digest("c0")
    assert after.sample_digest("c1") == before.sample_digest("c1")


def test_damage_to_an_array_file_names_its_clips(tmp_path):
    data = prepare(layout(tmp_path / "in"), tmp_path / "out", frame_size=8, workers=1)
    path = data.folder / "extras" / "table" / "00000.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF  # the last number of clip c2
    path.write_bytes(content)
    assert [p.record for p in verify(data.folder, "full")] == ["", "c2"]
    assert "c2" in Prepared(data.folder).quarantined


def test_clips_with_different_arrays_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    clips = (source(tmp_path / "in", 0), source(tmp_path / "in", 1, ()))
    with pytest.raises(DataError, match="the same for every clip"):
        prepare(Layout("toy", clips), tmp_path / "out", frame_size=8, workers=1)


def test_evenly_spaced_seconds_lie_where_evenly_spaced_frames_do():
    wave = np.repeat(np.arange(60, dtype=np.float32), 4)  # a minute at 4 Hz, each second its own number
    found = choose_seconds(wave, "evenly", 10, 4)
    assert found[::4].tolist() == [0, 6, 13, 19, 26, 32, 39, 45, 52, 59]
    assert choose_seconds(wave, "start", 10, 4)[::4].tolist() == list(range(10))


def test_a_sound_that_is_not_longer_than_the_clip_is_taken_as_it_is():
    wave = np.arange(1, 42, dtype=np.float32)  # 10.25 s at 4 Hz
    assert choose_seconds(wave, "evenly", 10, 4).tolist() == wave[:40].tolist()
    assert choose_seconds(wave[:8], "evenly", 10, 4).tolist() == [*wave[:8], *[0] * 32]
