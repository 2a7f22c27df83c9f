"""The loader: batches by key that do not depend on who loads them, augmentation by coordinates, shuffled labels as a control."""

import numpy as np
import pytest
import torch

from avcl_core.testing import toy_task
from avcl_core.testing.toy_towers import clip
from avcl_core.training.inputs import VisualInput
from avcl_core.training.loader import Loader, Request


def loader(workers=0, shuffled=None, kind="tokens"):
    task = toy_task(kind, 2)
    return task, Loader({kind: task}, {"visual": VisualInput(clip().info)}, torch.device("cpu"), workers, shuffled)


def same(one, other):
    groups = [(one.inputs, other.inputs), (one.targets, other.targets), (one.stored, other.stored)]
    return one.keys == other.keys and all(
        a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) for a, b in groups
    )


def test_batches_hold_tower_inputs_task_inputs_targets_and_where_they_come_from():
    task, made = loader()
    first = task.experiences()[1]
    batches = list(made.batches(first, "train", 4))
    assert [b.keys for b in batches] == [first.train[:4], first.train[4:]]
    assert (batches[0].task, batches[0].experience, batches[0].share) == ("tokens", "tokens1", 1.0)
    # Audio has no tower here, so it is not loaded into the batch; the question is no modality and passes.
    assert set(batches[0].inputs) == {"visual", "question"}
    assert batches[0].inputs["visual"].shape == (4, 2, 3, 32, 32)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_not_even_the_generator_of_the_main_process(workers):
    task, alone = loader()
    _, helped = loader(workers)
    experience = task.experiences()[0]
    requests = [Request(experience, "train", experience.train[i : i + 2], (0, "augment", 1)) for i in range(0, 6, 2)]
    torch.manual_seed(1)
    one = list(alone.stream(requests))
    first = torch.rand(3)
    torch.manual_seed(1)
    other = list(helped.stream(requests))
    assert torch.equal(first, torch.rand(3))
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


def test_augmentation_follows_from_coordinates_and_key_not_from_the_batch():
    task, made = loader()
    experience = task.experiences()[0]
    keys = experience.train[:3]
    plain, once, again, later = (
        made.load(Request(experience, "train", keys, augment)).inputs["visual"]
        for augment in (None, (0, 1), (0, 1), (0, 2))
    )
    alone = made.load(Request(experience, "train", keys[2:], (0, 1))).inputs["visual"]
    assert torch.equal(once, again)
    assert torch.equal(once[2:], alone)
    assert not torch.equal(once, plain)
    assert not torch.equal(once, later)


def test_stored_tensors_travel_with_the_request():
    task, made = loader()
    experience = task.experiences()[0]
    stored = {"z": torch.arange(2.0)}
    assert torch.equal(
        made.load(Request(experience, "train", experience.train[:2], None, stored)).stored["z"], stored["z"]
    )


def test_shuffled_labels_deal_training_and_validation_targets_out_and_leave_tests_alone():
    task, plain = loader(kind="value")
    _, dealt = loader(kind="value", shuffled=0)
    experience = task.experiences()[0]
    for split, equal in (("train", False), ("val", False), ("test", True)):
        one, other = (
            {k: float(v["value"]) for k, v in made.targets(experience, split).items()} for made in (plain, dealt)
        )
        assert sorted(one.values()) == sorted(other.values())
        assert (one == other) is equal
        batch = dealt.load(Request(experience, split, experience.keys(split)))
        assert np.allclose(batch.targets["value"].numpy(), [other[key] for key in batch.keys])


def test_shuffled_labels_depend_on_the_seed():
    task, _ = loader(kind="value")
    experience = task.experiences()[0]
    one, other = (loader(kind="value", shuffled=seed)[1].targets(experience, "train") for seed in (0, 1))
    assert {k: float(v["value"]) for k, v in one.items()} != {k: float(v["value"]) for k, v in other.items()}
