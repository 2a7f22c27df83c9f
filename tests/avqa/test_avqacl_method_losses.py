"""AVQACL's loss terms against hand computations, herding against a brute force, and the memory's budget."""

import itertools
import math

import numpy as np
import pytest
import torch

from avcl_avqa.answer_list import new_columns
from avcl_avqa.avqacl_losses import answer_sums, question_distance, slice_distances, structure_distance
from avcl_avqa.closed_words import WordList, words_of
from avcl_core.errors import ConfigError
from avcl_core.replay.herding import HerdedMemory, herded


def test_new_answers_compete_with_new_ones_and_old_with_old_ones():
    """The case that the released remap gets wrong: 3 old and 2 new answers, 3 % 2 ≠ 0, and an old answer among new ones."""
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, 5.0], [1.0, 0.0, 2.0, 4.0, 4.0], [0.5, 2.5, 1.0, 9.0, 9.0]])
    targets, old = torch.tensor([4, 3, 1]), 3
    new, known = answer_sums(logits, targets, old)
    assert float(new) == pytest.approx(-math.log(math.exp(5) / (math.exp(3) + math.exp(5))) + math.log(2), abs=1e-5)
    assert float(known) == pytest.approx(-math.log(math.exp(2.5) / sum(math.exp(v) for v in (0.5, 2.5, 1.0))), abs=1e-5)
    mask, columns = new_columns(targets.numpy(), old)
    assert mask.tolist() == [True, True, False]
    by_list = torch.nn.functional.cross_entropy(logits[mask][:, old:], torch.from_numpy(columns), reduction="sum")
    torch.testing.assert_close(new, by_list)


def test_the_first_increment_has_only_new_answers_and_an_increment_may_have_none():
    logits, targets = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 1])
    new, known = answer_sums(logits, targets, 0)
    torch.testing.assert_close(new, torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    assert float(known) == 0
    new, known = answer_sums(logits, targets, 3)
    torch.testing.assert_close(known, torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    assert float(new) == 0
    (new + known).backward()
    assert logits.grad is not None


def test_question_features_are_held_by_their_angle():
    student = {"question": torch.tensor([[1.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])}
    teacher = {"question": torch.tensor([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0]])}
    expected = torch.tensor([0.0, 1 - 1 / math.sqrt(2), 2.0])
    torch.testing.assert_close(question_distance(student, teacher), expected)


def test_each_previous_increment_is_distilled_on_its_own_columns():
    student, teacher = torch.tensor([[1.0, 2.0, 0.0, 3.0, 7.0, 9.0]]), torch.tensor([[2.0, 0.0, 1.0, 1.0, 4.0]])

    def divergence(begin: int, end: int) -> float:
        p, q = (np.exp(x[0, begin:end].numpy() / 2) for x in (teacher, student))
        p, q = p / p.sum(), q / q.sum()
        return 4 * float((p * np.log(p / q)).sum())

    found = slice_distances({"answer": student}, {"answer": teacher}, [2, 2, 5], 2.0)
    assert float(found) == pytest.approx(divergence(0, 2) + divergence(2, 5), rel=1e-5)
    assert float(slice_distances({"answer": student}, {"answer": teacher}, [5], 2.0)) == pytest.approx(
        divergence(0, 5), rel=1e-5
    )
    moved = torch.tensor([[2.0, 0.0, 11.0, 11.0, 14.0, -3.0]])  # each slice shifted, and a new column
    assert float(slice_distances({"answer": moved}, {"answer": teacher}, [2, 5], 2.0)) == pytest.approx(0, abs=1e-6)


def test_structure_is_differences_along_time_and_features_before_pooling():
    rng = np.random.default_rng(0)
    raw = {
        who: {"question": np.zeros((2, 1)), "heard": rng.normal(size=(2, 3, 4)), "seen": rng.normal(size=(2, 5, 4))}
        for who in ("student", "teacher")
    }

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    expected = np.zeros(2)
    for row, (name, axis) in itertools.product(range(2), (("heard", 0), ("seen", 0), ("seen", 1))):
        own, given = (np.diff(unit(raw[who][name][row]), axis=axis) for who in ("student", "teacher"))
        expected[row] += ((own - given) ** 2).mean()
    student, teacher = ({n: torch.from_numpy(v) for n, v in raw[who].items()} for who in ("student", "teacher"))
    np.testing.assert_allclose(structure_distance(student, teacher).numpy(), expected, rtol=1e-6)
    swapped = {name: value.flip(0) for name, value in student.items()}
    np.testing.assert_allclose(structure_distance(swapped, student)[0], structure_distance(student, swapped)[1])
    assert float(structure_distance(student, student).sum()) == 0
    single = {**student, "heard": student["heard"][:, :1]}
    assert torch.isfinite(structure_distance(single, {**teacher, "heard": teacher["heard"][:, :1]})).all()


def test_herding_takes_what_brings_the_mean_nearest():
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    rows = (features / features.norm(dim=1, keepdim=True)).double().numpy()
    chosen: list[int] = []
    for _ in range(4):
        free = [i for i in range(7) if i not in chosen]
        chosen.append(min(free, key=lambda i: np.linalg.norm(rows.mean(0) - rows[[*chosen, i]].mean(0))))
    assert herded(features, 4) == chosen
    assert herded(features, 2) == chosen[:2]
    assert herded(5 * features, 4) == chosen
    assert sorted(herded(features, 99)) == list(range(7))
    assert herded(torch.ones(3, 2), 2) == [0, 1]


def test_the_memory_keeps_the_beginning_of_each_class_within_its_budget():
    memory = HerdedMemory(7, 0)
    memory.add_classes("first", {"a": ["a1", "a2", "a3", "a4", "a5"], "b": ["b1"]})
    assert [e.key for e in memory.exemplars] == ["a1", "a2", "a3", "b1"]
    assert memory.share(["c"]) == 2
    memory.add_classes("second", {"c": ["c1", "c2", "c3"]})
    assert [(e.experience, e.key) for e in memory.exemplars] == [
        ("first", "a1"), ("first", "a2"), ("first", "b1"), ("second", "c1"), ("second", "c2")
    ]  # fmt: skip
    other = HerdedMemory(7, 0)
    other.load(memory.state())
    assert other.groups == memory.groups
    with pytest.raises(ConfigError, match=r"method\.memory: 7 samples for 8 classes"):
        memory.add_classes("third", {name: ["x"] for name in "defgh"})


def test_words_are_listed_by_first_appearance():
    assert words_of("What's the re-run of 2 drums_x?") == ("what's", "the", "re-run", "of", "2", "drums_x")
    words = WordList().grown(["Where is it?", "Is it there?"])
    assert words.words == ("<pad>", "<unk>", "where", "is", "it", "there")
    assert words.grown(["new"]).words[:6] == words.words
    assert words.encode("It is new", 5).tolist() == [4, 3, 1, 0, 0]
    assert words.encode("it it it", 2).tolist() == [4, 4]
