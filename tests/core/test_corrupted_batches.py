"""Corrupted batches: the same for any batch size and number of workers, uncached, denied where a model has a stand-in."""

import pytest
import torch

from avcl_core.data.corruptions import LIST, parse_corruption
from avcl_core.models.base import Model
from avcl_core.models.frozen import Frozen
from avcl_core.testing import toy_task, toy_towers
from avcl_core.training.inputs import make_inputs
from avcl_core.training.loader import Loader, Request
from avcl_core.walk import Ctx


def made(workers=0, cache=None, modalities=None):
    task, towers = toy_task("classes", 1, samples=(4, 3, 7)), toy_towers()
    inputs = make_inputs(towers, {}, task.audio_rate, cache)
    (experience,) = task.experiences()
    return task, towers, experience, Loader({task.name: task}, inputs, "cpu", workers, modalities=modalities)


def rows(loader, experience, size):
    """Key → the row's inputs and what it lacks."""
    found = {}
    for batch in loader.batches(experience, "test", size):
        for index, key in enumerate(batch.keys):
            found[key] = {
                f"{group}/{name}": value[index]
                for group in ("inputs", "present", "targets")
                for name, value in getattr(batch, group).items()
            }
    return found


def equal(one, other):
    return one.keys() == other.keys() and all(
        one[k].keys() == other[k].keys() and all(torch.equal(one[k][n], other[k][n]) for n in one[k]) for k in one
    )


@pytest.mark.parametrize("text", LIST)
def test_a_corruption_does_not_depend_on_the_batch(text):
    _, _, experience, loader = made()
    clean = rows(loader, experience, 7)
    with loader.corrupted(parse_corruption(text)):
        whole, cut = rows(loader, experience, 7), rows(loader, experience, 2)
    assert equal(whole, cut)
    assert not equal(whole, clean)
    assert equal(rows(loader, experience, 3), clean), "and ends with its block"


def test_workers_change_nothing():
    _, _, experience, loader = made()
    _, _, _, helped = made(workers=2)
    for text in ("audio_noise:0", "missing_segments:visual:1"):
        with loader.corrupted(parse_corruption(text)), helped.corrupted(parse_corruption(text)):
            assert equal(rows(loader, experience, 2), rows(helped, experience, 3))


def test_the_noisy_sound_is_neither_taken_from_the_cache_nor_put_there(tmp_path):
    _, _, experience, loader = made(cache=tmp_path)
    _, _, _, uncached = made()
    clean = rows(loader, experience, 7)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.npy")}
    assert files
    noise = parse_corruption("audio_noise:0")
    with loader.corrupted(noise), uncached.corrupted(noise):
        noisy = rows(loader, experience, 7)
        assert equal(noisy, rows(uncached, experience, 7))
    assert not equal(noisy, clean)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.npy")} == files
    assert equal(rows(loader, experience, 7), clean)


def test_training_samples_are_never_corrupted():
    _, _, experience, loader = made()
    with loader.corrupted(parse_corruption("audio_noise:0")), pytest.raises(ValueError, match="training samples"):
        loader.read(Request(experience, "train", experience.train[:1], (0, "augment")))


def test_a_run_on_one_modality_still_lacks_the_other():
    _, _, experience, loader = made(modalities=("visual",))
    assert loader.seen == ("visual",)
    with loader.corrupted(parse_corruption("missing_segments:visual:1")):
        batch = next(loader.batches(experience, "test", 3))
    assert batch.present["audio"].tolist() == [False] * 3
    assert batch.present["visual"].sum(1).tolist() == [1] * 3, "one of two frames"


@pytest.mark.parametrize("kind", [Model, Frozen])
@pytest.mark.parametrize("modality", ["visual", "audio"])
def test_single_seconds_are_replaced_by_the_stand_in_and_the_others_stay(kind, modality):
    task, towers, experience, loader = made()
    model = kind(towers, {task.name: task}, kind.Config())
    model.grow(experience)

    def features(text):
        with loader.corrupted(None if text is None else parse_corruption(text)):
            batch = next(loader.batches(experience, "test", 4))
        with torch.no_grad():
            return batch, model.features(batch, Ctx()).final[modality]

    _, clean = features(None)
    _, nothing = features(f"missing:{modality}")
    batch, found = features(f"missing_segments:{modality}:1")
    present = batch.present[modality]
    assert present.shape == (4, 2)
    assert len({tuple(row) for row in present.tolist()}) == 2, "another second in other samples"
    assert torch.allclose(found[present], clean[present], atol=1e-5)
    assert torch.allclose(found[~present], nothing[~present], atol=1e-5)
    assert not torch.allclose(found[~present], clean[~present], atol=1e-3)
