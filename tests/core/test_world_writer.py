"""Writing worlds: real files in a layout, the same bytes every time, never into somebody's folder."""

import json

import numpy as np
import pytest
import soundfile

from avcl_core.data.media import list_frames, read_frames, read_wave
from avcl_core.errors import ConfigError, DataError
from avcl_core.world import (
    Places,
    SceneBuilder,
    WorldSize,
    clip_id,
    frames,
    procedural,
    read_record,
    read_scenes,
    rng_for,
    sound_track,
    write_clip,
    write_world,
)

BANK = procedural(classes=4)
SIZE = WorldSize(2, 1, 1, seconds=3, size=48, fps=4)


def scenes(seed=0):
    found = []
    for split, count in SIZE.items():
        for index in range(count):
            builder = SceneBuilder(
                BANK, split, rng_for(seed, split, index), seconds=SIZE.seconds, size=SIZE.size, fps=SIZE.fps
            )
            builder.add(BANK.classes[index], visible=[(0, 3)], audible=[(1, 3)])
            found.append(builder.scene(clip_id(seed, split, index)))
    return found


def write(root, seed=0, **more):
    clips = scenes(seed)
    text = {"lists/all.txt": "\n".join(clip.id for clip in clips)}
    return write_world(root, clips, BANK, text, task="toy", seed=seed, size=SIZE, **{"workers": 1, **more})


def tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_mp4_holds_the_pictures_and_the_sound(tmp_path):
    scene = scenes()[0]
    assert list(write_clip(tmp_path, scene, BANK)) == [f"video/{scene.id}.mp4"]
    path = tmp_path / f"video/{scene.id}.mp4"
    truth = frames(scene, BANK)
    shots = read_frames(path, range(1, 13), 3)
    assert shots.shape == truth.shape
    assert np.abs(shots.astype(int) - truth).mean() < 8
    wave, mix = read_wave(path, samples=3 * 32000), sound_track(scene, BANK)
    assert np.corrcoef(wave[2000:-2000], mix[2000:-2000])[0, 1] > 0.97  # aligned to the sample: no encoder delay


def test_frames_and_waves_in_a_layout_of_choice(tmp_path):
    scene = scenes()[0]
    where = Places(frames="LLP_dataset/frame/{id}", wave="LLP_dataset/wave/{id}.npy", frame_times="middle")
    write_clip(tmp_path, scene, BANK, "frames", where)
    folder = tmp_path / "LLP_dataset/frame" / scene.id
    assert [p.name for p in list_frames(folder)] == ["00000001.jpg", "00000002.jpg", "00000003.jpg"]
    truth = frames(scene, BANK, times=[0.625, 1.625, 2.625])
    assert np.abs(read_frames(folder, "middle", 3).astype(int) - truth).mean() < 6
    stored = np.load(tmp_path / f"LLP_dataset/wave/{scene.id}.npy")
    assert np.array_equal(stored, sound_track(scene, BANK))
    other = Places(frames="{id}", frame_name="{id}.mp4_{number}.png", wave="{id}.wav")
    write_clip(tmp_path / "png", scene, BANK, "frames", other)
    assert np.array_equal(read_frames(tmp_path / "png" / scene.id, range(1, 13), 3), frames(scene, BANK))
    wave, rate = soundfile.read(tmp_path / f"png/{scene.id}.wav")
    assert rate == 32000
    assert np.abs(wave - stored).max() < 1e-4


def test_a_world_is_a_pure_function_of_its_arguments(tmp_path):
    seen = []
    record = write(tmp_path / "a", progress=lambda done, total: seen.append((done, total)))
    write(tmp_path / "b", workers=2)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert seen == [(k, 4) for k in (1, 2, 3, 4)]
    assert json.loads((tmp_path / "a/world.json").read_text()) == record
    assert record["bank"]["name"] == "procedural-task"
    assert record["difficulty"]["version"] == "1"
    assert record["media_files"] == 4
    assert read_scenes(tmp_path / "a") == scenes()
    assert write(tmp_path / "c", seed=1)["media_digest"] != record["media_digest"]


def test_an_interrupted_world_is_written_again_and_a_finished_one_left_alone(tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", progress=stop)
    assert read_record(tmp_path / "a") is None
    (tmp_path / "a/video/.half.123.tmp").write_bytes(b"rest of a killed writer")
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    stamp = (tmp_path / "b/world.json").stat().st_mtime_ns
    write(tmp_path / "b")
    assert (tmp_path / "b/world.json").stat().st_mtime_ns == stamp


def test_other_folders_are_refused(tmp_path):
    write(tmp_path / "a")
    with pytest.raises(DataError, match="another world"):
        write(tmp_path / "a", seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(DataError, match="not a generated world"):
        write(tmp_path / "mine")
    (tmp_path / "a/world.json").write_text("{")
    with pytest.raises(DataError, match=r"world\.json"):
        read_record(tmp_path / "a")
    (tmp_path / "a/scenes.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"scenes\.jsonl: line 1"):
        read_scenes(tmp_path / "a")
    with pytest.raises(DataError, match="no such file"):
        read_scenes(tmp_path)


def test_sizes_are_checked():
    with pytest.raises(ConfigError, match="val is 0"):
        WorldSize(1, 0, 1)
    with pytest.raises(ConfigError, match="even"):
        WorldSize(1, 1, 1, size=95)
    with pytest.raises(ConfigError, match="media"):
        write_clip(None, scenes()[0], BANK, "gif")
