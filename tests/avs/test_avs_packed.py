"""Packed waves: every video gets its own file, numbers are all that is admitted, and what is missing is named."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from avcl_avs import plugin
from avcl_avs.cli import main
from avcl_avs.packed import read_packed, unpack
from avcl_core.errors import DataError

PACK = Path("Single-source/s4_data/wave/train/race_car/AVS.npy")
WAVE = Path("Single-source/s4_data/wave_npy/train/race_car/aa_0_5000.npy")
KEY = "aa_0_5000.wav"


def save(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


def wave(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, 160000)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_waves_are_unpacked_and_then_used(published, tmp_path, elsewhere):
    save(published / PACK, {KEY: wave(), "unused.wav": wave(1)})
    before = plugin.layout(published)
    (waiting,) = [p for p in before.problems if p.field == "waves"]
    assert waiting.severity == "warning"
    assert "run `avs unpack" in waiting.action
    assert before.clips[0].sound.suffix == ".wav"
    out = tmp_path / "out" if elsewhere else None
    lines = []
    assert unpack(published, out, lines.append) == 1
    assert len(lines) == 1
    after = plugin.layout(published, **dict(plugin.source(waves=out)))
    assert [p for p in after.problems if p.field == "waves"] == []
    assert after.clips[0].sound == (out or published) / WAVE
    stored = np.load(after.clips[0].sound, allow_pickle=False)
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, wave().astype(np.float32))
    assert (published / WAVE).exists() != elsewhere


def test_packed_waves_without_sound_files_are_an_error(published):
    save(published / PACK, {KEY: wave()})
    (published / "Single-source/s4_data/audio_wav/train/race_car/aa_0_5000.wav").unlink()
    (waiting,) = [p for p in plugin.layout(published).problems if p.field == "waves"]
    assert waiting.severity == "error"


def test_command_unpacks(published, monkeypatch, capsys):
    save(published / PACK, {KEY: wave()})
    monkeypatch.setattr("sys.argv", ["avs", "unpack", str(published)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert "1 waves" in capsys.readouterr().out
    assert (published / WAVE).is_file()


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("hostile",))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (Hostile(), "asks for posix.mkdir"),
        ({KEY: Hostile()}, "asks for posix.mkdir"),
        ([wave()], "a list"),
        ({KEY: wave().tolist()[:3]}, "a list"),
        ({KEY: np.zeros(3, int)}, "an array of int64"),
        ({KEY: np.array([Hostile()], dtype=object)}, "asks for posix.mkdir"),
        ({3: wave()}, "3"),
    ],
)
def test_anything_but_names_and_float_arrays_is_refused(published, tmp_path, monkeypatch, content, found):
    monkeypatch.chdir(tmp_path)
    holder = np.empty((), dtype=object)
    holder[()] = content
    path = published / PACK
    path.parent.mkdir(parents=True)
    np.save(path, holder, allow_pickle=True)
    with pytest.raises(DataError, match=found) as refused:
        unpack(published)
    assert "expected a pickled dictionary of names and float arrays" in str(refused.value)
    assert str(path) in str(refused.value)
    assert not (tmp_path / "hostile").exists()


@pytest.mark.parametrize("damage", ["cut", "plain array", "bare pickle"])
def test_damaged_packs_are_refused(tmp_path, damage):
    path = save(tmp_path / "AVS.npy", {KEY: wave()})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    elif damage == "plain array":
        np.save(path, np.zeros(4))
    else:
        path.write_bytes(pickle.dumps({KEY: wave()}))
    with pytest.raises(DataError, match="content"):
        read_packed(path)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_pickle_protocol_of_numpy_is_read(tmp_path, protocol):
    path = save(tmp_path / "AVS.npy", {})
    header = path.read_bytes()[:128]
    holder = np.empty((), dtype=object)
    holder[()] = {KEY: wave().astype(np.float32)}
    path.write_bytes(header + pickle.dumps(holder, protocol=protocol))
    np.testing.assert_array_equal(read_packed(path)[KEY], wave().astype(np.float32))


def test_missing_keys_and_wrong_lengths_are_named_and_the_rest_is_written(published):
    save(published / PACK, {"other.wav": wave()})
    save(published / "Multi-sources/ms3_data/wave/val/AVS.npy", {"ee.wav": wave()[:100]})
    save(published / "Multi-sources/ms3_data/wave/test/AVS.npy", {"ff.wav": wave()})
    with pytest.raises(DataError, match=r"s4/aa_0_5000.*no 'aa_0_5000.wav'.*1 more.*ms3/ee.*shape \(100,\)"):
        unpack(published)
    assert (published / "Multi-sources/ms3_data/wave_npy/test/ff.npy").is_file()
    assert not (published / "Multi-sources/ms3_data/wave_npy/val/ee.npy").exists()


def test_a_folder_without_metadata_is_refused(tmp_path):
    with pytest.raises(DataError, match="no metadata file"):
        unpack(tmp_path)
