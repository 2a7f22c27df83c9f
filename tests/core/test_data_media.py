"""Reading media: frame rules, sound, and a named error for everything that can be wrong with a file."""

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from avcl_core.data import MediaError, Problem, read_problems, write_problems
from avcl_core.data.media import (
    evenly,
    is_silent,
    list_frames,
    middle_of_seconds,
    probe,
    read_frames,
    read_wave,
    resample,
    write_mp4,
)
from avcl_core.errors import ConfigError, DataError

RATE = 32000


def picture(level, size=(24, 32)):
    return np.full((*size, 3), level, np.uint8)


def frame_folder(folder, count=10, name="{:08d}.png"):
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        Image.fromarray(picture(10 * number)).save(folder / name.format(number))
    return folder


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    frames = np.stack([picture(20 * k, (32, 48)) for k in range(12)])
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE)
    write_mp4(path, frames, 4, tone.astype(np.float32))
    return path


def test_evenly_is_the_published_rule():
    assert evenly(60, 10).tolist() == [1, 7, 14, 20, 27, 33, 40, 46, 53, 60]
    assert evenly(1, 10).tolist() == [1] * 10


def test_middle_of_seconds():
    assert middle_of_seconds(300, 10).tolist() == [15 + 30 * k + 1 for k in range(10)]  # 0-based 15, 45, ..., 285
    assert middle_of_seconds(10, 10).tolist() == list(range(1, 11))


@given(st.integers(1, 500), st.integers(1, 12))
def test_frame_rules_stay_inside_the_clip(m, n):
    for wanted in (evenly(m, n), middle_of_seconds(m, n)):
        assert len(wanted) == n
        assert wanted.min() >= 1
        assert wanted.max() <= m
        assert (np.diff(wanted) >= 0).all()


def test_frames_of_a_folder(tmp_path):
    folder = frame_folder(tmp_path / "f", 60 // 10)
    frames = read_frames(folder, "evenly", 3)
    assert frames.shape == (3, 24, 32, 3)
    assert frames[:, 0, 0, 0].tolist() == [10, 30, 60]
    assert read_frames(folder, "middle", 3)[:, 0, 0, 0].tolist() == [20, 40, 60]
    assert read_frames(folder, "evenly", 3, 16).shape == (3, 16, 16, 3)
    named = frame_folder(tmp_path / "avs", 5, "k.mp4_{}.png")
    assert [p.name for p in list_frames(named)][:2] == ["k.mp4_1.png", "k.mp4_2.png"]
    many = frame_folder(tmp_path / "many", 12, "{}.png")
    assert read_frames(many, [2, 10, 11], 3)[:, 0, 0, 0].tolist() == [20, 100, 110]  # by number, not by name


def test_resize_is_antialiased_and_keeps_no_aspect(tmp_path):
    stripes = np.zeros((96, 192, 3), np.uint8)
    stripes[:, ::2] = 255
    folder = tmp_path / "f"
    folder.mkdir()
    Image.fromarray(stripes).save(folder / "1.png")
    small = read_frames(folder, "evenly", 1, 24)[0]
    assert small.shape == (24, 24, 3)
    assert np.abs(small.astype(int) - 127).max() < 12  # without antialiasing it would be black or white


def test_mp4_round_trip(clip):
    frames = read_frames(clip, range(1, 13), 3)
    assert frames.shape == (12, 32, 48, 3)
    assert np.abs(frames.mean(axis=(1, 2, 3)) - 20 * np.arange(12)).max() < 3
    wave = read_wave(clip, samples=3 * RATE)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE)
    assert np.abs(wave - tone)[3000:-3000].max() < 0.03
    probe(clip, picture=True, sound=True)


def test_mp4_bytes_repeat(clip, tmp_path):
    frames = np.stack([picture(20 * k, (32, 48)) for k in range(12)])
    write_mp4(tmp_path / "a.mp4", frames, 4, np.zeros(RATE, np.float32))
    write_mp4(tmp_path / "b.mp4", frames, 4, np.zeros(RATE, np.float32))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_wave_is_the_mean_of_channels_without_normalisation(tmp_path):
    stereo = np.stack([np.full(RATE, 0.5), np.full(RATE, -0.1)], axis=1)
    soundfile.write(tmp_path / "s.wav", stereo, RATE, subtype="FLOAT")
    wave = read_wave(tmp_path / "s.wav", samples=RATE + 10)
    assert wave.dtype == np.float32
    assert np.allclose(wave[:RATE], 0.2)
    assert not wave[RATE:].any()  # padded
    assert len(read_wave(tmp_path / "s.wav", samples=100)) == 100  # cut


