"""The front-end cache: what it returns is what was computed, also with several processes and damaged entries."""

import multiprocessing

import numpy as np
import pytest

from avcl_core.data import FrontendCache
from avcl_core.errors import ConfigError

SHAPE = (3, 5)


def value(key: str) -> np.ndarray:
    return np.random.default_rng(int(key, 16)).standard_normal(SHAPE).astype(np.float32)


def never() -> np.ndarray:
    raise AssertionError("computed although cached")


def test_cached_equals_computed_bit_for_bit(tmp_path):
    cache = FrontendCache(tmp_path, "f" * 64, SHAPE)
    odd = value("ab")
    odd[0] = [np.nan, -0.0, np.inf, 1e-45, 1.0]
    first = cache.get("ab", lambda: odd)
    again = FrontendCache(tmp_path, "f" * 64, SHAPE).get("ab", never)
    assert first.tobytes() == again.tobytes() == odd.tobytes()
    assert again.flags.writeable


def test_keys_are_sample_and_front_end(tmp_path):
    cache = FrontendCache(tmp_path, "a" * 64, SHAPE)
    cache.get("01", lambda: value("01"))
    assert np.array_equal(cache.get("02", lambda: value("02")), value("02"))
    assert np.array_equal(FrontendCache(tmp_path, "b" * 64, SHAPE).get("01", lambda: value("07")), value("07"))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other shape"])
def test_damaged_entries_are_computed_again(tmp_path, damage):
    cache = FrontendCache(tmp_path, "f" * 64, SHAPE)
    cache.get("ab", lambda: value("ab"))
    path = cache.path("ab")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-20] ^= 4
    path.write_bytes({"cut": data[:-9], "flip": data, "empty": b"", "other shape": data}[damage])
    shape = (5, 3) if damage == "other shape" else SHAPE
    fresh = value("ab").reshape(shape)
    assert np.array_equal(FrontendCache(tmp_path, "f" * 64, shape).get("ab", lambda: fresh), fresh)
    assert np.array_equal(FrontendCache(tmp_path, "f" * 64, shape).get("ab", never), fresh)


def test_wrong_values_are_refused_and_not_stored(tmp_path):
    cache = FrontendCache(tmp_path, "f" * 64, SHAPE)
    with pytest.raises(ConfigError, match=r"found a value \(3, 5\) float64; expected \(3, 5\) float32"):
        cache.get("ab", lambda: np.zeros(SHAPE))
    assert not cache.path("ab").exists()


def _fill(folder, seed, queue):
    cache = FrontendCache(folder, "f" * 64, SHAPE)
    good = True
    for number in np.random.default_rng(seed).integers(0, 40, 400):
        key = f"{number:02x}"
        good &= cache.get(key, lambda key=key: value(key)).tobytes() == value(key).tobytes()
    queue.put(good)


def test_two_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_fill, args=(tmp_path, seed, queue)) for seed in (1, 2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [True, True]
    for worker in workers:
        worker.join()
    cache = FrontendCache(tmp_path, "f" * 64, SHAPE)
    assert all(cache.get(f"{k:02x}", never).tobytes() == value(f"{k:02x}").tobytes() for k in range(40))
    assert not list(tmp_path.rglob("*.tmp"))
