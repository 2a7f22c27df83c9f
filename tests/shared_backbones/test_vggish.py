"""VGGish: its front end against a formula of its own in numpy, its published checkpoint, and AudioSet's post-processing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from shared_backbones import create
from shared_backbones.convert import convert_in_process
from shared_backbones.convert.archive import read_tensors
from shared_backbones.errors import WeightsError
from shared_backbones.registry import build
from shared_backbones.vggish_patches import LogMelPatches
from shared_backbones.vggish_pca import Pca, load_pca, postprocess


def noise(seconds, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(16000 * seconds))


def bank():
    """Weight of each bin (31.25 Hz apart) in each band: triangles between neighbouring edges, all measured in mel."""

    def mel(hz):
        return 1127 * math.log(1 + hz / 700)

    edges = [mel(125) + i * (mel(7500) - mel(125)) / 65 for i in range(66)]
    weights = np.zeros((257, 64))
    for b in range(1, 257):
        for m in range(64):
            left, centre, right = edges[m : m + 3]
            at = mel(31.25 * b)
            weights[b, m] = max(0.0, min((at - left) / (centre - left), (right - at) / (right - centre)))
    return weights


def direct(wave):
    """All log-mel frames of a waveform, float64 [frames, 64]: 25-ms windows every 10 ms, no padding, magnitudes."""
    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * n / 400) for n in range(400)])
    count = 1 + (len(wave) - 400) // 160
    frames = np.stack([wave[160 * i : 160 * i + 400] * window for i in range(count)])
    waves = np.exp(-2j * np.pi * np.outer(np.arange(400), np.arange(257)) / 512)
    return np.log(np.abs(frames @ waves) @ bank() + 0.01)


def patches(wave, *count):
    return LogMelPatches()(torch.from_numpy(wave).float()[None], *count)[0].double().numpy()


def test_a_second_gives_its_first_96_frames():
    wave = noise(1)
    expected = direct(wave)
    assert expected.shape == (98, 64)
    found = patches(wave)
    assert found.shape == (1, 96, 64)
    np.testing.assert_allclose(found[0], expected[:96], atol=2e-5)


def test_patches_follow_each_other_and_the_last_is_repeated():
    wave = noise(2.5)
    expected = direct(wave)  # 248 frames: two whole patches
    found = patches(wave, 5)
    assert found.shape == (5, 96, 64)
    np.testing.assert_allclose(found[0], expected[:96], atol=2e-5)
    np.testing.assert_allclose(found[1], expected[96:192], atol=2e-5)
    assert all(np.array_equal(found[i], found[1]) for i in (2, 3, 4))
    assert np.array_equal(patches(wave, 1), found[:1])
    assert not np.array_equal(patches(noise(5), 5)[4], patches(noise(5), 5)[3])  # five seconds have five


@pytest.mark.parametrize("samples", [1, 399, 8000, 15599])
def test_less_than_a_patch_is_continued_with_silence(samples):
    wave = noise(1)[:samples]
    expected = direct(np.concatenate([wave, np.zeros(15600 - samples)]))
    assert len(expected) == 96
    np.testing.assert_allclose(patches(wave)[0], expected, atol=2e-5)


def test_silence_and_a_tone():
    np.testing.assert_allclose(patches(np.zeros(16000)), math.log(0.01), atol=1e-6)
    assert not LogMelPatches().bank[0].any()  # the bin at 0 Hz counts nowhere
    loudest = patches(0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000))[0].mean(0).argmax()
    assert bank()[32, loudest] > 0.5


def test_front_end_stays_in_float32_under_autocast():
    wave = torch.from_numpy(noise(1)).float()[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LogMelPatches()(wave), LogMelPatches()(wave.double()))
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        LogMelPatches()(wave[0])
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        LogMelPatches()(wave[:, :0])


def test_every_option_is_in_the_digest():
    tower = create("vggish", size="tiny", pretrained=False)
    assert tower.frontend_options == {
        "kind": "log-mel patches", "sample_rate": 16000, "window": 400, "hop": 160, "n_fft": 512, "mels": 64, "low": 125.0,
        "high": 7500.0, "offset": 0.01, "frames": 96,
    }  # fmt: skip
    # Pinned: caches keyed by it must survive a release that does not touch the front end.
    assert tower.frontend_digest == "ee079315cd047eb528fb223b62fb4a25672562eab35b39e0babdadc557ca61bc"


SHAPES = {
    "features.0": (64, 1, 3, 3), "features.3": (128, 64, 3, 3), "features.6": (256, 128, 3, 3),
    "features.8": (256, 256, 3, 3), "features.11": (512, 256, 3, 3), "features.13": (512, 512, 3, 3),
    "embeddings.0": (4096, 12288), "embeddings.2": (4096, 4096), "embeddings.4": (128, 4096),
}  # fmt: skip


def published():
    """The port's tensors; all are overlapping views of one block of noise, so the file is small."""
    block = torch.randn(5_000_000, generator=torch.Generator().manual_seed(0)) * 0.02
    tensors = {}
    for name, shape in SHAPES.items():
        inner = math.prod(shape[1:])
        rows = block.as_strided((shape[0], inner), (1009 if inner > 1009 else inner, 1))
        tensors[f"{name}.weight"] = rows.unflatten(1, shape[1:])
        tensors[f"{name}.bias"] = block[1000 : 1000 + shape[0]]
    return tensors