@pytest.mark.parametrize("source", [8000, 16000, 44100, 48000])
def test_resampling_keeps_pitch_length_and_level(source):
    tone = np.sin(2 * np.pi * 1000 * np.arange(source) / source).astype(np.float32)
    wave = resample(tone, source, RATE)
    assert len(wave) == pytest.approx(RATE, abs=2)
    truth = np.sin(2 * np.pi * 1000 * np.arange(len(wave)) / RATE)
    assert np.abs(wave - truth)[500:-500].max() < 0.02


def test_resampling_removes_what_the_lower_rate_cannot_hold():
    tone = np.sin(2 * np.pi * 20000 * np.arange(48000) / 48000).astype(np.float32)
    assert np.abs(resample(tone, 48000, RATE)[500:-500]).max() < 0.05


def test_silence_is_a_fact_not_an_error(tmp_path):
    np.save(tmp_path / "z.npy", np.zeros(RATE, np.float32))
    assert is_silent(read_wave(tmp_path / "z.npy", samples=RATE))


def _npy(array):
    return lambda path: np.save(path, array)


NPY = {
    "rank": (_npy(np.zeros((2, RATE), np.float32)), r"rank: found shape \(2, 32000\); expected one dimension"),
    "dtype": (_npy(np.zeros(RATE, np.int16)), "dtype: found int16; expected float32"),
    "length": (_npy(np.zeros(RATE - 1, np.float32)), "length: found 31999 samples; expected 32000"),
    "nan": (_npy(np.array([np.nan] * 3 + [0.0] * (RATE - 3), np.float32)), "samples: found 3 NaN or infinite"),
    "infinite": (_npy(np.array([np.inf] + [0.0] * (RATE - 1), np.float32)), "samples: found 1 NaN or infinite"),
    "pickle": (_npy(np.array([{"a": 1}], dtype=object)), "content"),
    "text": (lambda path: path.write_text("hello"), "content"),
    "empty": (lambda path: path.write_bytes(b""), "content"),
    "missing": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("case", NPY)
def test_bad_wave_arrays(tmp_path, case):
    make, message = NPY[case]
    path = tmp_path / "wave.npy"
    make(path)
    with pytest.raises(DataError, match=f"wave.npy.*{message}"):
        read_wave(path, samples=RATE)


def _cut_wav(path):
    soundfile.write(path, np.full(RATE, 0.1), RATE)
    path.write_bytes(path.read_bytes()[: RATE // 2])


WAV = {
    "empty file": (lambda path: path.write_bytes(b""), "content"),
    "no samples": (lambda path: soundfile.write(path, np.zeros(0), RATE), "length: found 0 samples"),
    "truncated": (_cut_wav, r"length: found \d+ samples; expected 32000 as its header says"),
    "not a sound": (lambda path: path.write_bytes(b"RIFFxxxxWAVE" + bytes(40)), "content"),
    "nan": (lambda path: soundfile.write(path, np.array([np.nan] * 9), RATE, subtype="FLOAT"), "9 NaN"),
}


@pytest.mark.parametrize("case", WAV)
def test_bad_wav_files(tmp_path, case):
    make, message = WAV[case]
    path = tmp_path / "sound.wav"
    make(path)
    with pytest.raises(DataError, match=f"sound.wav.*{message}"):
        read_wave(path, samples=RATE)


@pytest.mark.parametrize("keep", [0, 30, 400, -700, -1])
def test_truncated_videos(clip, keep):
    clip.write_bytes(clip.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"clip\.mp4"):
        read_frames(clip, "evenly", 3)
    with pytest.raises(DataError, match=r"clip\.mp4"):
        read_wave(clip, samples=3 * RATE)


def test_videos_without_a_stream(tmp_path):
    path = tmp_path / "mute.mp4"
    write_mp4(path, np.stack([picture(9, (32, 32))] * 4), 4)
    with pytest.raises(DataError, match="sound stream: found none"):
        read_wave(path, samples=RATE)
    with pytest.raises(DataError, match="sound stream: found none"):
        probe(path, picture=True, sound=True)
    with pytest.raises(DataError, match="file: found no such file"):
        read_frames(tmp_path / "gone.mp4", "evenly", 3)


def test_bad_frame_folders(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        list_frames(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found 0 images"):
        list_frames(tmp_path / "empty")
    gap = frame_folder(tmp_path / "gap")
    (gap / "00000004.png").unlink()
    with pytest.raises(DataError, match="frame numbering: found 5 after 3; expected 4"):
        list_frames(gap)
    late = frame_folder(tmp_path / "late")
    (late / "00000001.png").unlink()
    with pytest.raises(DataError, match="found 2 after 0; expected 1"):
        list_frames(late)
    few = frame_folder(tmp_path / "few", 4)
    with pytest.raises(DataError, match="frames: found 4; expected at least 10"):
        read_frames(few, "middle", 10)
    with pytest.raises(DataError, match="found 4; expected at least 7"):
        read_frames(few, [1, 7], 2)
    with pytest.raises(ConfigError, match="frame rule"):
        read_frames(few, "random", 2)  # type: ignore[arg-type]
    unnumbered = frame_folder(tmp_path / "names", 2)
    (unnumbered / "cover.png").write_bytes((unnumbered / "00000001.png").read_bytes())
    with pytest.raises(DataError, match=r"file name: found cover\.png"):
        list_frames(unnumbered)
    twice = frame_folder(tmp_path / "twice", 2)
    (twice / "2.png").write_bytes((twice / "00000001.png").read_bytes())
    with pytest.raises(DataError, match="2 twice"):
        list_frames(twice)


def test_bad_images(tmp_path):
    folder = frame_folder(tmp_path / "f", 3)
    whole = (folder / "00000002.png").read_bytes()
    (folder / "00000002.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"00000002\.png: image"):
        read_frames(folder, "evenly", 3)
    Image.fromarray(picture(1)[..., 0]).save(folder / "00000002.png")
    with pytest.raises(DataError, match="channels: found mode L; expected 3 channels"):
        read_frames(folder, "evenly", 3)
    Image.fromarray(picture(1, (8, 8))).save(folder / "00000002.png")
    with pytest.raises(DataError, match="frame size: found 2 different sizes"):
        read_frames(folder, "evenly", 3)


def test_problems_travel_through_files_and_processes(tmp_path):
    import pickle

    problems = [
        Problem("a.wav", "x", "rate", "8000", "32000", "resample"),
        Problem("ü", "", "b", "c", "d", "e", "warning"),
    ]
    write_problems(tmp_path / "quarantine.jsonl", [*problems, problems[0]])
    assert read_problems(tmp_path / "quarantine.jsonl") == problems
    assert str(problems[0]) == "a.wav [x]: rate: found 8000; expected 32000; resample"
    assert read_problems(tmp_path / "none.jsonl") == []
    error = pickle.loads(pickle.dumps(MediaError(problems[0])))
    assert error.problem == problems[0]
    assert error.exit_code == 3
    (tmp_path / "quarantine.jsonl").write_text('{"file": 1}\n')
    with pytest.raises(DataError, match="line 1"):
        read_problems(tmp_path / "quarantine.jsonl")


def test_a_video_whose_header_does_not_count_its_frames_gives_the_same_pictures(tmp_path):
    import av

    shots = np.stack([np.full((16, 16, 3), 40 * k, dtype=np.uint8) for k in range(6)])
    write_mp4(tmp_path / "clip.mp4", shots, 2, np.zeros(3 * RATE, np.float32))
    with av.open(str(tmp_path / "clip.mp4")) as source, av.open(str(tmp_path / "clip.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with av.open(str(tmp_path / "clip.mkv")) as container:
        assert container.streams.video[0].frames == 0
    counted, uncounted = (read_frames(tmp_path / name, "evenly", 3, 8) for name in ("clip.mp4", "clip.mkv"))
    assert np.array_equal(counted, uncounted)
    assert len({int(shot.mean()) for shot in counted}) == 3
