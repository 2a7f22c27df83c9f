"""What a run says of itself before it starts and beside its scores: which epoch is kept, and what its options switch off."""

from types import SimpleNamespace

import pytest

from avcl_core.config.options import Options
from avcl_core.models.aligned import Aligned, AlignedOptions
from avcl_core.models.base import Model
from avcl_core.running.assemble import notes
from avcl_core.stream import Experience, Session
from avcl_core.testing import toy_task
from avcl_core.testing.toy_texts import ToyTexts
from avcl_core.training.options import TrainingOptions
from avcl_core.training.splits import selection_notes

TASKS = {"labels": toy_task("labels"), "classes": toy_task("classes")}
FIRST, SECOND = (
    Experience(i, f"{task}0", task, ("a",), ("b",), ("c",), (), split)
    for i, (task, split) in enumerate((("labels", "test"), ("classes", "val")))
)
APART = (Session(0, (FIRST,), ()), Session(1, (SECOND,), ()))
TOGETHER = (Session(0, (FIRST, SECOND), ()),)
BY_TEST = {"labels": f"best epoch by test {TASKS['labels'].primary}"}


@pytest.mark.parametrize(
    ("sessions", "training", "expected"),
    [
        (APART, {}, BY_TEST),
        (APART, {"selection": "last"}, {"labels": "last epoch", "classes": "last epoch"}),
        (APART, {"tasks": {"labels": {"selection": "last"}}}, {"labels": "last epoch"}),
        (TOGETHER, {"tasks": {"labels": {"selection": "last"}}}, BY_TEST),
    ],
)
def test_the_epoch_that_is_kept_is_told_as_it_is_chosen(sessions, training, expected):
    assert selection_notes(sessions, TASKS, TrainingOptions(**training)) == expected


def test_notes_have_what_a_task_says_and_what_is_kept_and_what_the_model_remarks():
    tasks = {
        name: SimpleNamespace(splits_note=note, primary="f")
        for name, note in (("labels", "two left out"), ("classes", ""))
    }
    assembly = SimpleNamespace(
        tasks=tasks, sessions=APART, options=SimpleNamespace(training=TrainingOptions()), remarks=("a remark",)
    )
    assert notes(assembly) == ["labels: two left out; best epoch by test f", "a remark"]
    assembly.options.training = TrainingOptions(selection="last")
    assert notes(assembly) == ["labels: two left out; last epoch", "classes: last epoch", "a remark"]


def test_a_contrast_without_another_sample_is_remarked():
    tasks = {"texts": ToyTexts("texts"), "words": ToyTexts("words"), "labels": toy_task("labels")}
    sizes = {"texts": 1, "words": 2, "labels": 1}
    (remark,) = Aligned.remarks(AlignedOptions(), tasks, sizes)
    assert remark.startswith("texts: the contrastive term (model.contrast) is zero")
    assert Aligned.remarks(AlignedOptions(), tasks, sizes | {"texts": 2}) == ()
    assert Aligned.remarks(AlignedOptions(contrast={"audio_to_visual": 0, "visual_to_audio": 0}), tasks, sizes) == ()
    assert len(Aligned.remarks(AlignedOptions(contrast={"audio_to_visual": 0}), tasks, sizes)) == 1
    assert Model.remarks(Options(), tasks, sizes) == ()