def test_published_checkpoint_equals_the_direct_formulation(tmp_path):
    t = published()
    torch.save(t, tmp_path / "vggish-10086976.pth", _use_new_zipfile_serialization=False)
    done = convert_in_process(tmp_path / "vggish-10086976.pth", tmp_path / "out.safetensors")
    assert (done.tower, done.variant, done.converter, done.tensors) == ("vggish", "vggish", "vggish", 18)
    tower = create("vggish", checkpoint=done.file)
    wave = torch.from_numpy(noise(1)).float()[None]
    x = torch.from_numpy(direct(noise(1))[:96]).float()[None, None]
    for layer in (0, 3, 6, 8, 11, 13):
        name = f"features.{layer}"
        x = F.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"], padding=1).relu()
        if layer not in (6, 11):
            x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    assert x.shape == (1, 512, 6, 4)
    flat = torch.tensor([x[0, c, i, j] for i in range(6) for j in range(4) for c in range(512)])[None]
    for layer in (0, 2, 4):
        flat = (flat @ t[f"embeddings.{layer}.weight"].T + t[f"embeddings.{layer}.bias"]).relu()
    found = tower.encode(wave)
    assert found.shape == (1, 1, 128)
    assert flat.std() > 0.01
    torch.testing.assert_close(found[:, 0], flat, rtol=1e-4, atol=1e-4)
    (tmp_path / "out.safetensors").unlink()


def test_conversion_is_strict(tmp_path):
    tensors = {name: torch.zeros(()).expand(t.shape) for name, t in published().items()}
    tensors["features.2.weight"] = tensors.pop("features.3.weight")
    tensors["embeddings.4.bias"] = torch.zeros(64)
    torch.save(tensors, tmp_path / "file.pth")
    expected = (
        r"missing 1 keys: features\.3\.weight; unknown 1 keys: features\.2\.weight; "
        r"wrong shapes: embeddings\.4\.bias \(64,\) instead of \(128,\)"
    )
    with pytest.raises(WeightsError, match=expected):
        convert_in_process(tmp_path / "file.pth", tmp_path / "out.safetensors")


def test_full_tower_has_the_published_names():
    own = build("vggish", "full", {}, device="meta").net.state_dict()
    assert {name.removesuffix(".weight"): tuple(t.shape) for name, t in own.items() if t.ndim > 1} == SHAPES


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {"pca_eigen_vectors": rng.normal(0, 0.3, (128, 128)), "pca_means": rng.normal(0.2, 0.1, (128, 1))}


def test_post_processing():
    pca = arrays()
    embeddings = np.abs(np.random.default_rng(1).normal(0, 0.5, (7, 128)))
    found = postprocess(
        torch.from_numpy(embeddings),
        Pca(*(torch.from_numpy(a) for a in (pca["pca_eigen_vectors"], pca["pca_means"][:, 0]))),
    )
    expected = np.zeros((7, 128), np.uint8)
    for i in range(7):
        for j in range(128):
            value = sum(pca["pca_eigen_vectors"][j] * (embeddings[i] - pca["pca_means"][:, 0]))
            expected[i, j] = int((min(2, max(-2, value)) + 2) * 255 / 4)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), expected)
    assert {0, 255} < set(found.flatten().tolist())


@pytest.mark.parametrize("kind", ["legacy", "zip", "numpy 1", "flat", "tensors"])
def test_parameters_of_the_post_processing(kind, tmp_path):
    file, table = tmp_path / "vggish_pca_params-970ea276.pth", arrays()
    stored = dict(table)
    if kind == "flat":
        stored["pca_means"] = stored["pca_means"][:, 0]
    if kind == "tensors":
        stored = {name: torch.from_numpy(array) for name, array in stored.items()}
    torch.save(stored, file, _use_new_zipfile_serialization=kind == "zip")
    if kind == "numpy 1":
        content = file.read_bytes()
        assert b"numpy._core.multiarray" in content
        file.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    done = convert_in_process(file, tmp_path / "pca.safetensors")
    assert (done.tower, done.variant, done.converter) == ("vggish", "pca", "vggish_pca")
    assert {name: tuple(t.shape) for name, t in load_file(done.file).items()} == {
        "pca_eigen_vectors": (128, 128), "pca_means": (128, 1),
    }  # fmt: skip
    pca = load_pca(done.file)
    assert torch.equal(pca.vectors, torch.from_numpy(table["pca_eigen_vectors"]).float())
    assert torch.equal(pca.means, torch.from_numpy(table["pca_means"][:, 0]).float())


def test_parameters_of_something_else_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        load_pca(tmp_path / "none.pth")
    file = tmp_path / "pca.pth"
    torch.save(arrays() | {"pca_means": np.zeros(3)}, file)
    with pytest.raises(WeightsError, match=r"wrong shapes: pca_means \(3, 1\) instead of \(128, 1\)"):
        convert_in_process(file, tmp_path / "out.safetensors")
    torch.save(arrays(), file)
    with pytest.raises(WeightsError, match="variant 'pca'; expected 'vggish'"):
        create("vggish", checkpoint=file)
    assert load_pca(file).means.shape == (128,)  # converted in a process of its own, the first time


def test_arrays_of_objects_are_no_tensors(tmp_path):
    torch.save(
        {"numbers": np.arange(3), "words": np.array(["a", "b"]), "objects": np.array([1, None])}, tmp_path / "f.pt"
    )
    found = read_tensors(tmp_path / "f.pt")
    assert list(found) == ["numbers"]
    assert torch.equal(found["numbers"], torch.arange(3))
