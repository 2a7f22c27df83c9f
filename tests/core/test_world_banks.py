"""Banks: disjoint splits, determinism, exact file formats, errors that name the file."""

import hashlib
import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avcl_core.errors import ConfigError, DataError
from avcl_core.world import SourceBank, digits, folder, procedural
from avcl_core.world.procedural import recipe

_spec = importlib.util.spec_from_file_location("world_files", Path(__file__).with_name("world_files.py"))
assert _spec
assert _spec.loader
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


@pytest.fixture
def digit_bank(tmp_path):
    return digits(files.write_mnist(tmp_path / "mnist"), files.write_speech(tmp_path / "fsdd"))


@pytest.fixture
def user_root(tmp_path):
    rng = np.random.default_rng(1)
    for cls in ("cat", "dog"):
        for kind in ("images", "sounds"):
            (tmp_path / "own" / kind / cls).mkdir(parents=True)
        for k in range(7):
            picture = rng.integers(0, 256, (40, 300, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "own/images" / cls / f"{k}.png")
            soundfile.write(tmp_path / "own/sounds" / cls / f"{k}.wav", rng.uniform(-0.5, 0.5, (4000, 2)), 16000)
    return tmp_path / "own"


def test_every_bank_meets_the_protocol(digit_bank, user_root):
    for bank in (procedural(), digit_bank, folder(user_root), procedural().subset(procedural().classes[3:5])):
        assert isinstance(bank, SourceBank)
        cls = bank.classes[-1]
        sprite = bank.sprite(cls, bank.sprites(cls, "train")[0])
        assert sprite.dtype == np.uint8
        assert sprite.ndim == 3
        assert sprite.shape[2] == 4
        assert (sprite[..., 3] > 127).mean() > 0.05
        wave = bank.sound(cls, bank.sounds(cls, "test")[0], 32000)
        assert wave.dtype == np.float32
        assert wave.ndim == 1
        assert 0.05 < np.abs(wave).max() <= 1.0
        half = bank.sound(cls, bank.sounds(cls, "test")[0], 16000)
        assert abs(len(half) * 2 - len(wave)) <= 64
        assert pickle.loads(pickle.dumps(bank)).describe() == bank.describe()


@pytest.mark.parametrize("family", ["task", "pretrain"])
def test_procedural_splits_hold_different_pictures_and_sounds(family):
    bank = procedural(family)
    for cls in bank.classes[::13]:
        looks = {s: {digest(bank.sprite(cls, i)) for i in bank.sprites(cls, s)} for s in ("train", "val", "test")}
        sounds = {
            s: {digest(bank.sound(cls, i, 32000)) for i in bank.sounds(cls, s)[:4]} for s in ("train", "val", "test")
        }
        for found in (looks, sounds):
            assert sum(map(len, found.values())) == len(set().union(*found.values()))
        assert len(looks["train"]) == 60


def test_procedural_families_share_parts_but_no_class():
    task, pretrain = ([recipe(family, i) for i in range(64)] for family in ("task", "pretrain"))
    for key in (lambda r: (r.outline, r.texture), lambda r: (r.source, r.gesture), lambda r: r.name):
        assert len({key(r) for r in task}) == len({key(r) for r in pretrain}) == 64
        assert not {key(r) for r in task} & {key(r) for r in pretrain}
    assert {r.outline for r in task} == {r.outline for r in pretrain}
    assert {r.source for r in task[:16]} == {r.source for r in pretrain[:16]}


def test_procedural_is_the_same_in_every_process_and_release():
    bank = procedural()
    cls = bank.classes[2]
    assert cls == "drone-moon"
    again = pickle.loads(pickle.dumps(bank))
    assert digest(bank.sprite(cls, "train-001")) == digest(again.sprite(cls, "train-001"))
    assert len(bank.classes) == 28
    assert len(procedural("pretrain").classes) == 32
    assert procedural(classes=5).classes == bank.classes[:5]
    assert not any(c in name for name in procedural(classes=64).classes for c in ",&\t ")


def test_procedural_looks_and_sounds_tell_classes_apart():
    """Nearest class mean on crude features: far above chance, and not perfect."""
    bank = procedural()

    def features(split, n):
        rows, labels = [], []
        for index, cls in enumerate(bank.classes):
            for id in bank.sounds(cls, split)[:n]:
                wave = bank.sound(cls, id, 32000)[:40000]
                power = np.abs(np.fft.rfft(wave)) ** 2
                edges = np.geomspace(2, len(power), 25).astype(int)
                bands = np.log(np.add.reduceat(power, edges[:-1])[:24] + 1e-3)
                envelope = wave[: 40000 // 400 * 400].reshape(-1, 400).std(axis=1)
                rows.append(
                    np.concatenate([bands - bands.mean(), 20 * np.abs(np.fft.rfft(envelope))[1:12] / envelope.sum()])
                )
                labels.append(index)
        return np.array(rows), np.array(labels)

    x, y = features("train", 6)
    means = np.stack([x[y == k].mean(axis=0) for k in range(28)])
    scale = x.std(axis=0)
    q, t = features("test", 3)
    guess = (((q[:, None] - means) / scale) ** 2).sum(axis=2).argmin(axis=1)
    assert 0.4 < (guess == t).mean() < 1.0


def test_unknown_names_are_named():
    bank = procedural()
    with pytest.raises(ConfigError, match="did you mean 'drone-moon'"):
        bank.sprites("drone-mon", "train")
    with pytest.raises(ConfigError, match="split 'dev'"):
        bank.sounds("drone-moon", "dev")
    with pytest.raises(ConfigError, match="family"):
        procedural("other")
    with pytest.raises(ConfigError, match="65 classes"):
        procedural(classes=65)
    with pytest.raises(ConfigError, match="unknown"):
        bank.subset(["drone-moon"]).sprites("growl-gear", "train")
    with pytest.raises(DataError, match="repeat"):
        bank.subset(["drone-moon", "drone-moon"])


def test_digits_splits_are_disjoint_by_file_and_speaker(digit_bank, tmp_path):
    bank = digit_bank
    assert bank.speakers == {"train": files.SPEAKERS[:4], "val": ("emil",), "test": ("fritz",)}
    ids = {s: {i for c in bank.classes for i in bank.sprites(c, s)} for s in ("train", "val", "test")}
    assert not ids["train"] & ids["val"]
    assert all(i.startswith("t10k") for i in ids["test"])
    assert len(ids["train"]) + len(ids["val"]) == 120
    assert len(ids["val"]) == 20
    assert {i.split("_")[1] for c in bank.classes for i in bank.sounds(c, "test")} == {"fritz"}
    assert bank.sounds("three", "val") == ("3_emil_0", "3_emil_1")
    sprite = bank.sprite("seven", bank.sprites("seven", "test")[0])
    assert sprite.shape[:2] == (56, 28)  # trimmed to the ink, 16 x 8, and scaled up
    assert len(bank.sound("seven", "7_anna_1", 32000)) == pytest.approx(3300 * 4, abs=64)


def test_digits_read_the_archive_and_plain_idx_files(digit_bank, tmp_path):
    archive = files.write_speech_archive(tmp_path / "fsdd.tar.xz")
    other = digits(files.write_mnist(tmp_path / "plain", suffix=""), archive)
    assert other.sounds("two", "train") == digit_bank.sounds("two", "train")
    assert np.array_equal(other.sound("two", "2_anna_0", 32000), digit_bank.sound("two", "2_anna_0", 32000))
    assert np.array_equal(other.sprite("two", "train-2"), digit_bank.sprite("two", "train-2"))
    assert other.describe()["recordings_crc32"] == digit_bank.describe()["recordings_crc32"]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def _wrong_magic(path):
    files.write_idx(path, np.zeros((4, 2), np.uint8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_truncate, "content"), (_wrong_magic, "magic number: found 00000802"), (Path.unlink, "no such file")],
)
def test_damaged_idx_files_are_named(tmp_path, damage, message):
    folder_ = files.write_mnist(tmp_path / "mnist")
    damage(folder_ / "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte.gz.*{message}"):
        digits(folder_, tmp_path).sprites("one", "train")


def test_idx_with_missing_pixels_or_labels(tmp_path):
    folder_ = files.write_mnist(tmp_path / "mnist", suffix="")
    _truncate(folder_ / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match=r"length: found 94040 bytes; expected 94080"):
        digits(folder_, tmp_path).sprites("one", "train")
    files.write_idx(folder_ / "t10k-labels-idx1-ubyte", np.zeros(7, np.uint8))
    with pytest.raises(DataError, match="7 labels; expected 40"):
        digits(folder_, tmp_path).sprites("one", "test")


def test_speech_sources_that_do_not_fit(tmp_path, digit_bank):
    mnist = tmp_path / "mnist"
    with pytest.raises(DataError, match="no such file"):
        digits(mnist, tmp_path / "none").sounds("one", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="recordings: found 0"):
        digits(mnist, tmp_path / "empty").sounds("one", "train")
    cut = files.write_speech_archive(tmp_path / "cut.tar.xz")
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cut\.tar\.xz"):
        digits(mnist, cut).sounds("one", "train")
    few = tmp_path / "few"
    few.mkdir()
    for name in ("1_anna_0.wav", "1_bela_0.wav"):
        (few / name).write_bytes(files.recordings()[name])
    with pytest.raises(DataError, match="speakers: found anna, bela"):
        digits(mnist, few).sounds("one", "train")


def test_folder_bank_splits_by_seed_and_keeps_files_apart(user_root):
    bank = folder(user_root, seed=3)
    parts = {s: bank.sprites("cat", s) for s in ("train", "val", "test")}
    assert sorted(sum(parts.values(), ())) == [f"{k}.png" for k in range(7)]
    assert [len(parts[s]) for s in ("train", "val", "test")] == [5, 1, 1]
    assert any(folder(user_root, seed=s).sprites("cat", "test") != parts["test"] for s in range(8))
    assert bank.sprite("cat", "0.png").shape == (17, 128, 4)
    assert len(bank.sound("dog", "0.wav", 32000)) == pytest.approx(8000, abs=64)


def test_folder_bank_errors(user_root):
    (user_root / "images/bird").mkdir()
    with pytest.raises(DataError, match=r"bird \(no sounds\)"):
        folder(user_root)
    (user_root / "images/bird").rmdir()
    (user_root / "images/cat/0.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"0\.png"):
        folder(user_root).sprite("cat", "0.png")
    with pytest.raises(DataError, match="no such folder"):
        folder(user_root / "nothing")


@pytest.mark.realdata
def test_real_digits(real_data):
    bank = digits(real_data / "mnist", real_data / "fsdd.tar.xz")
    counts = bank.describe()
    assert sum(counts["sprites"]["train"].values()) == 50000
    assert sum(counts["sprites"]["val"].values()) == 10000
    assert sum(counts["sprites"]["test"].values()) == 10000
    assert [sum(counts["sounds"][s].values()) for s in ("train", "val", "test")] == [2000, 500, 500]
    assert counts["speakers"] == {
        "train": ["george", "jackson", "lucas", "nicolas"],
        "val": ["theo"],
        "test": ["yweweler"],
    }
    for cls in bank.classes:
        assert bank.sprite(cls, bank.sprites(cls, "test")[0])[..., 3].max() == 255
        assert np.abs(bank.sound(cls, bank.sounds(cls, "test")[0], 32000)).max() > 0.01
