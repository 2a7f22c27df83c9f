"""Motion features on their way: files → layout → prepared → samples → head; and their computation from raw videos."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.video import r2plus1d_18

import avcl_avvp.r2plus1d as r2plus1d
from avcl_avvp import ParsingOptions, plugin
from avcl_avvp.cli import main
from avcl_avvp.dataset import ParsingData
from avcl_avvp.motion import origin, read_motion
from avcl_avvp.r2plus1d import compute_features, load_network, second_vectors
from avcl_core.data.frames import read_frames
from avcl_core.data.prepare import prepare
from avcl_core.data.prepared import Prepared
from avcl_core.data.problems import MediaError
from avcl_core.data.verify import verify_source
from avcl_core.errors import ConfigError, DataError
from avcl_core.models.base import Model
from avcl_core.testing import check_task
from shared_backbones import create


@pytest.fixture
def root(avvp_root: Path, tmp_path: Path) -> Path:
    """The tiny world with features of every clip."""
    copy = Path(shutil.copytree(avvp_root, tmp_path / "llp"))
    folder = copy / "LLP_dataset" / "feats" / "r2plus1d_18"
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted((copy / "LLP_dataset" / "video").iterdir())):
        features = np.random.default_rng(number).random((10, 512))
        np.save(folder / f"{path.stem}.npy", features.astype(np.float32 if number else np.float64))
    return copy


def features_of(root: Path) -> list[Path]:
    return sorted((root / "LLP_dataset" / "feats" / "r2plus1d_18").glob("*.npy"))


def prepared(root: Path, out: Path) -> Prepared:
    return prepare(plugin.layout(root), out, frame_size=64, workers=1)


def test_features_of_all_clips_reach_the_head(root, tmp_path):
    layout = plugin.layout(root)
    assert layout.problems == ()
    data = prepared(root, tmp_path / "prepared")
    assert data.extras == ("motion",)
    assert data.quarantined == {}
    task = plugin.build(ParsingOptions(width=16), data, "clean")
    assert (
        task.splits_note
        == "motion features: as found, without a record of their making (the published files have none)"
    )
    for split in ("train", "test"):
        key = task.experiences()[0].keys(split)[0]
        inputs = task.dataset(split).inputs(key, None)
        (path,) = [path for path in features_of(root) if path.stem == key[:11]]
        assert inputs["motion"].dtype == np.float32
        np.testing.assert_array_equal(inputs["motion"], np.load(path).astype(np.float32))
    towers = {"visual": create("swin_v2", size="tiny"), "audio": create("htsat", size="tiny")}
    check_task(task, towers)
    spec = Model(towers, {"avvp": task}, ParsingOptions()).spec()
    experience = task.experiences()[0]
    assert task.head(spec, experience).segments.motion is not None
    alone = plugin.build(ParsingOptions(width=16, motion=False), data, "clean")
    assert alone.dataset("test").inputs(experience.test[0], None).keys() == {"visual", "audio"}
    assert alone.head(spec, experience).segments.motion is None
    assert alone.splits_note == ""


def test_without_features_there_is_no_motion(avvp_root, avvp_prepared):
    assert all(clip.extras == () for clip in plugin.layout(avvp_root).clips)
    assert avvp_prepared.extras == ()
    assert not ParsingData(avvp_prepared, "clean").motion
    with pytest.raises(DataError, match=r"motion: found none; expected features of every clip; .*feats/r2plus1d_18"):
        plugin.build(ParsingOptions(motion=True), avvp_prepared, "clean")


BROKEN = {
    "shape": (lambda path: np.save(path, np.zeros((10, 500), np.float32)), "shape (10, 500)", "(10, 512)"),
    "rank": (lambda path: np.save(path, np.zeros(5120, np.float32)), "shape (5120,)", "(10, 512)"),
    "dtype": (lambda path: np.save(path, np.zeros((10, 512), np.int64)), "dtype int64", "float32"),
    "NaN": (lambda path: np.save(path, np.full((10, 512), np.nan, np.float32)), "5120 NaN or infinite", "finite"),
    "pickle": (lambda path: np.save(path, np.array([{}]), allow_pickle=True), "", ".npy array of numbers"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "", ".npy array of numbers"),
    "text": (lambda path: path.write_text("no array"), "", ".npy array of numbers"),
    "missing": (lambda path: path.unlink(), "no such file", "features of every clip, or of none"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_features_are_named(root, name):
    path = features_of(root)[3]
    damage, found, expected = BROKEN[name]
    damage(path)
    with pytest.raises(MediaError) as error:
        read_motion((path,))
    for part in (str(path), "motion: found", found, expected, "avvp features"):
        assert part in str(error.value)
    problems = verify_source(plugin.layout(root), "full")
    assert [(p.record, p.severity) for p in problems] == [(path.stem, "error")]


def test_clips_with_broken_features_are_quarantined(root, tmp_path):
    first, second, *_, last = features_of(root)
    first.unlink()
    np.save(second, np.zeros((9, 512), np.float32))
    last.rename(last.with_stem("zzzzzzzzzzz"))
    layout = plugin.layout(root)
    (spare,) = layout.problems
    assert (spare.severity, spare.found) == ("warning", "1 ids without annotation: zzzzzzzzzzz")
    data = prepare(layout, tmp_path / "prepared", frame_size=32, workers=1)
    assert set(data.quarantined) == {first.stem, second.stem, last.stem}
    assert len(data) == 11


class Means(nn.Module):
    """Stands for the network: 512 times the mean of what it is given."""

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        assert clip.shape[1:] == (3, r2plus1d.FRAMES, 112, 112)
        return clip.mean((1, 2, 3, 4))[:, None].expand(-1, 512)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.manual_seed(0)
    network = r2plus1d_18()
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    torch.save(network.state_dict(), path)
    return path


def test_network_is_that_of_torchvision_without_its_class_head(checkpoint):
    network = load_network(checkpoint)
    whole = r2plus1d_18().eval()
    whole.load_state_dict(torch.load(checkpoint, weights_only=True))
    clip = torch.randn(1, 3, 2, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = network(clip)
        torch.testing.assert_close(whole.fc(found), whole(clip))
    assert found.shape == (1, 512)
    assert not network.training


def test_each_second_gets_the_vector_of_its_own_frames():
    frames = np.repeat(np.arange(10, dtype=np.uint8)[:, None], r2plus1d.FRAMES, 1).reshape(-1, 1, 1, 1) * 20
    vectors = second_vectors(Means(), np.broadcast_to(frames, (160, 24, 32, 3)).copy())
    assert (vectors.shape, vectors.dtype) == ((10, 512), np.float32)
    mean, deviation = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
    expected = [np.mean([(20 * s / 255 - m) / d for m, d in zip(mean, deviation, strict=True)]) for s in range(10)]
    np.testing.assert_allclose(vectors[:, 0], expected, atol=1e-4)


def test_features_command_with_random_weights(avvp_root, checkpoint, tmp_path, monkeypatch, capsys):
    """Every command line step on one video with the real network; two frames a second instead of sixteen, for time."""
    monkeypatch.setattr(r2plus1d, "FRAMES", 2)
    copy = Path(shutil.copytree(avvp_root, tmp_path / "llp"))
    video, *others = sorted((copy / "LLP_dataset" / "video").iterdir())
    for path in others:
        path.unlink()
    out = copy / "LLP_dataset" / "feats" / "r2plus1d_18"
    monkeypatch.setattr("sys.argv", ["avvp", "features", str(copy), str(out), "--checkpoint", str(checkpoint)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    assert f"{out}: features of 1 videos" in capsys.readouterr().out
    found = np.load(out / f"{video.stem}.npy")
    last = second_vectors(load_network(checkpoint), read_frames(video, "evenly", 20)[-2:])
    np.testing.assert_allclose(found[9:], last, atol=1e-5)
    assert found.shape == (10, 512)
    assert np.ptp(found, axis=0).max() > 0
    assert json.loads((out / "recipe.json").read_text())["checkpoint"] == "random.pth"


@pytest.fixture
def quick(monkeypatch) -> Path:
    """A network that costs nothing, and a checkpoint file that is only digested."""
    monkeypatch.setattr(r2plus1d, "load_network", lambda path: Means())
    monkeypatch.setattr(r2plus1d, "FRAMES", 2)
    return Path(__file__)


def test_computed_features_are_taken_by_the_layout_and_reported(avvp_root, quick, tmp_path):
    copy = Path(shutil.copytree(avvp_root, tmp_path / "llp"))
    out = copy / "LLP_dataset" / "feats" / "r2plus1d_18"
    seen = []
    assert compute_features(copy, out, quick, progress=lambda done, total: seen.append((done, total))) == 14
    assert seen == [(number, 14) for number in range(1, 15)]
    data = prepared(copy, tmp_path / "prepared")
    note = ParsingData(data, "clean").note
    assert note.startswith("motion features: avvp features with test_avvp_motion.py (sha256 ")
    (data.folder / "annotations" / "motion.json").write_text("{}   ")
    with pytest.raises(DataError, match=r"motion.json.*checkpoint"):
        origin(data.folder / "annotations" / "motion.json")


def test_features_go_on_where_they_stopped_and_refuse_another_recipe(avvp_root, quick, tmp_path):
    out = tmp_path / "features"
    compute_features(avvp_root, out, quick)
    _, second, third, *_ = sorted(out.glob("*.npy"))
    stamps = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    content = second.read_bytes(), third.read_bytes()
    second.unlink()
    third.write_bytes(b"half")
    compute_features(avvp_root, out, quick)
    changed = {path.name for path in out.glob("*.npy") if path.stat().st_mtime_ns != stamps[path.name]}
    assert changed == {second.name, third.name}
    assert (second.read_bytes(), third.read_bytes()) == content
    other = tmp_path / "other.pth"
    other.write_bytes(b"other weights")
    with pytest.raises(DataError, match=r"found checkpoint, sha256; expected an empty folder or the same recipe"):
        compute_features(avvp_root, out, other)
    (out / "recipe.json").unlink()
    with pytest.raises(DataError, match="features without a recipe"):
        compute_features(avvp_root, out, quick)
    (out / "recipe.json").write_text("{")
    with pytest.raises(DataError, match=r"recipe.json: content"):
        compute_features(avvp_root, out, quick)


def test_videos_that_cannot_be_read_are_listed_and_the_others_done(avvp_root, quick, tmp_path):
    copy = Path(shutil.copytree(avvp_root, tmp_path / "llp"))
    video = sorted((copy / "LLP_dataset" / "video").iterdir())[4]
    whole = video.read_bytes()
    video.write_bytes(whole[:-400])
    out = tmp_path / "features"
    with pytest.raises(DataError, match=rf"1 of 14 videos without features.*{video.name}") as error:
        compute_features(copy, out, quick)
    assert error.value.exit_code == 3
    assert len(list(out.glob("*.npy"))) == 13
    video.write_bytes(whole)
    assert compute_features(copy, out, quick) == 14
    assert not (out / "quarantine.jsonl").exists()


def test_a_device_that_is_not_there_is_named(avvp_root, quick, tmp_path):
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError, match=rf"device {device}: .*expected cpu"):
            compute_features(avvp_root, tmp_path / "out", quick, device)
    assert not (tmp_path / "out").exists()


def test_unusable_sources_and_checkpoints_are_named(avvp_root, tmp_path):
    copy = Path(shutil.copytree(avvp_root, tmp_path / "llp"))
    shutil.rmtree(copy / "LLP_dataset")
    with pytest.raises(DataError, match=r"videos: found none; expected LLP_dataset/video"):
        compute_features(copy, tmp_path / "out", tmp_path / "none.pth")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=r"none.pth: found no such file"):
        load_network(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(DataError, match=r"text.pth: found no file of tensors"):
        load_network(tmp_path / "text.pth")
    torch.save({"stem.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"other.pth: .*r2plus1d_18") as error:
        load_network(tmp_path / "other.pth")
    assert "\n" not in str(error.value)
    torch.save([nn.ReLU()], tmp_path / "objects.pth")
    with pytest.raises(DataError, match=r"objects.pth: found no file of tensors"):
        load_network(tmp_path / "objects.pth")
