"""Broken media of LLP: each is quarantined with path, field, found and expected, and refused with exit code 3 when it is read."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avcl_avvp import plugin
from avcl_avvp.dataset import ParsingData
from avcl_core.data.frames import read_frames
from avcl_core.data.prepare import prepare
from avcl_core.data.prepared import Prepared
from avcl_core.data.problems import QUARANTINE, MediaError, read_problems
from avcl_core.data.verify import verify
from avcl_core.data.waves import read_wave

Damage = Callable[[Path, Path], object]
"""Changes the frame folder and the wave file of a clip."""


def save(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return lambda frames, wave: np.save(wave, change(np.load(wave)))


def with_nan(wave: np.ndarray) -> np.ndarray:
    wave[7] = np.nan
    return wave


def renamed(frames: Path, wave: Path) -> None:
    (frames / "00000005.jpg").rename(frames / "00000011.jpg")


def emptied(frames: Path, wave: Path) -> None:
    for path in frames.iterdir():
        path.unlink()


def truncated(frames: Path, wave: Path) -> None:
    path = frames / "00000003.jpg"
    path.write_bytes(path.read_bytes()[:-200])


DAMAGES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no frame folder": (lambda frames, wave: shutil.rmtree(frames), ("frames", "found no file named")),
    "empty frame folder": (emptied, ("frames", "found 0", "expected 10")),
    "eleven frames": (
        lambda frames, wave: shutil.copy(frames / "00000010.jpg", frames / "00000011.jpg"),
        ("frames", "found 11", "expected 10"),
    ),
    "nine frames": (lambda frames, wave: (frames / "00000010.jpg").unlink(), ("frames", "found 9", "10")),
    "gap": (renamed, ("frame numbering", "found 6 after 4", "expected 5")),
    "truncated image": (truncated, ("00000003.jpg", "image", "complete image file")),
    "no image": (
        lambda frames, wave: (frames / "00000001.jpg").write_text("text"),
        ("00000001.jpg", "image", "complete image file"),
    ),
    "grey image": (
        lambda frames, wave: Image.new("L", (32, 32)).save(frames / "00000002.jpg"),
        ("00000002.jpg", "channels", "mode L", "3 channels"),
    ),
    "no wave": (lambda frames, wave: wave.unlink(), ("sound", "found no file named")),
    "integer wave": (save(lambda wave: (32767 * wave).astype(np.int16)), (".npy", "dtype", "int16", "float32")),
    "two channels": (save(lambda wave: np.stack([wave, wave])), (".npy", "rank", "(2, 320000)", "(320000,)")),
    "short wave": (save(lambda wave: wave[:-1]), (".npy", "length", "319999 samples", "320000 samples")),
    "NaN": (save(with_nan), (".npy", "samples", "1 NaN or infinite", "finite")),
    "silence": (save(np.zeros_like), (".npy", "samples", "only zeros", "a sound")),
}
"""Name → what is done to a clip, and what the finding says."""


@pytest.fixture(scope="module")
def damaged(avvp_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, dict[str, str]]:
    """LLP as frames and waves with one damage per clip, prepared; and name of the damage → clip id."""
    root = tmp_path_factory.mktemp("damaged") / "llp"
    shutil.copytree(avvp_root, root)
    media = root / "LLP_dataset"
    ids = sorted(path.stem for path in (media / "video").iterdir())
    for video in ids:
        source, frames, wave = (
            media / "video" / f"{video}.mp4",
            media / "frame" / video,
            media / "wave" / f"{video}.npy",
        )
        frames.mkdir(parents=True)
        wave.parent.mkdir(exist_ok=True)
        for number, picture in enumerate(read_frames(source, "middle", 10), start=1):
            Image.fromarray(picture).save(frames / f"{number:08d}.jpg")
        np.save(wave, read_wave(source, samples=320_000))
    shutil.rmtree(media / "video")
    clips = dict(zip(DAMAGES, ids, strict=True))
    for name, video in clips.items():
        DAMAGES[name][0](media / "frame" / video, media / "wave" / f"{video}.npy")
    data = prepare(plugin.layout(root), tmp_path_factory.mktemp("prepared") / "avvp", frame_size=32, workers=1)
    return data, clips


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != "silence"])
def test_broken_media_are_named_and_refused(damaged, name):
    data, clips = damaged
    problem = data.quarantined[clips[name]]
    assert problem.severity == "error"
    for part in (clips[name], *DAMAGES[name][1]):
        assert part in str(problem)
    task = ParsingData(data, "clean")
    (split, key) = next((s, k) for s in ("train", "val", "test") for k in task.keys(s) if k.startswith(clips[name]))
    with pytest.raises(MediaError, match=clips[name]) as error:
        task.split(split).inputs(key, None)
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)


def test_a_silent_clip_is_a_warning_and_stays(damaged):
    data, clips = damaged
    (warning,) = [p for p in read_problems(data.folder / QUARANTINE) if p.record == clips["silence"]]
    assert warning.severity == "warning"
    assert all(part in str(warning) for part in DAMAGES["silence"][1])
    assert not data.wave(clips["silence"]).any()
    assert set(clips.values()) - data.quarantined.keys() == {clips["silence"]}


def test_a_changed_prepared_file_is_named(avvp_prepared, tmp_path):
    folder = Path(shutil.copytree(avvp_prepared.folder, tmp_path / "avvp"))
    name = "frames/00000.npy"
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    found = [str(problem) for problem in verify(folder, "full")]
    assert any(name in text and "sha256" in text and "run `avcl data prepare` again" in text for text in found)
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(MediaError, match=rf"{name}.*size.*bytes.*data prepare"):
        Prepared(folder)


def test_a_truncated_video_is_named(avvp_root, tmp_path):
    root = Path(shutil.copytree(avvp_root, tmp_path / "llp"))
    video = sorted((root / "LLP_dataset" / "video").iterdir())[0]
    video.write_bytes(video.read_bytes()[:-500])
    data = prepare(plugin.layout(root), tmp_path / "prepared", frame_size=32, workers=1)
    assert list(data.quarantined) == [video.stem]
    assert f"{video}" in str(data.quarantined[video.stem])
